"""Texts before prompts: what the model sees, what the caller sees, who gets which text, and what is refused."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from transformers import StaticCache
from transformers.cache_utils import DynamicCache

from retcon import forward, tokens
from retcon.errors import PatchError
from retcon.lm import LM
from retcon.patch import Chain, Codebook, Context, LowRank, Patch, carry, describe_base, prompts, steady
from retcon.patch.asking import Embedder, answers
from retcon.patch.context import EVERY, ROOT, Question
from retcon.patch.placement import Placement
from retcon.patch.ragged import ragged
from retcon.testing import tiny_model, tiny_tokenizer

Count = Callable[[nn.Module], int]
F64 = torch.float64
FIRST, SECOND = [20, 21, 22, 23, 24], [30, 31, 32]
"""Prompts of two facts."""
FOREIGN = [40, 41, 42, 43]
TEXTS = [[(50, 51, 52), (53, 54, 55, 56)], [(50, 51, 52), (57, 58)]]
"""Their texts, in pieces; the first piece is shared."""


def model_of(family: str) -> LM:
    """In fp64, but for families whose padding gives NaN there."""
    dtype = torch.float32 if family in ("bloom", "mpt", "gemma2") else F64
    return LM.wrap(tiny_model(family, layers=3, dtype=dtype), tiny_tokenizer())


def assert_close(found: Tensor, wanted: Tensor) -> None:
    limit = 1e-9 if found.dtype == F64 else 2e-4
    torch.testing.assert_close(found, wanted, atol=limit, rtol=limit)


@pytest.fixture
def lm() -> LM:
    return model_of("llama")


def context(lm: LM, **settings: Any) -> Context:
    counts = Counter(token for row in (FIRST, SECOND) for token in set(row))
    embed = Embedder(lm.model, hooked=False)
    with torch.no_grad():
        center = embed(torch.arange(512)).float().mean(0)
        named: dict[str, Any] = {"vocabulary": 512, "documents": 2, "threshold": 0.6}
        return Context.made([FIRST, SECOND], TEXTS, ["one", "two"], counts, center, embed, **(named | settings))


def patch_of(lm: LM, entry: Any, number: int = 0) -> Patch:
    return Patch({ROOT: entry}, describe_base(lm.model, [ROOT], name="tiny"), info={"number": number})


def run(lm: LM, rows: Sequence[Sequence[int]], splits: Sequence[int], **more: Any) -> list[Tensor]:
    """The logits of each row's tokens."""
    aligned = forward.align(rows, splits, lm.device)
    arguments = {"position_ids": aligned.positions} if lm.arch.positions else {}
    with lm.inference():
        logits = lm.model(input_ids=aligned.ids, attention_mask=aligned.mask, **arguments, **more).logits
    return [logits[row][aligned.mask[row].bool()] for row in range(len(rows))]


def flat(pieces: Sequence[Sequence[int]]) -> list[int]:
    return [token for piece in pieces for token in piece]


ONE, TWO = flat(TEXTS[0]), flat(TEXTS[1])


# ------------------------------------------------------------------------------------ what the model and the caller see


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "mpt", "mistral", "gemma2", "opt", "falcon"])
def test_a_row_is_run_as_the_bare_model_runs_text_and_row(family: str) -> None:
    lm = model_of(family)
    (wanted,) = run(lm, [ONE + FIRST], [0])
    (bare,) = run(lm, [FIRST], [0])
    with patch_of(lm, context(lm)).on(lm.model):
        (found,) = run(lm, [FIRST], [0])
    assert_close(found, wanted[len(ONE) :])
    assert not torch.allclose(found, bare)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "mpt", "mistral", "opt"])
def test_rows_of_a_batch_are_those_rows_alone_however_they_are_padded(family: str) -> None:
    lm = model_of(family)
    rows = [FIRST, SECOND, FOREIGN, [*FIRST, 60, 61], SECOND[:1]]
    with patch_of(lm, context(lm)).on(lm.model):
        alone = [run(lm, [row], [0])[0] for row in rows]
        for splits in ([len(row) for row in rows], [0] * len(rows), [2, 3, 1, 4, 0]):
            for found, wanted in zip(run(lm, rows, splits), alone, strict=True):
                assert_close(found, wanted)


