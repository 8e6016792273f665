"""SCR on tiny models: which facts are retrieved, what the model is asked, and what it then reads."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from retcon import forward, tokens
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods import SCR, SCRConfig, in_context
from retcon.methods.scr import without
from retcon.patch import Context, Patch
from retcon.patch.asking import Embedder, answers
from retcon.patch.context import Choice
from retcon.testing import check_method, tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing import checks_of_memories as on_memories

TinyLM = Callable[..., LM]
SURE = SCRConfig(confirm=-100.0)
"""The model confirms whatever it is asked."""
NEVER = SCRConfig(confirm=100.0)


def entry_of(patch: Patch) -> Context:
    (entry,) = patch.entries.values()
    assert isinstance(entry, Context)
    return entry


def ids(lm: LM, text: str) -> list[int]:
    return tokens.encode(lm, lm.render(text))


def logits(lm: LM, text: str) -> Tensor:
    with lm.inference():
        found: Tensor = lm.model(input_ids=torch.tensor([ids(lm, text)])).logits[0]
    return found


def chosen(lm: LM, entry: Context, text: str) -> Choice:
    (choice,) = entry.choose([ids(lm, text)], Embedder(lm.model, hooked=False), partial(answers, lm.model, entry))
    return choice


@pytest.mark.parametrize("kind", ["fast", "bos", "sentencepiece"])
def test_the_model_is_asked_one_fixed_question_for_each_fact_that_is_near(kind: str) -> None:
    lm, edits = LM.wrap(tiny_model("llama"), tiny_tokenizer(kind)), tiny_edits(3)
    entry = entry_of(SCR(SURE).edit(lm, edits))
    row = entry.asking(0, entry.content(ids(lm, edits[1].text)))
    assert row[: len(tokens.special_ids(lm)[0])] == tokens.special_ids(lm)[0]
    text = tokens.decode(lm, row)
    squeezed = " ".join(text.split())  # a tokenizer that begins a text with a space may begin a line with one
    assert squeezed.startswith(f"New fact: {edits[0].text} {edits[0].target}. Text to be completed: ")
    assert edits[1].text in text
    assert "Answer yes or no.\nAnswer:" in text
    assert entry.question is not None
    assert entry.question.yes != entry.question.no
    told = tokens.decode(lm, [*row, entry.question.yes])
    assert told.removeprefix(text).strip() == "" or "yes".startswith(told.removeprefix(text).strip())


def test_at_most_four_facts_are_retrieved_and_only_near_ones(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(12)
    entry = entry_of(SCR(SURE).edit(lm, edits))
    for number, edit in enumerate(edits):
        choice = chosen(lm, entry, edit.text)
        assert choice.facts[0] == number
        assert len(choice.facts) <= 4
        assert list(choice.answers) == choice.facts
        best = choice.cosines.sort(descending=True).indices[: len(choice.facts)]
        assert sorted(choice.facts) == sorted(best.tolist())
        assert all(float(choice.cosines[fact]) > 0.1 for fact in choice.facts)
    assert len(chosen(lm, entry_of(SCR(replace(SURE, nearest=2)).edit(lm, edits)), edits[0].text).facts) <= 2


def test_confirmed_facts_are_read_the_most_similar_last(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama", dtype=torch.float64), tiny_edits(12)
    patch = SCR(SURE).edit(lm, edits)
    entry = entry_of(patch)
    choice = chosen(lm, entry, edits[0].text)
    text = tokens.decode(lm, entry.text(choice.facts))
    assert text.endswith(f"New fact: {edits[0].text} {edits[0].target}.\n")
    whole = entry.text(choice.facts) + ids(lm, edits[0].text)
    with lm.inference():
        wanted = lm.model(input_ids=torch.tensor([whole])).logits[0, -1]
    with patch.on(lm.model):
        torch.testing.assert_close(logits(lm, edits[0].text)[-1], wanted, atol=1e-9, rtol=1e-9)


def test_what_the_model_does_not_confirm_is_answered_bit_for_bit_as_before(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    before = [logits(lm, edit.text) for edit in edits]
    with SCR(NEVER).edit(lm, edits).on(lm.model):
        assert all(torch.equal(logits(lm, edit.text), old) for edit, old in zip(edits, before, strict=True))
        forward.score(lm, [(ids(lm, edit.text), [[5, 6], [7]]) for edit in edits])


def test_prompts_far_from_all_facts_cost_no_question(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    patch = SCR(replace(SURE, near=0.9)).edit(lm, edits)
    runs: list[int] = []

    def count(*_: object) -> None:
        runs.append(1)

    handle = lm.block(0).register_forward_hook(count)
    with patch.on(lm.model):
        logits(lm, "0 0 0")
        assert len(runs) == 1
        logits(lm, edits[0].text)
        assert len(runs) == 3
    handle.remove()


def test_the_threshold_lies_half_way_between_own_prompts_and_others(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(5)
    texts = ["The river is in the north", "She was born"]
    patch = SCR().edit(lm, edits, retain=texts)
    entry = entry_of(patch)
    assert entry.question is not None
    embed = Embedder(lm.model, hooked=False)
    own = answers(lm.model, entry, [entry.asking(fact, entry.prompt(fact)) for fact in range(5)])
    others = []
    for fact in range(5):
        cosines = entry.keys @ entry.keys[fact]
        others.append((int(cosines.index_fill(0, torch.tensor(fact), -1).argmax()), entry.prompt(fact)))
    for text in (*in_context.ORDINARY, *texts):
        content = in_context.content_of(lm, text)
        others.append((int((entry.keys @ entry.vector(content, embed)).argmax()), content))
    rest = answers(lm.model, entry, [entry.asking(fact, content) for fact, content in others])
    wanted = (float(torch.tensor(own).median()) + float(torch.tensor(rest).median())) / 2
    assert entry.question.threshold == pytest.approx(wanted, abs=1e-5)
    assert patch.info["confirm"] == entry.question.threshold
    assert 0 <= patch.info["retain_asked"] <= 1


def test_batches_decide_as_single_rows_do(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("gpt2", dtype=torch.float64), tiny_edits(8)
    patch = SCR().edit(lm, edits)
    rows = [ids(lm, text) for text in (*(edit.text for edit in edits), "0 0 0", "chess is a sport")]
    entry, embed = entry_of(patch), Embedder(lm.model, hooked=False)
    together = entry.choose(rows, embed, partial(answers, lm.model, entry))
    alone = [entry.choose([row], embed, partial(answers, lm.model, entry))[0] for row in rows]
    assert [choice.facts for choice in together] == [choice.facts for choice in alone]
    assert len({len(choice.facts) for choice in together}) > 1
    with patch.on(lm.model):
        one = [forward.greedy(lm, [row], max_new_tokens=4, stop_at_eos=False)[0] for row in rows]
        assert forward.greedy(lm, rows, max_new_tokens=4, stop_at_eos=False) == one


def test_a_fold_is_the_batch_and_edits_can_go(tiny_lm: TinyLM, tmp_path: Path) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(4)
    first = SCR(SURE).edit(lm, edits[:2])
    fold = SCR(SURE).edit(lm, edits[2:], state=Patch.load(first.save(tmp_path / "first")))
    batch = SCR(SURE).edit(lm, edits)
    for name, tensor in entry_of(batch).tensors().items():
        torch.testing.assert_close(tensor, entry_of(fold).tensors()[name], atol=1e-6, rtol=1e-6)
    assert first.id in fold.contains
    less = without(fold, ["tiny-2"])
    assert entry_of(less).names == ("tiny-0", "tiny-1", "tiny-3")
    with pytest.raises(RetconError, match="made with method scr, nearest 4, near 0.1"):
        SCR(replace(SURE, nearest=3)).edit(lm, edits[2:], state=first)


def test_the_threshold_of_a_fold_is_that_of_the_batch_but_never_below_what_keeps_texts(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(4)

    def threshold(patch: Patch) -> float:
        question = entry_of(patch).question
        assert question is not None
        return question.threshold

    fold: Patch | None = None
    for edit in edits:
        fold = SCR().edit(lm, [edit], state=fold)
    assert fold is not None
    assert threshold(fold) == pytest.approx(threshold(SCR().edit(lm, edits)), abs=1e-4)
    kept = SCR().edit(lm, edits[:1], retain=["The city is large."])
    high = replace(
        kept, entries={"": entry_of(kept).confirmed_above(5.0).remade({**entry_of(kept).making, "floor": 5.0})}
    )
    more = SCR().edit(lm, edits[1:2], state=high)
    assert threshold(more) == 5.0
    assert threshold(SCR().edit(lm, edits[2:], state=more)) == 5.0


def test_no_weight_is_written(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("gpt2"), tiny_edits(2)
    before = lm.fingerprint()
    lm.notes.pop("fingerprint")
    with SCR().edit(lm, edits).on(lm.model):
        logits(lm, edits[0].text)
    assert lm.fingerprint() == before


def test_options_that_make_no_sense_are_refused(tiny_lm: TinyLM) -> None:
    with pytest.raises(RetconError, match="at least one fact"):
        SCR(SCRConfig(nearest=0)).edit(tiny_lm("llama"), tiny_edits(1))
    with pytest.raises(RetconError, match="there is no edit"):
        SCR().edit(tiny_lm("llama"), [])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("check", on_memories.CHECKS, ids=lambda check: check.__name__)
def test_the_contract_of_memories_holds(family: str, check: Any) -> None:
    check_method("scr", tiny_model(family), tiny_tokenizer("bos"), only=[check])
