"""What entries are told of a forward: mask, prompt, phase; decisions that live as long as a cache; what is refused."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from retcon import forward
from retcon.errors import PatchError
from retcon.lm import LM
from retcon.patch import Entry, ForwardRecord, LowRank, Patch, describe_base, prompts
from retcon.testing import tiny_model, tiny_tokenizer

Make = Callable[..., Patch]
Count = Callable[[nn.Module], int]
PATH = "model.layers.1.mlp.down_proj"


@dataclass(frozen=True, eq=False)
class Marked:
    """Adds to a whole row, at every token, what the sum of its prompt's inputs decides; keeps what it was told."""

    weight: Tensor
    told: list[ForwardRecord] = field(default_factory=list)
    kind: ClassVar[str] = "marked"
    folds: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def rank(self) -> int:
        return 1

    def apply(self, x: Tensor, y: Tensor, record: ForwardRecord | None = None) -> Tensor:
        if record is None:
            raise PatchError("nothing is known of the forward")
        self.told.append(record)
        mask = record.prompt[:, :, None]
        states = record.laid_out(x)
        mean = record.decide(lambda: (states * mask).sum(1) / mask.sum(1).clamp_min(1))  # (rows, d_in)
        return (record.laid_out(y) + (mean @ self.weight.T)[:, None]).view_as(y)

    def delta(self) -> Tensor:
        raise PatchError("no change of a weight")

    def scaled(self, factor: float) -> "Marked":
        return Marked(self.weight * factor, self.told)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Marked":
        return Marked(self.weight.to(device, dtype), self.told)

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight}

    def settings(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def lm() -> LM:
    return LM.wrap(tiny_model("llama", layers=3, dtype=torch.float64), tiny_tokenizer())


@pytest.fixture
def marked(lm: LM) -> Marked:
    d_out, d_in = lm.module(PATH).weight.shape  # type: ignore[misc]
    return Marked(torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def patch(lm: LM, marked: Marked) -> Patch:
    return Patch({PATH: marked}, describe_base(lm.model, [PATH], name="tiny"))


def run(lm: LM, rows: Sequence[Sequence[int]], splits: Sequence[int]) -> Tensor:
    """Logits of all tokens, row by row, one after the other."""
    aligned = forward.align(rows, splits, lm.device)
    with lm.inference():
        logits: Tensor = forward.call(lm, aligned.ids, aligned.mask, aligned.positions).logits
    return logits[aligned.mask.bool()]


LONG, SHORT = [5, 9, 7, 6, 8, 11], [6, 7, 10]


def test_a_linear_patch_puts_nothing_on_the_root(llama: PreTrainedModel, make: Make, hooks_of: Count) -> None:
    made = make(llama, 1)
    with made.on(llama):
        assert hooks_of(llama) == len(made.entries)
        assert not llama._forward_pre_hooks


def test_the_root_is_watched_while_the_patch_is_on_and_never_after(lm: LM, patch: Patch, hooks_of: Count) -> None:
    attributes = sorted(lm.model.__dict__)
    with patch.on(lm.model):
        assert hooks_of(lm.model) == 3
    assert hooks_of(lm.model) == 0
    assert sorted(lm.model.__dict__) == attributes


def test_left_and_right_padding_and_neighbours_change_nothing(lm: LM, patch: Patch) -> None:
    with patch.on(lm.model):
        alone = torch.cat([run(lm, [LONG], [6]), run(lm, [SHORT], [3])])
        for splits in ([6, 3], [0, 0], [4, 1]):
            torch.testing.assert_close(run(lm, [LONG, SHORT], splits), alone, atol=1e-10, rtol=1e-10)
    assert not torch.allclose(run(lm, [LONG], [6]), alone[:6])


def test_the_record_tells_mask_prompt_and_phase(lm: LM, patch: Patch, marked: Marked) -> None:
    with patch.on(lm.model), prompts(lm.model, [3, 4]):
        run(lm, [LONG, SHORT], [4, 1])
    record = marked.told[-1]
    assert (record.rows, record.width, record.past, record.prefill) == (2, 6, 0, True)
    assert record.attended.tolist() == [[True] * 6, [False] * 3 + [True] * 3]
    assert record.last.tolist() == [3, 4]
    assert record.prompt.tolist() == [[True] * 4 + [False] * 2, [False] * 3 + [True] * 2 + [False]]


def test_a_column_of_padding_is_never_a_rows_last_prompt_token(lm: LM, patch: Patch, marked: Marked) -> None:
    with patch.on(lm.model), prompts(lm.model, 5):
        run(lm, [LONG, SHORT], [0, 0])
    assert marked.told[-1].last.tolist() == [5, 2]


def test_without_a_scorer_the_whole_attended_input_is_the_prompt(lm: LM, patch: Patch, marked: Marked) -> None:
    with patch.on(lm.model), lm.inference():
        lm.model(torch.tensor([LONG]))  # by position, and without a mask
    assert marked.told[-1].prompt.all()


def test_prompts_are_told_by_the_innermost_block_and_for_each_row(lm: LM, patch: Patch, marked: Marked) -> None:
    with patch.on(lm.model), prompts(lm.model, 1):
        with prompts(lm.model, torch.tensor([2])):
            run(lm, [LONG], [6])
        run(lm, [LONG], [6])
        assert [record.last.tolist() for record in marked.told] == [[2], [1]]
        with prompts(lm.model, [1, 2, 3]), pytest.raises(PatchError, match="3 rows and the forward has 1"):
            run(lm, [LONG], [6])
    with patch.on(lm.model):
        run(lm, [LONG], [6])
    assert marked.told[-1].last.tolist() == [5]


def test_what_a_prompt_decided_is_held_while_decoding(lm: LM, patch: Patch, marked: Marked) -> None:
    """One token after the other against a cache gives what one forward gives that is told where the prompt ends."""
    rows = forward.align([LONG, [*SHORT, 9, 4]], [4, 3], lm.device)
    with patch.on(lm.model), lm.inference():
        with prompts(lm.model, 3):
            wanted = forward.call(lm, rows.ids, rows.mask, rows.positions).logits
        cache = DynamicCache()
        found = [forward.call(lm, rows.ids[:, :4], rows.mask[:, :4], rows.positions[:, :4], cache).logits]
        for column in (4, 5):
            here = slice(column, column + 1)
            found.append(
                forward.call(lm, rows.ids[:, here], rows.mask[:, : column + 1], rows.positions[:, here], cache).logits
            )
    mask = rows.mask.bool()
    torch.testing.assert_close(torch.cat(found, 1)[mask], wanted[mask], atol=1e-10, rtol=1e-10)
    assert [record.past for record in marked.told] == [0, 0, 4, 5]
    assert not marked.told[-1].prompt.any()


def test_a_cache_that_the_model_made_itself_is_known_too(lm: LM, patch: Patch) -> None:
    with patch.on(lm.model), lm.inference():
        first = lm.model(input_ids=torch.tensor([LONG[:5]]), use_cache=True)
        last = lm.model(input_ids=torch.tensor([LONG[5:]]), past_key_values=first.past_key_values)
        with prompts(lm.model, 4):
            wanted = lm.model(input_ids=torch.tensor([LONG])).logits[:, -1:]
    torch.testing.assert_close(last.logits, wanted, atol=1e-10, rtol=1e-10)


def test_two_caches_in_turn_keep_their_own_decisions(lm: LM, patch: Patch) -> None:
    with patch.on(lm.model), lm.inference():
        caches = [lm.model(input_ids=torch.tensor([row]), use_cache=True).past_key_values for row in (LONG, LONG[::-1])]
        turns = [
            lm.model(input_ids=torch.tensor([[9]]), past_key_values=cache).logits for cache in (caches[1], caches[0])
        ]
        for row, found in zip((LONG[::-1], LONG), turns, strict=True):
            with prompts(lm.model, 5):
                wanted = lm.model(input_ids=torch.tensor([[*row, 9]])).logits[:, -1:]
            torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)


def test_scores_come_from_the_prompts_decision_also_in_the_second_pass(lm: LM, patch: Patch) -> None:
    """Further continuations run against the prompts' cache, their rows in another order and number."""
    items = [(LONG, [[4, 9, 3], [8], [7, 7], [4, 3]]), (SHORT, [[9, 9]]), ([8, 5], [[3, 4], [6, 6, 6]])]
    assert forward.cache_holds(lm)
    with patch.on(lm.model):
        together = forward.score(lm, items)
        for (prompt, continuations), scores in zip(items, together, strict=True):
            for text, found in zip(continuations, scores, strict=True):
                with lm.inference(), prompts(lm.model, len(prompt) - 1):
                    logits = lm.model(input_ids=torch.tensor([prompt + text])).logits[0].log_softmax(-1)
                at = range(len(prompt) - 1, len(prompt) + len(text) - 1)
                wanted = [float(logits[column, token]) for column, token in zip(at, text, strict=True)]
                assert found.logprobs == pytest.approx(wanted, abs=1e-5)


def test_a_probe_of_the_cache_under_a_memory_finds_that_it_holds(lm: LM, patch: Patch) -> None:
    with patch.on(lm.model):
        assert forward.cache_holds(lm)


def test_greedy_generation_is_that_of_whole_rows(lm: LM, patch: Patch) -> None:
    with patch.on(lm.model):
        said = forward.greedy(lm, [LONG, SHORT], max_new_tokens=4, stop_at_eos=False)
        for prompt, ids in zip((LONG, SHORT), said, strict=True):
            (scored,) = forward.score(lm, [(prompt, [ids])])[0]
            assert all(scored.hits)


def test_beams_share_their_prompts_decision(lm: LM, patch: Patch) -> None:
    """Beam search reorders rows of one prompt among themselves only, so that reordering a cache changes no decision."""
    rows = forward.align([LONG, SHORT], [6, 3], lm.device)
    model: Any = lm.model
    options = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with patch.on(lm.model), lm.inference(), prompts(lm.model, 5):
        cached, whole = (
            model.generate(input_ids=rows.ids, attention_mask=rows.mask, use_cache=use, **options)
            for use in (True, False)
        )
    assert torch.equal(cached, whole)


# ------------------------------------------------------------------------------------------------ what is refused


def ran(lm: LM, **arguments: Any) -> Any:
    with lm.inference():
        return lm.model(**arguments)


def test_a_prompt_in_parts_is_refused(lm: LM, patch: Patch) -> None:
    with patch.on(lm.model):
        cache = ran(lm, input_ids=torch.tensor([LONG[:3]]), use_cache=True).past_key_values
        with pytest.raises(PatchError, match="chunked prefill"):
            ran(lm, input_ids=torch.tensor([LONG[3:]]), past_key_values=cache)
        model: Any = lm.model
        with pytest.raises(PatchError, match="chunked prefill"), lm.inference():
            model.generate(input_ids=torch.tensor([LONG]), max_new_tokens=2, prefill_chunk_size=3, pad_token_id=0)


def test_a_cache_from_before_the_patch_is_refused(lm: LM, patch: Patch) -> None:
    cache = ran(lm, input_ids=torch.tensor([LONG]), use_cache=True).past_key_values
    with patch.on(lm.model), pytest.raises(PatchError, match="began without it; run the prompt anew"):
        ran(lm, input_ids=torch.tensor([[9]]), past_key_values=cache)


def test_a_cache_of_another_patch_is_refused(lm: LM, patch: Patch) -> None:
    with patch.on(lm.model):
        cache = ran(lm, input_ids=torch.tensor([LONG]), use_cache=True).past_key_values
    with patch.scale(2).on(lm.model), pytest.raises(PatchError, match="began without it"):
        ran(lm, input_ids=torch.tensor([[9]]), past_key_values=cache)


def test_a_cache_with_other_rows_is_refused(lm: LM, patch: Patch) -> None:
    with patch.on(lm.model):
        cache = ran(lm, input_ids=torch.tensor([LONG]), use_cache=True).past_key_values
        cache.batch_repeat_interleave(2)
        with pytest.raises(PatchError, match="began with 1 rows and goes on with 2"):
            ran(lm, input_ids=torch.tensor([[9], [8]]), past_key_values=cache)


def test_a_mask_that_is_not_of_tokens_is_refused(lm: LM, patch: Patch) -> None:
    with patch.on(lm.model), pytest.raises(PatchError, match="mask of shape"):
        ran(lm, input_ids=torch.tensor([LONG]), attention_mask=torch.zeros(1, 1, 6, 6, dtype=torch.float64))


def test_a_part_of_the_model_is_refused_also_after_a_whole_forward(lm: LM, patch: Patch) -> None:
    with patch.on(lm.model):
        ran(lm, input_ids=torch.tensor([LONG]))
        body: Any = lm.module("model")
        with pytest.raises(PatchError, match="nothing is known of the forward"), lm.inference():
            body(input_ids=torch.tensor([LONG]))


def test_after_an_error_the_next_forward_is_told_anew(lm: LM, patch: Patch, marked: Marked) -> None:
    def fails(*_: object) -> None:
        raise ZeroDivisionError

    with patch.on(lm.model):
        hook = lm.block(2).register_forward_hook(fails)
        with pytest.raises(ZeroDivisionError):
            ran(lm, input_ids=torch.tensor([LONG]))
        hook.remove()
        body: Any = lm.module("model")
        with pytest.raises(PatchError, match="nothing is known"), lm.inference():
            body(input_ids=torch.tensor([LONG]))
        run(lm, [SHORT], [3])
    assert marked.told[-1].width == 3


def test_a_root_hook_that_cannot_be_placed_leaves_nothing(
    lm: LM, patch: Patch, hooks_of: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lm.model, "register_forward_hook", fails)
    with pytest.raises(KeyboardInterrupt):
        patch.attach(lm.model)
    monkeypatch.undo()
    assert hooks_of(lm.model) == 0


def test_linear_entries_need_no_record() -> None:
    entry: Entry = LowRank(torch.ones(2, 1), torch.ones(3, 1))
    assert entry.folds
    assert entry.settings() == {}
