"""The trainer against plain training of the weight itself; its steps, its schedules, and what it leaves behind."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from retcon import forward, progress, tokens
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods import training, training_rows
from retcon.methods.fine_tuning import FTM, FTMConfig
from retcon.methods.training import Steps, Trained, TrainingConfig, train
from retcon.methods.training_rows import Text, rows_of
from retcon.patch import Patch
from retcon.requests import Edit
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.checks import difference
from retcon.testing.snapshot import changed, snapshot

TinyLM = Callable[..., LM]
F64 = torch.float64
BREADTH = FTMConfig(schedule="breadth", batch=100, layers=(2,), lr=1e-3, steps=3)
TEXTS = ("The council of the city met on Monday.", "Boats left the harbour.", "Rain fell all night in the hills.")


def dense(patch: Patch) -> Tensor:
    (entry,) = patch.entries.values()
    return entry.delta()


def losses(lm: LM, edits: Sequence[Edit]) -> list[float]:
    """Mean cross-entropy of each target, by one plain forward of each row."""
    found = []
    for edit in edits:
        prompt, target = ids_of(lm, edit)
        with lm.inference():
            logits = lm.model(input_ids=torch.tensor([[*prompt, *target]])).logits[0]
        found.append(float(F.cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(target))))
    return found


def ids_of(lm: LM, edit: Edit) -> tuple[list[int], list[int]]:
    text = lm.render(edit.text)
    return tokens.encode(lm, text), tokens.target_ids(lm, text, edit.target)


def sharp(family: str) -> LM:
    """A tiny model with a wide range of logits: behind its last norm that of others is too narrow for a loss near 0."""
    model: Any = tiny_model(family)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(4)
    return LM.wrap(model, tiny_tokenizer())


# ------------------------------------------------------------------------------------------------- steps


class Pair:
    """Two leaves, of which only the first has a part in what is added up."""

    def __init__(self) -> None:
        self.leaves = [torch.ones(3, dtype=F64, requires_grad=True), torch.ones(2, dtype=F64, requires_grad=True)]
        self.confined = 0

    def entries(self) -> dict[str, Any]:
        return {}

    def confine(self) -> None:
        self.confined += 1


def test_a_step_is_made_on_the_sum_of_the_parts_gradients_cut_to_a_length(tiny_lm: TinyLM) -> None:
    change, slope = Pair(), torch.tensor([3.0, 0.0, 4.0], dtype=F64)
    steps = Steps(tiny_lm("llama"), change, torch.optim.SGD(change.leaves, lr=1.0))
    for part in (0.25, 0.75):
        steps.add((part * slope * change.leaves[0]).sum())
    assert steps.take(clip=1.0)
    torch.testing.assert_close(change.leaves[0].detach(), 1 - slope / 5, rtol=1e-6, atol=0)
    assert torch.equal(change.leaves[1], torch.ones(2, dtype=F64))
    assert change.confined == 1
    steps.add(change.leaves[0].sum())
    steps.drop()
    before = change.leaves[0].detach().clone()
    steps.add(0 * change.leaves[0].sum())
    assert steps.take()
    assert torch.equal(change.leaves[0].detach(), before)  # what was dropped is forgotten


def test_no_step_is_made_on_a_gradient_that_is_not_finite(tiny_lm: TinyLM) -> None:
    change = Pair()
    steps = Steps(tiny_lm("llama"), change, torch.optim.AdamW(change.leaves, lr=1.0))
    steps.add((change.leaves[0] * torch.inf).sum())
    assert not steps.take(clip=1.0)
    assert torch.equal(change.leaves[0].detach(), torch.ones(3, dtype=F64))
    assert change.leaves[0].grad is None


def test_gradients_of_a_model_in_float16_are_scaled_and_come_out_as_they_are(tiny_lm: TinyLM) -> None:
    change = Pair()
    steps = Steps(tiny_lm("llama", torch.float16), change, torch.optim.SGD(change.leaves, lr=1.0))
    steps.add((0.5 * change.leaves[0]).sum())
    assert steps.take()
    assert torch.equal(change.leaves[0].detach(), torch.full((3,), 0.5, dtype=F64))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "opt"])
def test_a_trained_change_is_the_change_of_a_trained_weight(family: str, tiny_lm: TinyLM) -> None:
    """Batch of all, three passes: three steps of torch's Adam on the weight itself, on rows run one by one."""
    lm, edits = tiny_lm(family, F64), tiny_edits(4)
    found = dense(FTM(BREADTH).edit(lm, edits))
    model: Any = copy.deepcopy(lm.model).requires_grad_(False)
    weight = model.get_submodule(lm.arch.mlp_out[2]).weight.requires_grad_()
    before = weight.detach().clone()
    adam = torch.optim.Adam([weight], lr=1e-3)
    for _ in range(3):
        adam.zero_grad()
        for edit in edits:
            prompt, target = ids_of(lm, edit)
            logits = model(input_ids=torch.tensor([[*prompt, *target]])).logits[0, len(prompt) - 1 : -1]
            (F.cross_entropy(logits, torch.tensor(target)) / len(edits)).backward()
        adam.step()
    wanted = weight.detach() - before
    wanted = wanted.T if lm.arch.conv1d else wanted
    assert (found.double() - wanted).norm() < 1e-4 * wanted.norm()