def test_padding_that_is_there_is_used_before_columns_are_added(lm: LM) -> None:
    ids = torch.tensor([[0] * 9 + SECOND, list(range(80, 92))])
    attended = torch.tensor([[False] * 9 + [True] * 3, [True] * 12])
    positions = (attended.long().cumsum(1) - 1).clamp_min(0)
    wide = Placement.of(ids, attended, positions, [0, 0], [TWO, []])
    assert wide.added == 0
    assert wide.ids[0].tolist() == [0] * 4 + TWO + SECOND
    assert wide.mask[0].tolist() == [False] * 4 + [True] * 8
    assert wide.own[0].tolist() == [False] * 9 + [True] * 3
    assert wide.positions[0, 4:].tolist() == list(range(8))
    assert torch.equal(wide.ids[1], ids[1])
    longer = Placement.of(ids, attended, positions, [1, 0], [TWO + ONE, []])
    assert longer.added == len(TWO + ONE) - 9
    assert longer.ids[0].tolist() == [SECOND[0], *TWO, *ONE, *SECOND[1:]]
    assert longer.own[0].tolist() == [True] + [False] * len(TWO + ONE) + [True] * 2
    assert longer.positions[0].tolist() == list(range(longer.ids.shape[1]))
    assert longer.mask[1].tolist() == [False] * longer.added + [True] * 12


def test_a_batch_without_any_context_is_run_bit_for_bit_as_without_the_patch(lm: LM) -> None:
    rows = [FOREIGN, [70, 71], [*FOREIGN, 72, 73]]
    bare = run(lm, rows, [4, 2, 6])
    with patch_of(lm, context(lm)).on(lm.model):
        assert all(torch.equal(a, b) for a, b in zip(run(lm, rows, [4, 2, 6]), bare, strict=True))
        assert not torch.equal(run(lm, [FIRST], [0])[0], bare[0])
    with patch_of(lm, context(lm).scaled(0)).on(lm.model):
        assert torch.equal(run(lm, rows, [4, 2, 6])[0], bare[0])


def test_the_text_comes_after_what_opens_a_prompt(lm: LM) -> None:
    turn = context(lm, opening=(1, 7, 8), start=1, closing=(9,))
    assert turn.content([1, 7, 8, *FIRST, 9]) == turn.content([1, *FIRST]) == turn.content(FIRST) == FIRST
    cases = {
        (1, 7, 8, *FIRST, 9): [1, 7, 8, *ONE, *FIRST, 9],
        (1, *FIRST): [1, *ONE, *FIRST],
        tuple(FIRST): [*ONE, *FIRST],
    }
    for row, whole in cases.items():
        (wanted,) = run(lm, [whole], [0])
        with patch_of(lm, turn).on(lm.model):
            (found,) = run(lm, [list(row)], [0])
            padded = run(lm, [list(row), FOREIGN * 5], [len(row), 20])[0]
        assert_close(found[-len(FIRST) :], wanted[-len(FIRST) :])
        assert_close(padded, found)


def test_all_that_is_returned_has_the_shape_that_the_caller_expects(lm: LM) -> None:
    ids = torch.tensor([FIRST, [*FOREIGN, 44]])
    with patch_of(lm, context(lm)).on(lm.model), torch.no_grad():
        whole = lm.model(input_ids=ids, output_hidden_states=True)
        assert whole.logits.shape == (2, 5, 512)
        assert [tuple(states.shape) for states in whole.hidden_states] == [(2, 5, 64)] * 4
        torch.testing.assert_close(lm.model(input_ids=ids, logits_to_keep=2).logits, whole.logits[:, -2:])
        torch.testing.assert_close(lm.model(input_ids=ids, logits_to_keep=99).logits, whole.logits)
        kept = lm.model(input_ids=ids, logits_to_keep=torch.tensor([0, 3])).logits
        torch.testing.assert_close(kept, whole.logits[:, [0, 3]])
        torch.testing.assert_close(lm.model(ids, return_dict=False)[0], whole.logits)
        rows, columns = torch.tensor([0, 1, 0]), torch.tensor([4, 2, 0])
        with forward.gathered_head(lm, rows, columns):
            torch.testing.assert_close(lm.model(ids).logits[0], whole.logits[rows, columns])
        loss = lm.model(input_ids=ids, labels=ids).loss
    wanted = torch.nn.functional.cross_entropy(whole.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert float(loss) == pytest.approx(float(wanted), abs=1e-5)


# --------------------------------------------------------------------------------------------- from a cache onwards


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "mistral", "gemma2"])
def test_generation_is_that_of_text_and_prompt(family: str) -> None:
    lm = model_of(family)
    rows, texts = [FIRST, SECOND, FOREIGN], [ONE, TWO, []]
    wanted = [forward.greedy(lm, [t + row], max_new_tokens=6, stop_at_eos=False)[0] for t, row in zip(texts, rows)]  # noqa: B905
    with patch_of(lm, context(lm)).on(lm.model):
        assert forward.greedy(lm, rows, max_new_tokens=6, stop_at_eos=False) == wanted
        assert [forward.greedy(lm, [row], max_new_tokens=6, stop_at_eos=False)[0] for row in rows] == wanted
        model: Any = lm.model
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        aligned = forward.align(rows, [len(row) for row in rows], lm.device)
        given = {"input_ids": aligned.ids, "attention_mask": aligned.mask}
        plain = model.generate(**given, **options)[:, aligned.width :].tolist()
        assert plain == wanted
        beams = model.generate(**given, **options, num_beams=2)[:, aligned.width :].tolist()
        with prompts(model, aligned.width - 1):
            uncached = model.generate(**given, **options, use_cache=False)[:, aligned.width :].tolist()
        assert uncached == wanted
    for row, text, found in zip(rows, texts, beams, strict=True):
        alone = model.generate(input_ids=torch.tensor([text + row]), **options, num_beams=2)
        assert alone[0, len(text + row) :].tolist() == found


