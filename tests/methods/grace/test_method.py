"""GRACE on tiny models: what is asked is said, all else stays bit for bit, a batch is its fold, edits come and go."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from retcon import forward, tokens
from retcon import patch as patches
from retcon.errors import PatchError, RetconError, RetconWarning
from retcon.lm import LM
from retcon.methods import GRACE, GRACEConfig
from retcon.methods.grace import without
from retcon.methods.grace.rows import Site, question, read_places
from retcon.methods.grace.state import Memory
from retcon.methods.grace.values import descend, measured
from retcon.methods.wise import WISE
from retcon.patch import Chain, Codebook, Patch
from retcon.requests import Edit
from retcon.testing import check_method, tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing import checks_of_memories as on_memories
from retcon.testing.contract import Trial, quick

TinyLM = Callable[..., LM]
F64 = torch.float64
FEW = GRACEConfig(radius=1.0, statistics="none", steps=60, lr=0.5)
"""Enough steps for a random model to hold what it is told."""


WORDS = ("city", "book", "river", "capital", "sport", "engineer")
"""One token each: a random model with one block above the memory says any one token, but not any three."""


def facts(n: int) -> list[Edit]:
    """So many edits, six answers in turn."""
    return [replace(edit, target=WORDS[i % len(WORDS)]) for i, edit in enumerate(tiny_edits(n))]


def ids(lm: LM, edit: Edit) -> tuple[list[int], list[int]]:
    """A prompt's and its target's ids."""
    return tokens.encode(lm, edit.text), tokens.target_ids(lm, edit.text, edit.target)


def holds(lm: LM, edit: Edit) -> bool:
    """Whether every target token is the argmax."""
    prompt, target = ids(lm, edit)
    return all(forward.score(lm, [(prompt, [target])])[0][0].hits)


def logits(lm: LM, edits: list[Edit]) -> Tensor:
    """Logits of all tokens of the edits' prompts, each run by itself."""
    with lm.inference():
        return torch.cat([lm.model(input_ids=torch.tensor([ids(lm, edit)[0]])).logits[0] for edit in edits])


def book(patch: Patch) -> Codebook:
    (entry,) = patch.entries.values()
    assert isinstance(entry, Codebook)
    return entry


# ----------------------------------------------------------------------------------------- what an edit achieves


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_edited_prompts_get_their_answers_and_all_others_stay_bit_for_bit(tiny_lm: TinyLM, family: str) -> None:
    lm, edits, others = tiny_lm(family), facts(6), facts(16)[6:]
    assert all(len(ids(lm, edit)[1]) == 1 for edit in edits)
    before = logits(lm, others)
    patch = GRACE(FEW).edit(lm, edits)
    with patch.on(lm.model):
        assert all(holds(lm, edit) for edit in edits)
        assert torch.equal(logits(lm, others), before)
    assert all(fact["held"] for fact in patch.info["facts"])
    assert patch.info["keys"] == 6


@pytest.mark.parametrize("mode", ["replace_prompt", "replace_all"])
def test_other_places_work_too(tiny_lm: TinyLM, mode: Any) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    trial = Trial(GRACE(), lm, tuple(edits), Path())
    before = trial.likelihoods()
    with GRACE(replace(FEW, replacement=mode, layer=1)).edit(lm, edits).on(lm.model):
        assert trial.likelihoods().mean() > before.mean() + 0.5