def test_the_loss_told_is_that_of_plain_rows_whatever_is_beside_them(tiny_lm: TinyLM) -> None:
    """A short target beside a long one: what is padded weighs nothing, whatever its id."""
    lm = tiny_lm("llama")
    short, long = Edit(prompt="The", target="city"), replace(tiny_edits(4)[3], target="the water polo of the city")
    assert len(ids_of(lm, short)[1]) == 1 < len(ids_of(lm, long)[1])
    patch = FTM(replace(BREADTH, steps=1)).edit(lm, [short, long])
    told = [fact["loss"] for fact in patch.info["facts"]]
    assert told == pytest.approx(losses(lm, [short, long]), abs=2e-5)


def test_a_mini_batch_that_is_cut_for_memory_gives_the_same_step(
    tiny_lm: TinyLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, edits = tiny_lm("llama", F64), tiny_edits(5)
    whole = FTM(BREADTH).edit(lm, edits)
    monkeypatch.setattr(training, "BATCH_TOKENS", 1)
    assert difference(whole, FTM(BREADTH).edit(lm, edits)) < 1e-6


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "bloom", "opt", "falcon"])
def test_layers_below_the_change_run_once_and_nothing_changes_by_it(
    family: str, tiny_lm: TinyLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, edits, runs = tiny_lm(family, F64), tiny_edits(4), list[int]()
    assert forward.entry_holds(lm)
    forward.cache_holds(lm)
    handle = lm.projection(0).register_forward_hook(lambda *_: runs.append(1))
    try:
        fast = FTM(BREADTH).edit(lm, edits)
        once = len(runs)
        monkeypatch.setattr(training_rows, "_KEPT_BYTES", 0)
        whole = FTM(BREADTH).edit(lm, edits)
    finally:
        handle.remove()
    assert once == 2  # for the states, and to see what all facts came to
    assert len(runs) - once == BREADTH.steps + 1
    assert difference(whole, fast) < 1e-6


# ------------------------------------------------------------------------------------------------- schedules


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[list[int], float]]]:
    """The mini-batches of a run, with their losses."""
    seen: list[tuple[list[int], float]] = []
    step = training._Trainer._step

    def told(self: Any, batch: Sequence[int], steps: Steps) -> float:
        loss = step(self, batch, steps)
        seen.append((list(batch), loss))
        return loss

    with monkeypatch.context() as patched:
        patched.setattr(training._Trainer, "_step", told)
        yield seen