def test_all_continuations_of_a_prompt_are_scored_after_its_text(lm: LM) -> None:
    further = [[60], [61, 62, 63], [64, 65], [66]]
    items = [(FIRST, further), (FOREIGN, further[:2]), (SECOND, further)]
    with patch_of(lm, context(lm)).on(lm.model):
        found = forward.score(lm, items)
    for (prompt, continuations), text, scored in zip(items, (ONE, [], TWO), found, strict=True):
        for ids, one in zip(continuations, scored, strict=True):
            (wanted,) = forward.score(lm, [(text + prompt, [ids])])[0]
            assert one.logprobs == pytest.approx(wanted.logprobs, abs=1e-9)
            assert one.hits == wanted.hits


def test_carried_rows_go_on_after_their_own_texts(lm: LM) -> None:
    rows = [FIRST, SECOND, FOREIGN]
    aligned = forward.align(rows, [5, 3, 4], lm.device)
    which = torch.tensor([2, 0, 1, 1])
    with patch_of(lm, context(lm)).on(lm.model), torch.no_grad():
        cache = DynamicCache()
        forward.call(lm, aligned.ids, aligned.mask, aligned.positions, cache)
        layers: Any = cache.layers
        past = forward.filled([(x.keys[which, :, :5], x.values[which, :, :5]) for x in layers])
        carry(lm.model, cache, past, which)
        mask = torch.cat([aligned.mask[which], torch.ones(4, 2, dtype=torch.long)], 1)
        positions = aligned.mask[which].sum(1, keepdim=True) + torch.arange(2)
        found = forward.call(lm, torch.tensor([[60, 61]] * 4), mask, positions, past).logits
    for row, number in enumerate(which.tolist()):
        (wanted,) = run(lm, [(ONE, TWO, [])[number] + rows[number] + [60, 61]], [0])
        assert_close(found[row], wanted[-2:])


def test_without_position_ids_rows_go_on_from_where_they_are(lm: LM) -> None:
    with patch_of(lm, context(lm)).on(lm.model), torch.no_grad():
        first = lm.model(input_ids=torch.tensor([FIRST]), use_cache=True)
        second = lm.model(input_ids=torch.tensor([[60]]), past_key_values=first.past_key_values, use_cache=True)
    assert_close(second.logits[0], run(lm, [[*ONE, *FIRST, 60]], [0])[0][-1:])


