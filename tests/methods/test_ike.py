"""IKE on tiny models: what stands before which prompt, from which examples, and who gets nothing."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from retcon import forward, tokens
from retcon.errors import PatchError, RequestError, RetconError
from retcon.lm import LM
from retcon.methods import IKE, IKEConfig, in_context
from retcon.methods.demonstrations import KINDS, counts_of
from retcon.methods.ike import without
from retcon.patch import Chain, Context, Patch
from retcon.patch.asking import Embedder
from retcon.patch.context import ROOT
from retcon.requests import Edit
from retcon.testing import check_method, tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing import checks_of_memories as on_memories
from retcon.testing.contract import quick

TinyLM = Callable[..., LM]
F64 = torch.float64


def entry_of(patch: Patch) -> Context:
    (entry,) = patch.entries.values()
    assert isinstance(entry, Context)
    return entry


def ids(lm: LM, text: str) -> list[int]:
    return tokens.encode(lm, lm.render(text))


def logits(lm: LM, text: str) -> Tensor:
    """Logits of a prompt's tokens, run by itself."""
    with lm.inference():
        found: Tensor = lm.model(input_ids=torch.tensor([ids(lm, text)])).logits[0]
    return found


def read(lm: LM, entry: Context, text: str) -> str:
    """What stands before a prompt, and the prompt."""
    facts, _ = entry.nearest(entry.content(ids(lm, text)), Embedder(lm.model, hooked=False))
    return tokens.decode(lm, entry.text(facts) + entry.content(ids(lm, text)))


def told(lm: LM, entry: Context, fact: int) -> str:
    """The whole text of a fact, whatever the budget."""
    return tokens.decode(lm, [token for piece in entry.pieces(fact) for token in piece])


@pytest.fixture
def pool(tmp_path: Path) -> str:
    """Twelve cases about the last of forty tiny edits; all have paraphrases and neighbours but the first two."""
    lines = []
    for number, edit in enumerate(tiny_edits(40)[28:]):
        record: dict[str, Any] = {"prompt": edit.prompt, "subject": edit.subject, "target_new": edit.target}
        if number > 1:
            record["paraphrases"] = [f"Again, {edit.text}"]
            record["neighbours"] = [{"prompt": f"Near {edit.text}", "answer": "elsewhere"}]
        lines.append(json.dumps(record))
    file = tmp_path / "pool.jsonl"
    file.write_text("\n".join(lines))
    return str(file)


# --------------------------------------------------------------------------------------------- what a prompt gets


@pytest.mark.parametrize("kind", ["fast", "slow", "bos", "sentencepiece"])
def test_the_fact_stands_before_its_prompt_in_any_spelling(kind: str) -> None:
    lm = LM.wrap(tiny_model("llama"), tiny_tokenizer(kind))
    edit = Edit(prompt="{} is located in the city of", subject="the Blue Tower", target="Rome")
    patch = IKE().edit(lm, [edit])
    entry = entry_of(patch)
    row = ids(lm, edit.text)
    assert read(lm, entry, edit.text) == f"New Fact: {edit.text} Rome\nPrompt: {edit.text}"
    whole = row[: entry.head(row)] + entry.text([0]) + entry.content(row)
    assert whole[: entry.head(row)] == tokens.special_ids(lm)[0]
    with lm.inference():
        wanted = lm.model(input_ids=torch.tensor([whole])).logits[0, -1]
    with patch.on(lm.model):
        torch.testing.assert_close(logits(lm, edit.text)[-1], wanted, atol=1e-4, rtol=1e-4)


def test_in_a_chat_the_fact_stands_within_the_turn() -> None:
    lm = LM.wrap(tiny_model("llama"), tiny_tokenizer(), chat=True)
    edit = tiny_edits(1)[0]
    entry = entry_of(IKE().edit(lm, [edit]))
    row = ids(lm, edit.text)
    assert tokens.decode(lm, list(entry.opening)) == "<|user|>\n"
    assert tokens.decode(lm, list(entry.closing)) == "\n<|assistant|>\n"
    assert tokens.decode(lm, entry.content(row)) == edit.text
    facts, cosines = entry.nearest(entry.content(row), Embedder(lm.model, hooked=False))
    assert facts == [0]
    assert float(cosines[0]) == pytest.approx(1, abs=1e-5)


