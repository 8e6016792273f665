"""ECE: with nothing chosen it is MEMIT; else each cluster is solved on its own neurons, layers and targets."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from retcon import forward, solve, targets, tokens
from retcon.errors import RetconError, RetconWarning
from retcon.lm import LM
from retcon.locate.attribution import Attributions
from retcon.methods import MEMIT, MEMITConfig, explained
from retcon.methods import ece as module
from retcon.methods.ece import ECE, ECEConfig
from retcon.methods.family import Problem, search_config
from retcon.patch import Patch
from retcon.requests import Edit
from retcon.targets import Store
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.checks import difference
from retcon.values import Found

Tiny = Callable[..., LM]

QUICK: dict[str, Any] = {"statistics": "none", "templates": 0, "steps": 5, "layers": (1, 2), "ridge": 1.0}
EXACT: dict[str, Any] = {"precision": "float32", "weight_decay": 0.0}


def ece(**options: Any) -> ECE:
    return ECE(ECEConfig(**QUICK | options))


@pytest.fixture(name="seen")
def _seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[module._Part, Problem, Tensor]]:
    """All problems that clusters were given, and the changes that they made of them."""
    seen: list[tuple[module._Part, Problem, Tensor]] = []
    rule = module._Part.rule

    def watched(self: module._Part, problem: Problem) -> solve.Factors:
        factors = rule(self, problem)
        seen.append((self, problem, factors.dense()))
        return factors

    monkeypatch.setattr(module._Part, "rule", watched)
    return seen


@pytest.fixture(name="sought")
def _sought(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Layer, number of facts and size of a batch of each search that was asked for."""
    asked: list[tuple[int, int, int]] = []
    find = targets.find

    def listed(lm: LM, edits: Sequence[Any], config: Any, *rest: Any, batch: int = 50, **more: Any) -> Any:
        asked.append((config.layer, len(edits), batch))
        return find(lm, edits, config, *rest, batch=batch, **more)

    monkeypatch.setattr(targets, "find", listed)
    return asked


def wide(family: str = "llama") -> LM:
    return LM.wrap(tiny_model(family, dtype=torch.float64), tiny_tokenizer())


def same(one: Patch, two: Patch) -> None:
    """Bit for bit the same change, and the same keys to remember."""
    assert one.entries.keys() == two.entries.keys()
    for path, entry in one.entries.items():
        for name, tensor in entry.tensors().items():
            assert torch.equal(two.entries[path].tensors()[name], tensor), f"{name} of {path}"
    assert one.state.keys() == two.state.keys()
    assert all(torch.equal(kept, two.state[name]) for name, kept in one.state.items())


@pytest.mark.parametrize(("family", "groups"), [("llama", {"n_clusters": 1}), ("gpt2", {"groups": "none"})])
def test_all_neurons_in_one_cluster_on_fixed_layers_are_memit_bit_for_bit(
    tiny_lm: Tiny, family: str, groups: dict[str, Any]
) -> None:
    lm, edits = tiny_lm(family), tiny_edits(4)
    plain, ours = MEMIT(MEMITConfig(**QUICK)), ece(p=1.0, **groups)
    first = plain.edit(lm, edits[:3])
    same(first, ours.edit(lm, edits[:3]))
    following = plain.edit(lm, edits[3:], state=first)
    same(following, ours.edit(lm, edits[3:], state=first))
    with first.on(lm.model):
        same(following, ours.edit(lm, edits[3:], state=first))


def test_it_uses_the_targets_that_memit_has_kept(tiny_lm: Tiny, tmp_path: Any) -> None:
    lm, edits, store = tiny_lm("llama"), tiny_edits(6), Store(tmp_path / "targets.sqlite")
    first = MEMIT(MEMITConfig(**QUICK, rounds=1)).edit(lm, edits[:1], stores=[store])
    MEMIT(MEMITConfig(**QUICK, rounds=1)).edit(lm, edits[1:], state=first, stores=[store])
    for made in (
        ece(rounds=1, n_clusters=2).edit(lm, edits[1:], state=first, stores=[store]),
        ece(rounds=1, n_clusters=2, batches="clusters").edit(lm, edits[1:], state=first, stores=[store]),
    ):
        assert made.info["targets_cached"] == 5
        assert len(made.info["clusters"]) == 2
    with first.on(lm.model):
        inside = ece(rounds=1, n_clusters=2).edit(lm, edits[1:], state=first, stores=[store])
    assert inside.info["targets_cached"] == 5