def test_paths_that_cannot_work_are_refused(lm: LM) -> None:
    model: Any = lm.model
    ids = torch.tensor([FIRST])
    with torch.no_grad():
        before = model(input_ids=ids, use_cache=True).past_key_values
        with patch_of(lm, context(lm)).on(model):
            with pytest.raises(PatchError, match="chosen by the forward's input_ids"):
                model(inputs_embeds=model.get_input_embeddings()(ids))
            with pytest.raises(PatchError, match="StaticCache has a fixed size"):
                model(input_ids=ids, past_key_values=StaticCache(config=model.config, max_cache_len=32))
            with pytest.raises(PatchError, match="began without it"):
                model(input_ids=torch.tensor([[60]]), past_key_values=before)
            own = model(input_ids=ids, use_cache=True).past_key_values
            with pytest.raises(PatchError, match="adds several tokens to a cache"):
                model(input_ids=torch.tensor([[60, 61]]), past_key_values=own)
            with pytest.raises(PatchError, match=r"mask of shape \(1, 6\)"):
                model(input_ids=torch.tensor([[60]]), past_key_values=own, attention_mask=torch.ones(1, 4))
            with pytest.raises(PatchError, match="began with 1 rows"):
                model(input_ids=torch.tensor([[60], [61]]), past_key_values=own)
            with pytest.raises(PatchError, match="position ids of shape"):
                model(input_ids=ids, position_ids=torch.arange(5).expand(3, 1, 5))
        assert model(input_ids=ids).logits.shape == (1, 5, 512)


# -------------------------------------------------------------------------------------------------- who gets what


def test_a_planted_prompt_is_found_first_and_a_foreign_one_not_at_all(lm: LM) -> None:
    entry, embed = context(lm), Embedder(lm.model, hooked=False)
    for number, row in enumerate((FIRST, SECOND)):
        facts, cosines = entry.nearest(row, embed)
        assert facts == [number]
        assert float(cosines[number]) == pytest.approx(1, abs=1e-5)
        near, _ = entry.nearest([*row, row[0]], embed)
        assert near == [number]
    assert entry.nearest(FOREIGN, embed)[0] == []
    assert entry.nearest([], embed)[0] == []
    every = context(lm, threshold=EVERY, most=2)
    assert sorted(every.nearest(FOREIGN, embed)[0]) == [0, 1]
    assert every.nearest(FIRST, embed)[0] == [0, 1]


def test_only_the_prompt_is_looked_at_and_not_what_follows(lm: LM) -> None:
    (wanted,) = run(lm, [ONE + FIRST + FOREIGN], [0])
    with patch_of(lm, context(lm, threshold=0.9)).on(lm.model):
        (unknown,) = run(lm, [FIRST + FOREIGN], [0])
        with prompts(lm.model, 4):
            (found,) = run(lm, [FIRST + FOREIGN], [0])
    assert_close(found, wanted[len(ONE) :])
    assert not torch.allclose(unknown, found)


def test_the_budget_drops_the_least_similar_facts_and_first_pieces_first(lm: LM) -> None:
    entry = context(lm)
    assert entry.text([0]) == ONE
    assert entry.text([0, 1]) == TWO + ONE, "the most similar stands next to the prompt"
    assert context(lm, budget=6).text([0]) == [53, 54, 55, 56]
    assert context(lm, budget=9).text([0, 1]) == [57, 58, *ONE]
    assert context(lm, budget=3).text([0]) == []
    for budget in range(1, 13):
        assert len(context(lm, budget=budget).text([1, 0])) <= budget


def test_a_facts_very_prompt_gets_that_fact_whatever_looks_alike(lm: LM) -> None:
    """The same tokens in another order have the same vector."""
    one, other = [20, 25, 30, 25], [30, 25, 20, 25]
    embed = Embedder(lm.model, hooked=False)
    counts = Counter({20: 1, 25: 2, 30: 1})
    with torch.no_grad():
        center = embed(torch.arange(512)).float().mean(0)
        named: dict[str, Any] = {"vocabulary": 512, "documents": 2, "threshold": 0.6}
        entry = Context.made([one, other], [[(50,)], [(51,)]], ["one", "other"], counts, center, embed, **named)
        assert entry.nearest(one, embed)[0] == [0]
        assert entry.nearest(other, embed)[0] == [1]
        assert entry.nearest([20, 30, 25, 25], embed)[0] == [1]  # nobody's own: the newest


def test_a_context_leaves_room_for_the_prompt_and_what_follows() -> None:
    lm = LM.wrap(tiny_model("gpt2"), tiny_tokenizer())
    limit = lm.model.config.max_position_embeddings
    entry = context(lm, threshold=EVERY)
    with patch_of(lm, entry).on(lm.model):
        for length in (limit - 2, limit - 12, limit):
            run(lm, [[60] * length], [0])
        assert len(run(lm, [FIRST], [0])[0]) == len(FIRST)