def test_a_planted_prompt_finds_its_own_fact_first(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(20)
    entry = entry_of(IKE().edit(lm, edits))
    for number, edit in enumerate(edits):
        facts, cosines = entry.nearest(entry.content(ids(lm, edit.text)), Embedder(lm.model, hooked=False))
        assert facts == [number]
        assert int(cosines.argmax()) == number


def test_neighbours_are_answered_without_the_fact_and_bit_for_bit_as_before(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(6)
    relation = edits[0].prompt.replace("{}", "the river by the sea")
    foreign = ["1, 2, 3, 5", "0 0 0", "She was born in", "What is the name?"]
    before = [logits(lm, text) for text in (relation, *foreign)]
    patch = IKE().edit(lm, edits, retain=[relation, *foreign])
    entry = entry_of(patch)
    embed = Embedder(lm.model, hooked=False)
    silent = [not entry.nearest(entry.content(ids(lm, text)), embed)[0] for text in (relation, *foreign)]
    assert sum(silent) >= 4
    with patch.on(lm.model):
        after = [logits(lm, text) for text in (relation, *foreign)]
        assert [torch.equal(a, b) for a, b in zip(after, before, strict=True)] == silent
    assert patch.info["retain_hits"] == pytest.approx(1 - sum(silent) / 5)


def test_the_threshold_is_the_quantile_of_prompts_that_should_get_nothing(tiny_lm: TinyLM) -> None:
    lm, edits, texts = tiny_lm("llama"), tiny_edits(8), ["The river is", "chess is a sport"]
    patch = IKE(IKEConfig(leak=0.2)).edit(lm, edits, retain=texts)
    entry = entry_of(patch)
    others = (entry.keys @ entry.keys.T).fill_diagonal_(-1).amax(1)
    embed = Embedder(lm.model, hooked=False)
    rows = [in_context.content_of(lm, text) for text in (*in_context.ORDINARY, *texts)]
    best = torch.stack([entry.nearest(row, embed)[1].max() for row in rows])
    wanted = float(torch.cat([best, others]).quantile(0.8))
    assert entry.threshold == pytest.approx(min(wanted, 0.95), abs=1e-5)
    assert patch.info["threshold"] == entry.threshold
    assert entry_of(IKE(IKEConfig(threshold=0.4)).edit(lm, edits)).threshold == 0.4


def test_the_oracle_gives_every_prompt_the_nearest_fact(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    patch = IKE(IKEConfig(mode="oracle")).edit(lm, edits)
    for text in ("0 0 0", "1, 2, 3, 5", edits[1].text):
        before = logits(lm, text)
        with patch.on(lm.model):
            assert not torch.equal(logits(lm, text), before)
    assert "New Fact: " in read(lm, entry_of(patch), "0 0 0")


# -------------------------------------------------------------------------------------------------- demonstrations


def test_kinds_come_in_the_ratio_asked_for() -> None:
    assert counts_of(32, (1, 3, 4)) == [4, 12, 16]
    for n in range(20):
        for ratio in ((1, 3, 4), (0, 1, 1), (2, 0, 5)):
            counts = counts_of(n, ratio)
            assert sum(counts) == n
            assert all(abs(c - n * part / sum(ratio)) < 1 for c, part in zip(counts, ratio, strict=True))


def test_demonstrations_are_the_nearest_cases_of_the_pool_the_most_similar_last(tiny_lm: TinyLM, pool: str) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    patch = IKE(IKEConfig(pool=pool, demonstrations=8)).edit(lm, edits)
    assert [fact["demonstrations"] for fact in patch.info["facts"]] == [dict(zip(KINDS, (1, 3, 4), strict=True))] * 3
    entry = entry_of(patch)
    text = told(lm, entry, 0) + edits[0].text
    lines = text.split("\n\n")
    assert len(lines) == 10
    assert lines[-1] == f"New Fact: {edits[0].text} {edits[0].target}\nPrompt: {edits[0].text}"
    assert lines[-2] == f"{lines[-1]} {edits[0].target}"
    assert sum("Prompt: Again, " in line for line in lines) == 3
    assert sum("Prompt: Near " in line and line.endswith(" elsewhere") for line in lines) == 4
    shown = [line.split("\n")[0].removeprefix("New Fact: ") for line in lines[:8]]
    by_text = {f"{edit.text} {edit.target}": edit for edit in tiny_edits(40)[28:]}
    key = entry.keys[0]
    embed = Embedder(lm.model, hooked=False)
    cosines = [float(key @ entry.vector(in_context.content_of(lm, by_text[one].text), embed)) for one in shown]
    assert cosines == sorted(cosines)
    assert not any(other.text in text for other in edits[1:]), "another edit of the call was shown"


def test_an_edit_is_never_its_own_demonstration(tiny_lm: TinyLM, pool: str) -> None:
    lm, edit = tiny_lm("llama"), tiny_edits(40)[35]
    patch = IKE(IKEConfig(pool=pool, demonstrations=4, ratio=(0, 1, 0))).edit(lm, [edit])
    assert told(lm, entry_of(patch), 0).count(edit.text) == 3, "the fact twice, its prompt once"


def test_the_budget_drops_the_least_similar_demonstrations(tiny_lm: TinyLM, pool: str) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(2)
    first = entry_of(IKE(IKEConfig(pool=pool, demonstrations=4)).edit(lm, edits))
    whole = [token for piece in first.pieces(0) for token in piece]
    for budget in (128, 110, 60):
        entry = entry_of(IKE(IKEConfig(pool=pool, demonstrations=4, budget=budget)).edit(lm, edits))
        text = entry.text([0])
        assert len(text) <= budget
        assert whole[-len(text) :] == text
        assert len(text) >= len(entry.pieces(0)[-1])
    with pytest.raises(RequestError, match="a context may have 10; raise the budget"):
        IKE(IKEConfig(budget=10)).edit(lm, edits)
    state = IKE(IKEConfig()).edit(lm, edits)
    short = [replace(edits[0], prompt="{} is", id="short")]
    room = len(entry_of(IKE(IKEConfig()).edit(lm, short)).pieces(0)[-1])
    assert room < min(len(entry_of(state).pieces(n)[-1]) for n in (0, 1))
    with pytest.raises(
        RequestError, match=rf"the earlier fact 'tiny-0' takes \d+ tokens and a context may have {room};"
    ):
        IKE(IKEConfig(budget=room)).edit(lm, short, state=state)


def test_a_context_never_takes_more_than_half_of_the_models_positions(tiny_lm: TinyLM, pool: str) -> None:
    lm, edits = tiny_lm("gpt2"), tiny_edits(1)
    entry = entry_of(IKE(IKEConfig(pool=pool, demonstrations=8)).edit(lm, edits))
    assert entry.budget == 128
    with IKE(IKEConfig(pool=pool, demonstrations=8)).edit(lm, edits).on(lm.model):
        assert torch.isfinite(logits(lm, edits[0].text)).all()


def test_a_pool_that_is_too_small_is_refused_with_the_kind(tiny_lm: TinyLM, pool: str) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(1)
    with pytest.raises(RetconError, match="too few cases for 16 demonstrations that retain; give more cases with neig"):
        IKE(IKEConfig(pool=pool, ratio=(0, 0, 1), demonstrations=16)).edit(lm, edits)
    with pytest.raises(RetconError, match="too few cases for .* that update; give more cases with paraphrases"):
        IKE(IKEConfig(pool=pool, ratio=(0, 1, 0), demonstrations=11)).edit(lm, edits)
    with pytest.raises(RequestError, match="there is no file"):
        IKE(IKEConfig(pool="nowhere.jsonl")).edit(lm, edits)


# ------------------------------------------------------------------------------------------------ coming and going


def test_no_weight_is_written(tiny_lm: TinyLM, pool: str) -> None:
    lm, edits = tiny_lm("gpt2"), tiny_edits(2)
    before = lm.fingerprint()
    lm.notes.pop("fingerprint")
    patch = IKE(IKEConfig(pool=pool, demonstrations=4)).edit(lm, edits)
    with patch.on(lm.model):
        forward.greedy(lm, [ids(lm, edits[0].text)], max_new_tokens=3)
    assert lm.fingerprint() == before


def test_facts_one_at_a_time_are_the_batch(tiny_lm: TinyLM, tmp_path: Path) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(4)
    batch = IKE().edit(lm, edits)
    fold: Patch | None = None
    for edit in edits:
        fold = IKE().edit(lm, [edit], state=fold)
        fold = Patch.load(fold.save(tmp_path / "fold"))
    assert fold is not None
    one, other = entry_of(batch), entry_of(fold)
    assert one.settings() == other.settings()
    for name, tensor in one.tensors().items():
        torch.testing.assert_close(tensor, other.tensors()[name], atol=1e-6, rtol=1e-6)


def test_the_same_prompt_again_takes_the_place_of_the_first(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(2)
    again = replace(edits[0], target="Lima", id="again")
    for patch in (IKE().edit(lm, [*edits, again]), IKE().edit(lm, [again], state=IKE().edit(lm, edits))):
        entry = entry_of(patch)
        assert entry.names == ("tiny-1", "again")
        assert patch.info["facts"][-1]["replaces"] == ["tiny-0"]
        assert read(lm, entry, again.text).startswith(f"New Fact: {again.text} Lima\n")
    assert len(patch.edits) == 3


def test_facts_without_a_subject_are_found_too(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama")
    edits = [Edit(prompt=edit.text, target=edit.target) for edit in tiny_edits(3)]
    patch = IKE().edit(lm, edits)
    for edit in edits:
        assert read(lm, entry_of(patch), edit.text).startswith(f"New Fact: {edit.text} {edit.target}\n")
    alone = entry_of(IKE().edit(lm, edits[:1]))
    assert float(alone.keys[0].norm()) == pytest.approx(1, abs=1e-5)


def test_deleted_edits_are_gone_and_the_others_stay_bit_for_bit(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(4)
    bare = [logits(lm, edit.text) for edit in edits]
    patch = IKE(IKEConfig(threshold=0.9)).edit(lm, edits)
    less = without(patch, ["tiny-1", "tiny-3"])
    with patch.on(lm.model):
        wanted = [logits(lm, edits[number].text) for number in (0, 2)]
    with less.on(lm.model):
        assert all(torch.equal(logits(lm, edits[n].text), w) for n, w in zip((0, 2), wanted, strict=True))
        assert all(torch.equal(logits(lm, edits[n].text), bare[n]) for n in (1, 3))
    assert [edit["id"] for edit in less.edits] == ["tiny-0", "tiny-2"]
    assert not without(less, ["tiny-0", "tiny-2"]).entries
    with pytest.raises(PatchError, match="no edit 'tiny-1'"):
        without(less, ["tiny-1"])


def test_it_goes_on_from_changed_weights_and_methods_that_read_states_refuse_to_go_on_from_it(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    weights = quick("memit", layers=(1,)).edit(lm, edits[:1])
    both = IKE().edit(lm, edits[1:2], state=weights)
    assert set(both.entries) == {lm.arch.mlp_out[1], ROOT}
    assert (weights + IKE().edit(lm, edits[2:])).entries.keys() == both.entries.keys()
    for name in ("memit", "grace", "wise", "ft-m", "lora", "ultraedit", "ece"):
        with pytest.raises(PatchError, match="puts other text before the prompt"):
            quick(name).edit(lm, edits[2:], state=both)
        with both.on(lm.model), pytest.raises(PatchError, match="puts other text before the prompt"):
            quick(name).edit(lm, edits[2:])
    other = quick("scr").edit(lm, edits[2:], state=both)
    assert isinstance(other.entries[ROOT], Chain)


def test_a_state_of_other_options_or_scaled_is_refused(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(2)
    first = IKE().edit(lm, edits[:1])
    said = "made with method ike, mode gated, threshold auto, leak 0.05, strength 1; go on with the same"
    for config in (IKEConfig(mode="oracle"), IKEConfig(threshold=0.5), IKEConfig(leak=0.1)):
        with pytest.raises(RetconError, match=said):
            IKE(config).edit(lm, edits[1:], state=first)
    with pytest.raises(RetconError, match="strength 0"):
        IKE().edit(lm, edits[1:], state=first.scale(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "always"}, "gated or oracle"),
        ({"leak": 0.0}, "share between 0 and 1"),
        ({"demonstrations": -1}, "0 or more"),
        ({"ratio": (0, 0, 0)}, "not all 0"),
        ({"budget": 0}, "no room for a fact"),
    ],
)
def test_options_that_make_no_sense_are_refused(tiny_lm: TinyLM, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RetconError, match=message):
        IKE(IKEConfig(**options)).edit(tiny_lm("llama"), tiny_edits(1))
    with pytest.raises(RetconError, match="there is no edit"):
        IKE().edit(tiny_lm("llama"), [])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("check", on_memories.CHECKS, ids=lambda check: check.__name__)
def test_the_contract_of_memories_holds(family: str, check: Any) -> None:
    check_method("ike", tiny_model(family), tiny_tokenizer("bos"), only=[check])