def test_each_cluster_is_solved_on_its_neurons_against_the_keys_of_those_before(
    tiny_lm: Tiny, seen: list[tuple[module._Part, Problem, Tensor]]
) -> None:
    """The change is zero off S, the objective's gradient zero on S, and each cluster sees what the last one did."""
    lm, edits = tiny_lm("llama"), tiny_edits(8)
    made = ece(n_clusters=3, p=0.6, rounds=1).edit(lm, edits)
    pieces = made.info["clusters"]
    assert len(pieces) == 3
    assert len(seen) == 6  # three clusters, two layers
    owners = [next(i for i, (part, _, _) in enumerate(seen[::2]) if n in part.piece.facts) for n in range(8)]
    assert made.info["labels"] == owners
    for number, (part, asked, change) in enumerate(seen):
        before = sum(piece["facts"] for piece in pieces[: number // 2])
        assert asked.past.shape[1] == before
        assert [edit.id for edit in asked.edits] == [edits[i].id for i in part.piece.facts]
        chosen = part.piece.neurons[asked.layer]
        metric = torch.eye(112, dtype=torch.float64) + asked.past @ asked.past.T
        slope = change @ metric + (change @ asked.keys - asked.residuals) @ asked.keys.T
        assert not change[:, ~chosen].any()
        assert slope[:, chosen].norm() < 1e-10 * (asked.residuals @ asked.keys.T).norm()
        assert torch.equal(made.state[f"cat.neurons.{asked.path}"][:, number // 2], chosen)
    for path, entry in made.entries.items():
        assert entry.rank == 8
        assert not entry.delta()[:, ~made.state[f"cat.neurons.{path}"].any(1)].any()


class Given(MEMIT):
    """MEMIT with targets that were found before."""

    def __init__(self, found: Found) -> None:
        super().__init__(MEMITConfig(**QUICK | EXACT, rounds=1))
        self.found = found

    def find(self, *_: Any) -> tuple[Found, int]:
        return self.found, 0


def test_facts_of_one_tie_are_in_one_cluster_where_most_of_them_were(tiny_lm: Tiny) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(8)
    apart = ece(n_clusters=3, rounds=1).edit(lm, edits).info["labels"]
    lone = next(i for i in range(8) if apart[i] != apart[0])
    pair = next([i, j] for i in range(8) for j in range(i) if apart[i] == apart[j] != apart[lone])
    tied = [replace(edit, tie="t" if i in (lone, *pair) else None) for i, edit in enumerate(edits)]
    made = ece(n_clusters=3, rounds=1).edit(lm, tied)
    labels = made.info["labels"]
    assert labels[lone] == labels[pair[0]] == labels[pair[1]]
    same_as_before = [i for i in range(8) if i != lone]
    for i in same_as_before:
        for j in same_as_before:
            assert (labels[i] == labels[j]) == (apart[i] == apart[j])
    assert set(labels) == set(range(len(made.info["clusters"])))
    lengths = [made.info["facts"][i]["delta_norm"] for i in (lone, *pair)]
    assert max(lengths) - min(lengths) < 2e-4


def test_facts_of_one_key_are_in_one_cluster_and_told_of() -> None:
    """Else the cluster that is written last would have its way, and nobody would hear of it."""
    lm, edits = LM.wrap(tiny_model("llama"), tiny_tokenizer()), tiny_edits(8)
    first = next(i for i, edit in enumerate(edits) if edit.prompt.startswith("{}"))
    facts = [*edits, replace(edits[first], id="rival", prompt="{} was made by", target="Nokia", old=None)]
    for groups in ("clusters", "random"):
        with pytest.warns(RetconWarning, match="1 pairs of facts share a key"):
            made = ece(n_clusters=3, rounds=1, groups=groups).edit(lm, facts)
        assert made.info["labels"][8] == made.info["labels"][first]
        assert made.info["shared_keys"] == 1


def test_clusters_are_written_one_after_the_other_to_targets_of_the_unedited_model() -> None:
    """One call is a fold of MEMIT over its clusters, each on top of the last, with targets that were found at first."""
    lm, edits = wide(), tiny_edits(6)
    made = ece(n_clusters=2, p=1.0, rounds=1, **EXACT).edit(lm, edits)
    found, _ = targets.find(lm, edits, search_config(ECEConfig(**QUICK | EXACT), 2, "layer_out"), ("",))
    folded: Patch | None = None
    for number in (0, 1):
        members = [i for i, label in enumerate(made.info["labels"]) if label == number]
        picked = Found(**{item.name: getattr(found, item.name)[members] for item in fields(Found)})
        folded = Given(picked).edit(lm, [edits[i] for i in members], state=folded)
    assert folded is not None
    assert difference(made, folded) < 1e-6
    assert difference(made, MEMIT(MEMITConfig(**QUICK | EXACT, rounds=1)).edit(lm, edits)) > 1e-3


def test_the_way_targets_are_batched_changes_passes_and_no_result(sought: list[tuple[int, int, int]]) -> None:
    lm, edits = wide(), tiny_edits(6)
    made, calls = {}, {}
    for way in ("together", "clusters", "single"):
        made[way] = ece(n_clusters=2, batches=way, rounds=1, layers=(2,), **EXACT).edit(lm, edits)
        calls[way] = sought.copy()
        sought.clear()
    sizes = [piece["facts"] for piece in made["single"].info["clusters"]]
    assert calls == {"together": [(2, 6, 50)], "clusters": [(2, n, 50) for n in sizes], "single": [(2, 6, 1)]}
    evaluations = [fact["evaluations"] for fact in made["single"].info["facts"]]
    labels = made["single"].info["labels"]
    passes = {
        "single": sum(evaluations),
        "clusters": sum(max(e for e, label in zip(evaluations, labels, strict=True) if label == k) for k in (0, 1)),
        "together": max(evaluations),
    }
    for way, patch in made.items():
        assert difference(made["together"], patch) < 1e-6
        assert patch.info["passes"] == passes | {"made": passes[way]}


def test_a_search_alone_stays_alone_in_later_rounds(sought: list[tuple[int, int, int]]) -> None:
    ece(n_clusters=2, batches="single", stop=0.0, stop_probability=None).edit(wide(), tiny_edits(4))
    assert len(sought) == 3  # all facts once, and each cluster again
    assert {batch for _, _, batch in sought} == {1}


def test_later_rounds_write_what_is_left_on_the_same_neurons(tiny_lm: Tiny) -> None:
    lm, edits, hard = tiny_lm("llama"), tiny_edits(4), {"stop": 0.0, "stop_probability": None, "n_clusters": 2}
    once, twice = (ece(rounds=rounds, p=0.6, **hard).edit(lm, edits) for rounds in (1, 2))
    for path, entry in twice.entries.items():
        assert entry.rank == 2 * once.entries[path].rank
        kept = twice.state[f"cat.neurons.{path}"]
        assert kept.shape[1] == 2
        assert not entry.delta()[:, ~kept.any(1)].any()
    assert all(fact["evaluations"] > 5 for fact in twice.info["facts"])


def test_each_cluster_has_its_window_and_its_targets_where_the_window_ends(
    tiny_lm: Tiny, sought: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, edits = LM.wrap(tiny_model("llama", layers=6), tiny_tokenizer()), tiny_edits(6)
    planted(monkeypatch, {0: (1, 2), 1: (3, 4)})
    options: dict[str, Any] = {"layers": None, "layers_by": "attribution", "width": 2, "rounds": 1, "n_clusters": 2}
    made = ece(**options).edit(lm, edits)
    first = made.info["clusters"][0]["layers"]
    assert sorted(piece["layers"] for piece in made.info["clusters"]) == [[1, 2], [3, 4]]
    assert sought == [(2, 3, 50), (4, 3, 50)]
    assert set(made.entries) == {lm.arch.mlp_out[layer] for layer in (1, 2, 3, 4)}
    assert made.info["labels"] == ([0, 1] * 3 if first == [1, 2] else [1, 0] * 3)
    assert all(made.state[f"cat.keys.{path}"].shape[1] == 3 for path in made.entries)


def planted(monkeypatch: pytest.MonkeyPatch, layers: dict[int, tuple[int, int]]) -> None:
    """Attributions that put the facts, in turn, on layers and neurons of their group."""

    def attribute(lm: LM, edits: Sequence[Edit], looked: Sequence[int], **_: Any) -> Attributions:
        scores = {layer: torch.full((len(edits), lm.arch.d_mlp), 1e-3) for layer in looked}
        numbers = {edit.id: i for i, edit in enumerate(tiny_edits(10))}
        for row, edit in enumerate(edits):
            group = numbers[edit.id] % len(layers)
            for layer in layers[group]:
                scores[layer][row, 20 * group : 20 * group + 20] = -1.0
        nothing = ("",) * len(edits)
        return Attributions(scores, torch.zeros(len(edits)), nothing, nothing, "gradient")

    monkeypatch.setattr(explained, "attribute", attribute)


def test_the_order_of_the_facts_changes_neither_clusters_nor_their_order() -> None:
    lm, edits = wide(), tiny_edits(6)
    method = ece(n_clusters=3, rounds=1, **EXACT)
    made, turned = method.edit(lm, edits), method.edit(lm, edits[::-1])
    assert made.info["labels"] == turned.info["labels"][::-1]
    assert difference(made, turned) < 1e-4
    assert [fact["delta_norm"] for fact in made.info["facts"]] == pytest.approx(
        [fact["delta_norm"] for fact in turned.info["facts"]][::-1], rel=1e-3
    )


def test_where_a_norm_follows_the_mlp_each_layer_seeks_its_targets(sought: list[tuple[int, int, int]]) -> None:
    lm = LM.wrap(tiny_model("gemma2"), tiny_tokenizer())
    made = ece(n_clusters=2, rounds=1).edit(lm, tiny_edits(4))
    sizes = [piece["facts"] for piece in made.info["clusters"]]
    assert sought == [(layer, n, 50) for n in sizes for layer in (1, 2)]
    assert "passes" not in made.info
    with pytest.raises(RetconError, match="warm_start=0"):
        ece(warm_start=1).edit(lm, tiny_edits(2))


def test_the_patch_tells_the_explanation(tiny_lm: Tiny) -> None:
    made = ece(n_clusters=2, p=0.5).edit(tiny_lm("llama"), tiny_edits(6))
    json.dumps(made.info, allow_nan=False)
    assert made.info["n"] == 6
    assert "reconstruction" in made.info["reading"]
    assert sorted(set(made.info["labels"])) == [0, 1]
    for number, piece in enumerate(made.info["clusters"]):
        assert piece["facts"] == made.info["labels"].count(number)
        assert piece["layers"] == [1, 2]
        assert all(0.4 < mass <= 0.5 for mass in piece["mass"])
        for layer, count in zip(piece["layers"], piece["neurons"], strict=True):
            kept = made.state[f"cat.neurons.model.layers.{layer}.mlp.down_proj"]
            assert int(kept[:, number].sum()) == count
    assert set(made.info["seconds"]) == {"statistics", "attribution", "targets", "solve"}
    assert made.info["seconds"]["attribution"] > 0


def test_a_second_batch_keeps_the_neurons_of_the_first(tiny_lm: Tiny) -> None:
    lm, edits, method = tiny_lm("llama"), tiny_edits(8), ece(n_clusters=2, rounds=1)
    first = method.edit(lm, edits[:4])
    both = method.edit(lm, edits[4:], state=first)
    for path in both.entries:
        assert both.state[f"cat.keys.{path}"].shape[1] == 8
        kept = both.state[f"cat.neurons.{path}"]
        assert kept.shape[1] == 4
        assert torch.equal(kept[:, :2], first.state[f"cat.neurons.{path}"])
    assert len(both.history) == 2
    assert len((first + method.edit(lm, edits[4:])).info["clusters"]) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 0.0}, "above 0"),
        ({"width": 0}, "above 0"),
        ({"n_clusters": 0}, "n_clusters of 1"),
        ({"warm_start": 5}, "from 0 to 4"),
    ],
)
def test_options_that_make_no_sense_are_refused(tiny_lm: Tiny, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RetconError, match=message):
        ece(**options).edit(tiny_lm("llama"), tiny_edits(2))


def test_a_later_batch_overwrites_an_earlier_answer(tiny_lm: Tiny) -> None:
    """The same question asked again, with another answer, which gains on the first one."""
    lm = tiny_lm("llama")
    old = tiny_edits(2)
    new = [replace(edit, target=target) for edit, target in zip(old, ("Lima", "Thai"), strict=True)]
    method = ece(steps=8, weight_decay=0.0, rounds=1)
    first = method.edit(lm, old)
    leads = []
    for made in (first, method.edit(lm, new, state=first)):
        with made.on(lm.model):
            leads.append([logprob(lm, edit) - logprob(lm, before) for edit, before in zip(new, old, strict=True)])
    assert all(now > then + 0.1 for then, now in zip(*leads, strict=True))


def logprob(lm: LM, edit: Edit) -> float:
    prompt, target = tokens.encode(lm, edit.text), tokens.target_ids(lm, edit.text, edit.target)
    ((scored,),) = forward.score(lm, [(prompt, [target])])
    return sum(scored.logprobs) / len(target)