def test_a_cold_start_and_the_end_token_are_the_published_ones(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(2)
    config = replace(FEW, start="cold", end_token=True, steps=1)
    cold = book(GRACE(config).edit(lm, edits))
    assert [label[-1] for label in cold.labels] == [lm.tokenizer.eos_token_id] * 2
    assert 0 <= cold.values.min() < cold.values.max() < 1
    assert not torch.equal(*cold.values)
    assert torch.equal(book(GRACE(config).edit(lm, edits[:1])).values[0], cold.values[0]), "it depends on the batch"
    assert not torch.equal(book(GRACE(replace(config, seed=1)).edit(lm, edits)).values, cold.values)
    (fact,) = GRACE(replace(config, steps=60)).edit(lm, edits[:1]).info["facts"]
    (begun,) = GRACE(config).edit(lm, edits[:1]).info["facts"]
    assert fact["loss"] < begun["loss"] - 0.5


def test_a_value_below_a_linear_read_out_reaches_the_stop(tiny_lm: TinyLM) -> None:
    model: Any = tiny_model("gpt2", tie=False, dtype=F64)
    model.get_output_embeddings().weight.data *= 4  # a norm bounds what it reads, and so how sure it can be
    lm = LM.wrap(model, tiny_tokenizer())
    last = lm.arch.n_layers - 1
    (fact,) = GRACE(replace(FEW, layer=last, steps=200)).edit(lm, facts(1)).info["facts"]
    assert fact["loss"] < 0.01
    assert fact["evaluations"] < 200


def test_a_row_in_a_batch_of_eight_is_the_row_alone(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama", dtype=F64), tiny_edits(8)
    rows = [ids(lm, edit)[0] for edit in edits]
    with GRACE(FEW).edit(lm, edits[:4]).on(lm.model):
        alone = logits(lm, edits)
        for splits in ([len(row) for row in rows], [0] * 8):
            aligned = forward.align(rows, splits, lm.device)
            with lm.inference():
                together = forward.call(lm, aligned.ids, aligned.mask, aligned.positions).logits[aligned.mask.bool()]
            torch.testing.assert_close(together, alone, atol=1e-10, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("check", on_memories.CHECKS, ids=lambda check: check.__name__)
def test_the_contract_of_memories_holds(family: str, check: Any) -> None:
    """Defects G4 and G6 among others: one position for all rows; each generated token tested as a new query."""
    check_method(GRACE(FEW), tiny_model(family), tiny_tokenizer(), only=[check])


# ------------------------------------------------------------------------------------------ defects of the reference


def test_prompts_of_other_lengths_are_looked_up_at_their_own_last_token(tiny_lm: TinyLM) -> None:
    """Defect G5: the position of the last edit or call stays, and later prompts are looked up there."""
    lm, edits = tiny_lm("llama"), facts(5)
    pairs = [ids(lm, edit) for edit in edits]
    assert len({len(prompt) for prompt, _ in pairs}) > 2
    with GRACE(FEW).edit(lm, edits).on(lm.model):
        for order in (pairs, pairs[::-1], sorted(pairs, key=lambda pair: len(pair[0]))):
            assert all(all(forward.score(lm, [(p, [t])])[0][0].hits) for p, t in order)
            assert all(all(row[0].hits) for row in forward.score(lm, [(p, [t]) for p, t in order]))


def test_what_is_generated_is_the_prompts_decision_and_no_new_one(tiny_lm: TinyLM) -> None:
    """Defect G6."""
    lm, edits = tiny_lm("gpt2"), facts(4)
    with GRACE(FEW).edit(lm, edits).on(lm.model):
        for edit in edits:
            prompt, target = ids(lm, edit)
            (said,) = forward.greedy(lm, [prompt], max_new_tokens=len(target), stop_at_eos=False)
            assert said == target


FRESH = """
import os, sys
before = dict(os.environ)
import retcon.methods.grace
assert dict(os.environ) == before
import torch
from retcon.lm import LM
from retcon.patch import Patch
from retcon.testing import tiny_model
torch.set_num_threads(1)
model = tiny_model("llama")
with Patch.load(sys.argv[1]).on(model), torch.no_grad():
    torch.save(model(input_ids=torch.tensor([list(map(int, sys.argv[3].split(",")))])).logits, sys.argv[2])
"""


def test_a_fresh_process_gives_the_same_logits_and_importing_changes_no_environment(tmp_path: Path) -> None:
    """Defects G7 and G13: state absent from files; CUDA_LAUNCH_BLOCKING set by the import."""
    lm, edits = LM.wrap(tiny_model("llama"), tiny_tokenizer()), tiny_edits(3)
    patch = GRACE(FEW).edit(lm, edits)
    folder, row = patch.save(tmp_path / "patch"), ids(lm, edits[2])[0]
    with patch.on(lm.model):
        wanted = logits(lm, edits[2:])
    arguments = [str(folder), str(tmp_path / "logits.pt"), ",".join(map(str, row))]
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_LAUNCH_BLOCKING"}
    subprocess.run([sys.executable, "-c", FRESH, *arguments], check=True, timeout=120, env=environment)
    found = torch.load(tmp_path / "logits.pt", weights_only=True)[0]
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    assert not torch.equal(wanted, logits(lm, edits[2:]))


def test_gradient_flags_and_hooks_are_as_before(traces: Callable[[Any], tuple[object, ...]]) -> None:
    """Defect G8: all parameters frozen and never restored."""
    lm = LM.wrap(tiny_model("llama"), tiny_tokenizer())
    for number, weight in enumerate(lm.model.parameters()):
        weight.requires_grad_(number % 2 == 0)
    before = traces(lm.model)
    GRACE(FEW).edit(lm, tiny_edits(2))
    assert traces(lm.model) == before


@pytest.mark.parametrize("together", [True, False])
def test_a_prompt_that_is_edited_again_gives_the_second_answer(tiny_lm: TinyLM, together: bool) -> None:
    """Defect G9: radii of 0 and -1e-5, and nothing fires."""
    lm, first = tiny_lm("llama"), facts(2)
    again = replace(first[0], target="tower", id="again")
    patch = GRACE(FEW).edit(lm, [*first, again] if together else first)
    if not together:
        patch = GRACE(FEW).edit(lm, [again], state=patch)
    with patch.on(lm.model):
        assert holds(lm, again)
        assert not holds(lm, first[0])
        assert holds(lm, first[1])
    assert patch.info["facts"][-1]["case"] == "overwrite"
    assert patch.info["facts"][-1]["replaces"] == ["tiny-0"]
    assert book(patch).rank == 2


def test_options_without_effect_are_not_there() -> None:
    """Defect G12."""
    assert not {"dist_fn", "val_reg", "reg", "num_pert"} & set(GRACEConfig.__dataclass_fields__)


# --------------------------------------------------------------------------------------------- batches and folds


def test_values_sought_together_are_those_sought_one_at_a_time(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama", dtype=F64), tiny_edits(6)
    path = lm.arch.mlp_out[2]
    site = Site(layer=2, path=path, mode="replace_last", steps=12, lr=0.3, stop=0.01, precision="float32")
    asked = [question(lm, edit, end=False) for edit in edits]
    start = read_places(lm, path, [item.prompt for item in asked]).outputs
    together = descend(lm, site, asked, start)
    packed = descend(lm, site, asked, start, batch_tokens=30)
    for number, item in enumerate(asked):
        alone = descend(lm, site, [item], start[number : number + 1])
        for found in (together, packed):
            torch.testing.assert_close(found.values[number], alone.values[0], atol=1e-5, rtol=1e-5)
            assert found.evaluations[number] == alone.evaluations[0]
            assert found.loss[number] == pytest.approx(float(alone.loss[0]), abs=1e-6)
    assert len(set(together.evaluations.tolist())) > 1 or not together.held.all()
    again = measured(lm, site, asked, together.values)
    torch.testing.assert_close(again.loss, together.loss, atol=1e-5, rtol=1e-5)
    assert torch.equal(again.held, together.held)


@pytest.mark.parametrize("mode", ["replace_last", "replace_prompt", "replace_all"])
def test_rows_cut_and_entered_at_the_layer_are_the_whole_ones(tiny_lm: TinyLM, mode: str) -> None:
    lm, edits = LM.wrap(tiny_model("gpt2", dtype=F64), tiny_tokenizer()), tiny_edits(4)
    path = lm.arch.mlp_out[2]
    site = Site(layer=2, path=path, mode=mode, steps=5, lr=0.3, stop=0.0, precision="float32")
    asked = [question(lm, edit, end=False) for edit in edits]
    start = read_places(lm, path, [item.prompt for item in asked]).outputs
    assert forward.entry_holds(lm)
    found = [descend(lm, site, asked, start)]
    assert lm.notes.get("grace_cut") is (True if mode == "replace_last" else None)
    for note in ("grace_cut", "entry_holds"):
        lm.notes[note] = False
        found.append(descend(lm, site, asked, start))
    for other in found[1:]:
        torch.testing.assert_close(other.values, found[0].values, atol=1e-5, rtol=1e-5)


def test_a_batch_is_its_fold_over_facts_also_where_they_meet(tiny_lm: TinyLM) -> None:
    """So wide a radius that like answers share keys, unlike ones split balls, and some edits build on others."""
    lm, edits = tiny_lm("llama", dtype=F64), tiny_edits(12)
    config = replace(FEW, radius=4.0, widest=2.0, steps=6)
    batch = GRACE(config).edit(lm, edits)
    fold: Patch | None = None
    cases = []
    for edit in edits:
        fold = GRACE(config).edit(lm, [edit], state=fold)
        cases += fold.info["facts"]
    assert fold is not None
    one, other = book(batch), book(fold)
    assert one.labels == other.labels
    assert one.names == other.names
    assert torch.equal(one.owners, other.owners)
    for name in ("keys", "radii", "queries", "values"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-4, rtol=1e-4)
    assert [fact["case"] for fact in cases] == [fact["case"] for fact in batch.info["facts"]]
    assert len({fact["case"] for fact in cases}) > 2
    assert fold.edits == batch.edits


def test_a_shared_key_trained_on_says_which_edits_it_lost(tiny_lm: TinyLM) -> None:
    """One ball for all, no steps to speak of: whoever is answered by a value trained for others is looked at again."""
    lm = tiny_lm("llama")
    edits = [replace(edit, target="Rome", id=f"rome-{n}") for n, edit in enumerate(tiny_edits(4))]
    config = replace(FEW, radius=1000.0, widest=None)
    patch = GRACE(config).edit(lm, edits)
    assert book(patch).rank == 1
    assert [fact["case"] for fact in patch.info["facts"]] == ["first", "inside", "inside", "inside"]
    told = set(patch.info["facts"][-1].get("lost", []))
    with patch.on(lm.model):
        assert told == {edit.id for edit in edits[:3] if not holds(lm, edit)}
    later = GRACE(config).edit(lm, [replace(edits[3], prompt="Where is {} now? In", id="more")], state=patch)
    told = set(later.info["facts"][-1].get("lost", []))
    with later.on(lm.model):
        assert told == {edit.id for edit in edits if not holds(lm, edit)}


def test_a_loaded_state_goes_on_to_the_same_patch(tiny_lm: TinyLM, tmp_path: Path) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(4)
    first = GRACE(FEW).edit(lm, edits[:2])
    wanted = GRACE(FEW).edit(lm, edits[2:], state=first)
    loaded = Patch.load(first.save(tmp_path / "first"))
    assert GRACE(FEW).edit(lm, edits[2:], state=loaded).id == wanted.id
    assert book(wanted).rank == 4
    assert first.id in wanted.contains
    assert book(first).rank == 2, "the state was changed"


def test_on_top_of_changed_weights_it_answers_on_the_changed_model(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), facts(4)
    changed = quick("memit", layers=(1, 2)).edit(lm, edits[:2])
    path = lm.arch.mlp_out[2]
    both = GRACE(replace(FEW, layer=2)).edit(lm, edits[2:], state=changed)
    entry = both.entries[path]
    assert isinstance(entry, Chain)
    assert [part.kind for part in entry.parts] == ["low_rank", "codebook"]
    more = GRACE(replace(FEW, layer=2)).edit(lm, [replace(edits[2], prompt="By the sea {} is", id="sea")], state=both)
    entry = more.entries[path]
    assert isinstance(entry, Chain)
    assert [part.rank for part in entry.parts] == [2, 3]
    with more.on(lm.model):
        assert all(holds(lm, edit) for edit in edits[2:])


def test_a_search_that_runs_against_caches_refuses_to_go_on_from_a_codebook(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(2)
    first = GRACE(FEW).edit(lm, edits[:1])
    with pytest.raises(PatchError, match="decides by the prompt"):
        quick("memit", layers=(1,)).edit(lm, edits[1:], state=first)
    assert not patches.active(lm.model)


# ------------------------------------------------------------------------------------------------ coming and going


def test_deleted_edits_are_gone_and_the_others_stay_bit_for_bit(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(5)
    bare = logits(lm, edits)
    patch = GRACE(FEW).edit(lm, edits[:3])
    patch = GRACE(FEW).edit(lm, edits[3:], state=patch)
    less = without(patch, ["tiny-1", "tiny-4"])
    kept = [edits[0], *edits[2:4]]
    with patch.on(lm.model):
        wanted = logits(lm, kept)
    with less.on(lm.model):
        assert torch.equal(logits(lm, kept), wanted)
        assert torch.equal(logits(lm, [edits[1], edits[4]]), torch.cat([logits_of(bare, lm, edits, n) for n in (1, 4)]))
    assert [edit["id"] for edit in less.edits] == ["tiny-0", "tiny-2", "tiny-3"]
    assert less.parent is None
    assert less.id != patch.id
    nothing = without(less, [str(edit["id"]) for edit in less.edits])
    assert not nothing.entries
    with nothing.on(lm.model):
        assert torch.equal(logits(lm, edits), bare)
    with pytest.raises(PatchError, match="no edit 'tiny-1'"):
        without(less, ["tiny-1"])


@pytest.mark.parametrize(("dtype", "noise"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_balls_shrink_to_what_a_forward_of_the_models_dtype_needs(
    tiny_lm: TinyLM, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, noise: float
) -> None:
    lm, edits = tiny_lm("llama", dtype=dtype), tiny_edits(3)
    patch = GRACE(replace(FEW, steps=2)).edit(lm, edits)
    seen, real = [], Memory.of

    def noted(codebook: Codebook, **limits: Any) -> Memory:
        seen.append(limits["noise"])
        return real(codebook, **limits)

    monkeypatch.setattr(Memory, "of", noted)
    without(patch, ["tiny-1"])
    assert seen == [noise]


def test_on_a_side_memory_at_the_same_layer_values_are_sought_on_whole_rows(tiny_lm: TinyLM) -> None:
    """Columns before the last prompt token pass the side memory too; cut off by themselves they would not."""
    lm, edits = tiny_lm("llama"), tiny_edits(1)
    side = WISE(WISE.Config(layer=2, steps=20, templates=0)).edit(lm, edits)
    patch = GRACE(replace(FEW, layer=2)).edit(lm, [replace(edits[0], target=WORDS[1])], state=side)
    (fact,) = patch.info["facts"]
    with patch.on(lm.model):
        assert holds(lm, replace(edits[0], target=WORDS[1]))
        prompt, target = ids(lm, replace(edits[0], target=WORDS[1]))
        (scored,) = forward.score(lm, [(prompt, [target])])[0]
    assert -scored.logprobs[0] == pytest.approx(fact["loss"], abs=1e-3)


def logits_of(bare: Tensor, lm: LM, edits: list[Edit], number: int) -> Tensor:
    lengths = [len(ids(lm, edit)[0]) for edit in edits]
    return bare[sum(lengths[:number]) : sum(lengths[: number + 1])]


def test_edits_without_an_id_are_found_by_the_one_in_info(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), [replace(edit, id=None) for edit in tiny_edits(2)]
    patch = GRACE(replace(FEW, steps=2)).edit(lm, edits)
    names = [fact["id"] for fact in patch.info["facts"]]
    assert len(set(names)) == 2
    assert book(without(patch, names[:1])).names == (names[1],)


# ------------------------------------------------------------------------------------------------------- options


def test_the_default_layer_is_at_four_fifths_of_the_depth(tiny_lm: TinyLM) -> None:
    assert GRACE().layer(tiny_lm("llama")) == 2
    assert GRACE(GRACEConfig(layer=0)).layer(tiny_lm("llama")) == 0
    with pytest.raises(RetconError, match="layer 4 does not fit; name one of 0 to 3"):
        GRACE(GRACEConfig(layer=4)).layer(tiny_lm("llama"))


def test_the_first_layer_can_be_edited_too(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), facts(2)
    with GRACE(replace(FEW, layer=0, radius=0.01)).edit(lm, edits).on(lm.model):
        assert all(holds(lm, edit) for edit in edits)


def test_the_automatic_radius_is_half_of_a_low_quantile_of_retain_distances(tiny_lm: TinyLM) -> None:
    lm, edits, texts = tiny_lm("llama"), tiny_edits(3), [edit.text for edit in tiny_edits(12)[3:]]
    patch = GRACE(replace(FEW, radius="auto", steps=2)).edit(lm, edits, retain=texts)
    path = lm.arch.mlp_out[2]
    queries = read_places(lm, path, [ids(lm, edit)[0] for edit in edits]).queries
    ordinary = read_places(lm, path, [tokens.encode(lm, text) for text in texts]).queries
    wanted = float(torch.cdist(queries.double(), ordinary.double()).flatten().quantile(0.05)) / 2
    assert patch.info["radius"] == pytest.approx(wanted, rel=1e-4)
    assert book(patch).radius == patch.info["radius"]
    assert 0 < patch.info["radius_over_median"] < 1
    assert patch.info["retain_hits"] == 0
    later = GRACE(replace(FEW, radius="auto", steps=2)).edit(lm, tiny_edits(4)[3:], state=patch)
    assert book(later).radius == book(patch).radius, "a state goes on with its own radius"


def test_without_retain_texts_the_models_own_text_is_ordinary(tiny_lm: TinyLM, cache_folder: Path) -> None:
    patch = GRACE(GRACEConfig(steps=2)).edit(tiny_lm("llama"), tiny_edits(2))
    assert patch.info["radius"] > 0
    assert patch.info["retain_hits"] <= 0.01


def test_an_automatic_radius_without_any_text_is_refused(tiny_lm: TinyLM) -> None:
    with pytest.raises(RetconError, match="needs retain texts or statistics; give some, or a radius"):
        GRACE(GRACEConfig(statistics="none")).edit(tiny_lm("llama"), tiny_edits(1))


def test_retain_prompts_that_hit_are_warned_of(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(4)
    with pytest.warns(RetconWarning, match="100.0% of the retain prompts hit a key"):
        patch = GRACE(replace(FEW, radius=1000.0, steps=2)).edit(lm, edits[:1], retain=[e.text for e in edits[1:]])
    assert patch.info["retain_hits"] == 1


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (replace(FEW, steps=0), "steps must be 1 or more"),
        (replace(FEW, radius=0.0), "radius above 0"),
        (replace(FEW, replacement="replace_all"), "go on with the same replacement"),
        (replace(FEW, retest=True), "made with retest=False"),
        (replace(FEW, end_token=True), "entered with end_token=False"),
        (replace(FEW, widest=0.0), "widest is 0; it must be above 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(tiny_lm: TinyLM, config: GRACEConfig, sentence: str) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(2)
    state = GRACE(replace(FEW, steps=2)).edit(lm, edits[:1])
    with pytest.raises(RetconError, match=sentence):
        GRACE(config).edit(lm, edits[1:], state=state)


def test_a_scaled_state_is_refused(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(2)
    state = GRACE(replace(FEW, steps=2)).edit(lm, edits[:1]).scale(0.5)
    with pytest.raises(RetconError, match="strength 0.5"):
        GRACE(FEW).edit(lm, edits[1:], state=state)


def test_retesting_is_kept_in_the_patch(tiny_lm: TinyLM, tmp_path: Path) -> None:
    patch = GRACE(replace(FEW, steps=2, retest=True)).edit(tiny_lm("llama"), tiny_edits(1))
    assert book(Patch.load(patch.save(tmp_path / "patch"))).retest