def test_in_breadth_each_request_is_seen_once_a_pass_in_a_new_order(
    tiny_lm: TinyLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched(monkeypatch) as seen:
        FTM(replace(BREADTH, batch=3)).edit(tiny_lm("llama"), tiny_edits(7))
    assert [len(batch) for batch, _ in seen] == [3, 3, 1] * 3
    passes = [[i for batch, _ in seen[k : k + 3] for i in batch] for k in (0, 3, 6)]
    assert all(sorted(order) == list(range(7)) for order in passes)
    assert len({tuple(order) for order in passes}) == 3


@pytest.mark.parametrize(("facts", "size"), [(4, 1), (19, 1), (25, 2)])
def test_by_default_a_pass_makes_ten_steps_or_one_for_each_request(
    facts: int, size: int, tiny_lm: TinyLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched(monkeypatch) as seen:
        FTM(replace(BREADTH, steps=1, batch=None)).edit(tiny_lm("llama"), tiny_edits(facts))
    assert {len(batch) for batch, _ in seen[:-1]} == {size}
    assert len(seen) >= min(10, facts)


def test_in_depth_each_request_is_finished_before_the_next_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    config = FTMConfig(layers=(2,), lr=2e-3, steps=100)
    with watched(monkeypatch) as seen:
        patch = FTM(config).edit(sharp("llama"), tiny_edits(3))
    order = [i for (i,), _ in seen]
    assert order == sorted(order)
    for i in range(3):
        own = [loss for (j,), loss in seen if j == i]
        assert own[-1] < 0.01 <= min([*own[:-1], 1.0])
        assert patch.info["facts"][i]["evaluations"] == len(own)


@pytest.mark.parametrize("schedule", ["depth", "breadth"])
def test_a_loss_below_the_stop_makes_no_step(schedule: Any, tiny_lm: TinyLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with watched(monkeypatch) as seen:
        patch = FTM(replace(BREADTH, schedule=schedule, stop=1e3)).edit(tiny_lm("llama"), tiny_edits(3))
    assert len(seen) == (3 if schedule == "depth" else 1)
    assert not dense(patch).any()
    assert [fact["evaluations"] for fact in patch.info["facts"]] == [1, 1, 1]


@pytest.mark.parametrize("schedule", ["depth", "breadth"])
def test_progress_ends_at_its_total_also_where_training_stops_early(schedule: Any) -> None:
    told: dict[str, list[float]] = {}

    @contextmanager
    def listener(name: str, total: float) -> Iterator[Callable[[float], None]]:
        done = told[name] = [total, 0.0]

        def advance(units: float) -> None:
            done[1] += units

        yield advance

    with progress.listen(listener):
        patch = FTM(replace(BREADTH, schedule=schedule, lr=2e-3, steps=100)).edit(sharp("llama"), tiny_edits(3))
    assert max(fact["evaluations"] for fact in patch.info["facts"]) < 100
    assert told["training"][0] == told["training"][1] > 0


def test_the_seed_decides_the_order_and_nothing_else_does(tiny_lm: TinyLM) -> None:
    lm, edits, config = tiny_lm("llama"), tiny_edits(6), replace(BREADTH, batch=2)
    one = FTM(config).edit(lm, edits)
    torch.rand(3)
    assert FTM(config).edit(lm, edits).id == one.id
    assert difference(one, FTM(config).edit(lm, edits[::-1])) == 0
    assert difference(one, FTM(replace(config, seed=1)).edit(lm, edits)) > 1e-3


# ------------------------------------------------------------------------------------------------- what is kept


def drift(lm: LM, patch: Patch) -> float:
    """KL from the model to the patched model over the texts, the mean over tokens."""
    total, n = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor([tokens.encode(lm, text)])
        with lm.inference():
            clean = lm.model(input_ids=ids).logits[0].log_softmax(-1)
            with patch.on(lm.model):
                now = lm.model(input_ids=ids).logits[0].log_softmax(-1)
        total, n = total + float((clean.exp() * (clean - now)).sum()), n + ids.shape[1]
    return total / n


def nll(lm: LM, patch: Patch) -> float:
    total = 0.0
    with lm.inference(), patch.on(lm.model):
        for text in TEXTS:
            ids = torch.tensor([tokens.encode(lm, text)])
            total += float(F.cross_entropy(lm.model(input_ids=ids).logits[0, :-1], ids[0, 1:]))
    return total


def test_texts_to_keep_are_kept(tiny_lm: TinyLM) -> None:
    lm, edits, config = tiny_lm("llama"), tiny_edits(3), replace(BREADTH, steps=40, lr=3e-3)
    free = FTM(config).edit(lm, edits)
    kept = FTM(replace(config, retain_weight=10.0)).edit(lm, edits, retain=TEXTS)
    assert drift(lm, kept) < 0.5 * drift(lm, free)
    assert sum(losses_on(lm, kept, edits)) < 0.8 * sum(losses(lm, edits))
    liked = FTM(replace(config, retain_loss="nll")).edit(lm, edits, retain=TEXTS)
    assert nll(lm, liked) < nll(lm, free)
    assert len({free.id, kept.id, liked.id}) == 3


def losses_on(lm: LM, patch: Patch, edits: Sequence[Edit]) -> list[float]:
    with patch.on(lm.model):
        return losses(lm, edits)


def test_a_model_that_has_not_moved_is_not_held_back(tiny_lm: TinyLM) -> None:
    """At the start the divergence is zero, and so is its gradient: the first step is that without texts."""
    lm, edits, config = tiny_lm("llama", F64), tiny_edits(3), replace(BREADTH, steps=1)
    assert difference(FTM(config).edit(lm, edits), FTM(config).edit(lm, edits, retain=TEXTS)) < 1e-6


def test_no_text_comes_again_before_all_have_come() -> None:
    texts = [Text([i, i], 1) for i in range(5)]
    drawn = training._Texts(texts, 0)
    first = [ids for _ in range(5) for ids in drawn.next(2)[0]]
    assert sorted(first[:5]) == sorted(first[5:]) == texts
    again = training._Texts(texts, 0)
    assert [ids for _ in range(5) for ids in again.next(2)[0]] == first
    assert len(training._Texts(texts[:2], 0).next(4)[0]) == 2


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_texts_are_read_from_the_lowest_trained_layer_on(
    family: str, tiny_lm: TinyLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs below it is the same at each step, and so is what comes of it."""
    lm, edits, method = tiny_lm(family, F64), tiny_edits(3), FTM(replace(BREADTH, steps=4, layers=(2,)))
    patch = method.edit(lm, edits, retain=TEXTS)
    monkeypatch.setattr(training, "states_below", lambda *_: None)
    assert difference(patch, method.edit(lm, edits, retain=TEXTS)) < 1e-9


# ------------------------------------------------------------------------------------------------- the model


def test_flags_modes_hooks_and_weights_are_as_before_also_after_an_error() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    lm = LM.wrap(model, tokenizer)
    method = FTM(replace(BREADTH, retain_batch=1))
    method.edit(lm, tiny_edits(2), retain=TEXTS)
    model.train()
    for number, weight in enumerate(model.parameters()):
        weight.requires_grad_(number % 3 == 0)
    before = snapshot(model, tokenizer)
    method.edit(lm, tiny_edits(2), retain=TEXTS)
    assert not changed(before, snapshot(model, tokenizer))
    with pytest.raises(RetconError, match="give a smaller lr"):
        FTM(replace(BREADTH, lr=3e37)).edit(lm, tiny_edits(2))
    assert not changed(before, snapshot(model, tokenizer))


def test_it_trains_where_the_caller_wants_no_gradients(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(2)
    with torch.no_grad():
        found = FTM(BREADTH).edit(lm, edits)
    assert found.id == FTM(BREADTH).edit(lm, edits).id


def test_products_may_be_in_bfloat16(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    exact, half = (FTM(replace(BREADTH, steps=10, precision=name)).edit(lm, edits) for name in PRECISIONS)
    assert 0 < difference(exact, half) < 0.5


PRECISIONS: tuple[Any, ...] = ("float32", "bfloat16")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"steps": 0}, "at least 1"),
        ({"batch": 0}, "at least 1"),
        ({"retain_batch": 0}, "at least 1"),
        ({"lr": 0.0}, "lr above zero"),
        ({"lr": float("nan")}, "lr above zero"),
    ],
)
def test_senseless_options_are_refused(options: dict[str, Any], reason: str, tiny_lm: TinyLM) -> None:
    with pytest.raises(RetconError, match=reason):
        FTM(replace(BREADTH, **options)).edit(tiny_lm("llama"), tiny_edits(2))


def test_any_change_of_leaves_can_be_trained(tiny_lm: TinyLM) -> None:
    """The trainer knows nothing of a change but its leaves, its entries and its bounds: here, one factor is fixed."""
    lm = tiny_lm("llama")

    class Steered:
        """Adds one learned vector wherever the projection reads along a fixed direction."""

        def __init__(self) -> None:
            self.U = torch.zeros(lm.arch.d_model, 1, requires_grad=True)
            self.V = torch.ones(lm.arch.d_mlp, 1)
            self.confined = 0

        @property
        def leaves(self) -> list[Tensor]:
            return [self.U]

        def entries(self) -> dict[str, Any]:
            from retcon.patch import LowRank

            return {lm.arch.mlp_out[1]: LowRank(self.U, self.V)}

        def confine(self) -> None:
            self.confined += 1

    change = Steered()
    config = TrainingConfig(schedule="breadth", batch=100, steps=4, lr=1e-2)
    found = train(lm, rows_of(lm, tiny_edits(2)), change, config)
    assert isinstance(found, Trained)
    assert found.evaluations.tolist() == [4, 4]
    assert change.confined == 4
    assert change.U.detach().abs().max() > 1e-2
    assert not change.V.requires_grad