def test_a_cache_does_not_go_on_under_other_contexts(lm: LM) -> None:
    first, second = patch_of(lm, context(lm)), patch_of(lm, context(lm, most=2), 1)
    with torch.no_grad(), first.on(lm.model):
        cache = lm.model(input_ids=torch.tensor([FOREIGN]), use_cache=True).past_key_values
        with second.on(lm.model), pytest.raises(PatchError, match="other contexts are on the model"):
            lm.model(input_ids=torch.tensor([[60]]), past_key_values=cache, use_cache=True)


def test_the_model_confirms_facts_by_yes_and_no(lm: LM) -> None:
    asked: list[list[int]] = []

    def ask(rows: Sequence[Sequence[int]]) -> list[float]:
        asked.extend(list(row) for row in rows)
        return [1.0 if 57 in row else -1.0 for row in rows]

    question = Question((90,), (91,), 5, 6, 0.5)
    entry = context(lm, most=2, threshold=EVERY, opening=(1,), start=1, question=question)
    (choice, empty) = entry.choose([FIRST, [1]], Embedder(lm.model, hooked=False), ask)
    assert asked[0] == [1, 53, 54, 55, 56, 90, *FIRST, 91]
    assert asked[1] == [1, 57, 58, 90, *FIRST, 91]
    assert len(asked) == 2, "an empty prompt is asked nothing of"
    assert choice.facts == [1]
    assert choice.answers == {0: -1.0, 1: 1.0}
    assert empty.facts == []


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_what_is_asked_is_answered_by_the_next_tokens_logits(family: str) -> None:
    lm = model_of(family)
    question = Question((90,), (91,), 5, 6, 0.0)
    entry = context(lm, most=2, threshold=EVERY, question=question)
    rows = [[*range(20, 20 + n)] for n in (4, 9, 2, 9)]
    wanted = [float(logits[-1, 5] - logits[-1, 6]) for logits in (run(lm, [row], [0])[0] for row in rows)]
    traces = (len(lm.model._forward_hooks), len(lm.module(lm.arch.head)._forward_pre_hooks))
    assert answers(lm.model, entry, rows) == pytest.approx(wanted, abs=1e-5)
    assert (len(lm.model._forward_hooks), len(lm.module(lm.arch.head)._forward_pre_hooks)) == traces
    confirmed = [number for number, row in enumerate((FIRST, SECOND)) if _confirms(lm, entry, number, row)]
    with patch_of(lm, entry).on(lm.model):
        assert answers(lm.model, entry, rows) == pytest.approx(wanted, abs=1e-5), "before a question nothing goes"
        for number, row in enumerate((FIRST, SECOND)):
            chosen = entry.choose([row], Embedder(lm.model, hooked=False), lambda rows: answers(lm.model, entry, rows))
            assert (number in chosen[0].facts) == (number in confirmed)
            scored = forward.score(lm, [(row, [[60, 61]])])  # whose own hook at the head does not see the question
    with_text = entry.text(chosen[0].facts) + SECOND
    (plain,) = forward.score(lm, [(with_text, [[60, 61]])])[0]
    assert scored[0][0].logprobs == pytest.approx(plain.logprobs, abs=1e-9)


def _confirms(lm: LM, entry: Context, number: int, row: list[int]) -> bool:
    logits = run(lm, [entry.asking(number, row)], [0])[0][-1]
    return bool(logits[5] > logits[6])


class Sentences:
    """Stands for a sentence encoder: how often each character occurs."""

    seen: ClassVar[list[str]] = []

    def __init__(self, name: str, **options: Any) -> None:
        assert options["trust_remote_code"] is False

    def encode(self, texts: list[str], **_: Any) -> Tensor:
        self.seen.extend(texts)
        return torch.tensor([[float(text.count(chr(32 + n))) for n in range(96)] for text in texts])


def test_while_all_is_steady_each_prompt_is_decided_once(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    decided: list[tuple[int, ...]] = []
    real = Context.choose

    def choose(self: Context, prompts: Sequence[Sequence[int]], *rest: Any) -> Any:
        decided.extend(tuple(row) for row in prompts)
        return real(self, prompts, *rest)

    monkeypatch.setattr(Context, "choose", choose)
    rows = [FIRST, FOREIGN, FIRST]
    patch = patch_of(lm, context(lm))
    with patch.on(lm.model):
        anew = run(lm, rows, [5, 4, 5])
        run(lm, rows, [5, 4, 5])
        assert decided == [tuple(FIRST), tuple(FOREIGN)] * 2
        decided.clear()
        with steady(lm.model), steady(lm.model):
            for _ in range(2):
                for found, wanted in zip(run(lm, rows, [5, 4, 5]), anew, strict=True):
                    assert_close(found, wanted)
            run(lm, [SECOND], [3])
        assert decided == [tuple(FIRST), tuple(FOREIGN), tuple(SECOND)]
        run(lm, rows[:1], [5])
        assert decided[3:] == [tuple(FIRST)]  # once it is over, nothing is remembered
    with steady(lm.model):  # nothing is on
        run(lm, rows, [5, 4, 5])


def test_a_sentence_encoder_reads_the_text_of_ids(lm: LM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Sentences))
    entry = context(lm, encoder="letters")
    assert entry.keys.shape == (2, 96)
    assert entry.shape == (512, 64)
    assert Sentences.seen[:2] == [tokens.decode(lm, FIRST), tokens.decode(lm, SECOND)]
    made = patch_of(lm, entry)
    loaded = Patch.load(made.save(tmp_path / "patch"))
    (wanted,) = run(lm, [ONE + FIRST], [0])
    with loaded.on(lm.model):
        assert_close(run(lm, [FIRST], [0])[0], wanted[len(ONE) :])


def test_an_encoder_that_cannot_run_is_refused_with_the_cure(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(PatchError, match=r"pip install 'retcon-lm\[encoder\]'"):
        context(lm, encoder="absent")
    bare = tiny_model("llama", layers=3, dtype=F64)
    with pytest.raises(PatchError, match=r"retcon.LM.wrap\(model, tokenizer\)"):
        Embedder(bare, hooked=False).sentences("absent", [FIRST])


# ------------------------------------------------------------------------------------------ beside other patches


def test_nothing_is_left_on_the_model(lm: LM, hooks_of: Count) -> None:
    entry = patch_of(lm, context(lm))
    attributes = sorted(lm.model.__dict__)
    before = {name: weight.clone() for name, weight in lm.model.named_parameters()}
    with entry.on(lm.model):
        assert hooks_of(lm.model) == 3
        run(lm, [FIRST, FOREIGN], [5, 4])
    assert hooks_of(lm.model) == 0
    assert sorted(lm.model.__dict__) == attributes
    assert all(torch.equal(weight, before[name]) for name, weight in lm.model.named_parameters())
    handle = lm.block(1).register_forward_hook(_fail)
    with entry.on(lm.model), pytest.raises(RuntimeError, match="gone wrong"):
        run(lm, [FIRST], [0])
    handle.remove()
    assert hooks_of(lm.model) == 0


def _fail(*_: Any) -> None:
    raise RuntimeError("gone wrong")


def test_two_contexts_stand_one_after_the_other_stacked_or_as_a_sum(lm: LM, hooks_of: Count) -> None:
    first = patch_of(lm, context(lm), 1)
    other = context(lm, threshold=EVERY).without(["one"])
    second = patch_of(lm, other, 2)
    (wanted,) = run(lm, [ONE + TWO + FIRST], [0])
    with first.on(lm.model), second.on(lm.model):
        assert hooks_of(lm.model) == 3
        (stacked,) = run(lm, [FIRST], [0])
    whole = first + second
    assert isinstance(whole.entries[ROOT], Chain)
    with whole.on(lm.model):
        (summed,) = run(lm, [FIRST], [0])
    assert_close(stacked, wanted[len(ONE + TWO) :])
    assert torch.equal(summed, stacked)
    top = first.attach(lm.model)
    with second.on(lm.model):
        top.detach()
        (alone,) = run(lm, [FIRST], [0])
    assert_close(alone, run(lm, [TWO + FIRST], [0])[0][len(TWO) :])


@pytest.mark.parametrize("context_first", [True, False])
def test_a_codebook_beside_it_decides_by_the_rows_own_last_token(lm: LM, context_first: bool) -> None:
    path = lm.arch.mlp_out[1]
    mine = patch_of(lm, context(lm))
    seen: list[Tensor] = []
    handle = lm.module(path).register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach()))
    run(lm, [ONE + FIRST], [0])
    handle.remove()
    key = seen[0][0, -1].float()[None]
    value = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    book = Codebook.made(key, value, [1e-3], [(5,)], key, [0], ["one"])
    beside = Patch({path: book}, describe_base(lm.model, [path], name="tiny"))
    patches = (mine, beside) if context_first else (beside, mine)
    with beside.on(lm.model):
        (wanted,) = run(lm, [ONE + FIRST], [0])
        plain = run(lm, [FOREIGN], [0])[0]
    with patches[0].on(lm.model), patches[1].on(lm.model):
        (found,) = run(lm, [FIRST], [0])
        batch = run(lm, [FIRST, FOREIGN, SECOND], [5, 4, 3])
        with prompts(lm.model, 4):
            (told,) = run(lm, [[*FIRST, 60]], [0])
    assert_close(found, wanted[len(ONE) :])
    assert_close(batch[0], found)
    assert_close(batch[1], plain)
    assert_close(told[:5], found)
    assert not torch.allclose(found, run(lm, [ONE + FIRST], [0])[0][len(ONE) :])


def test_only_contexts_stand_at_the_root(lm: LM) -> None:
    wrong = LowRank(torch.ones(512, 1), torch.ones(64, 1))
    with pytest.raises(PatchError, match="only a context can stand there"), patch_of(lm, wrong).on(lm.model):
        pass
    with pytest.raises(PatchError, match="a whole model"):
        context(lm).apply(torch.ones(1, 1, 64), torch.ones(1, 1, 512))


def test_a_model_with_other_embeddings_is_refused(lm: LM) -> None:
    other = tiny_model("llama", layers=3, seed=1)
    with pytest.raises(PatchError, match="another weight"), patch_of(lm, context(lm)).on(other):
        pass


# ------------------------------------------------------------------------------------------------- as an entry


def test_settings_and_tensors_are_all_arguments(lm: LM) -> None:
    entry = context(lm, question=Question((90,), (91,), 5, 6, 0.5))
    arguments = {part.name for part in fields(Context) if part.init}
    assert set(entry.tensors()) | set(entry.settings()) == arguments
    assert not set(entry.tensors()) & set(entry.settings())


def test_a_saved_one_has_the_same_id_and_texts(lm: LM, tmp_path: Path) -> None:
    entry = context(lm, question=Question((90,), (91,), 5, 6, 0.5), closing=(9,), making={"method": "hand"})
    made = patch_of(lm, entry)
    loaded = Patch.load(made.save(tmp_path / "patch"))
    assert loaded.id == made.id
    again = loaded.entries[ROOT]
    assert isinstance(again, Context)
    assert again.settings() == entry.settings()
    assert [again.pieces(fact) for fact in range(2)] == TEXTS
    assert again.prompt(1) == SECOND
    assert again.shape == (512, 64)
    assert again.rank == 2


def test_without_some_facts_the_others_stay_as_they_were(lm: LM) -> None:
    entry, embed = context(lm), Embedder(lm.model, hooked=False)
    less = entry.without(["one"])
    assert less.names == ("two",)
    assert less.prompt(0) == SECOND
    assert less.pieces(0) == TEXTS[1]
    assert len(less.piece_offsets) - 1 == 2
    assert torch.equal(less.keys[0], entry.keys[1])
    assert float(less.nearest(SECOND, embed)[1][0]) == float(entry.nearest(SECOND, embed)[1][1])
    assert less.without(["two"]).rank == 0


def test_it_is_there_or_it_is_not(lm: LM) -> None:
    assert context(lm).scaled(1).strength == 1
    assert context(lm).scaled(0).scaled(1).strength == 0
    with pytest.raises(PatchError, match="cannot be scaled by 0.5"):
        context(lm).scaled(0.5)


@pytest.mark.parametrize(
    "spoilt",
    [
        {"keys": torch.ones(3, 64)},
        {"center": torch.ones(63)},
        {"names": ("one",)},
        ragged("member", [[0, 1], [7]]),
        ragged("member", [[0, 1], []]),
        {"piece_offsets": torch.tensor([0, 3])},
        {"seen_counts": torch.tensor([1])},
    ],
)
def test_parts_that_do_not_fit_are_refused(lm: LM, spoilt: dict[str, Any]) -> None:
    entry = context(lm)
    with pytest.raises(PatchError, match="do not fit together"):
        Context(**{**entry.tensors(), **entry.settings(), **spoilt})
