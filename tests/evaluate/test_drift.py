"""How far whole distributions move."""

import pytest
import torch

from retcon import tokens
from retcon.evaluate import drift as drifting
from retcon.evaluate.drift import divergence, drift
from retcon.lm import LM
from retcon.patch import LowRank, Patch, active, describe_base
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM.wrap(tiny_model("llama"), tiny_tokenizer())


@pytest.fixture(scope="module")
def rows(lm: LM) -> list[list[int]]:
    return [tokens.encode(lm, edit.text) for edit in tiny_edits(9)]


def change(lm: LM, size: float) -> Patch:
    path = lm.arch.mlp_out[1]
    draw = torch.Generator().manual_seed(0)
    entry = LowRank(size * torch.randn(64, 2, generator=draw), torch.randn(112, 2, generator=draw) * 0.2)
    return Patch({path: entry}, describe_base(lm.model, [path]))


def last(lm: LM, row: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = lm.model(torch.tensor([row])).logits[0, -1]
    return logits.double().log_softmax(-1)


def test_it_is_the_divergence_of_the_edited_model_from_the_unedited(lm: LM, rows: list[list[int]]) -> None:
    patch = change(lm, 0.5)
    before = [last(lm, row) for row in rows]
    with patch.on(lm.model):
        after = [last(lm, row) for row in rows]
    expected = [float((p.exp() * (p - q)).sum()) for p, q in zip(before, after, strict=True)]
    assert min(expected) > 1e-3
    assert drift(lm, patch, rows) == pytest.approx(expected, rel=1e-3)
    assert active(lm.model) == ()


def test_it_does_not_depend_on_how_prompts_are_batched(
    lm: LM, rows: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = change(lm, 0.5)
    whole = drift(lm, patch, rows)
    assert drift(lm, patch, rows, batch_tokens=8) == pytest.approx(whole, rel=1e-3)
    monkeypatch.setattr(drifting, "_BATCH_BYTES", 2 * 4 * 512)  # two rows of the vocabulary
    seen: list[int] = []
    real = drifting.divergence

    def watched(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        seen.append(len(before))
        return real(before, after)

    monkeypatch.setattr(drifting, "divergence", watched)
    assert drift(lm, patch, rows) == pytest.approx(whole, rel=1e-3)
    assert max(seen) <= 2


def test_no_change_moves_nothing_and_a_larger_one_more(lm: LM, rows: list[list[int]]) -> None:
    assert max(drift(lm, change(lm, 1e-9), rows)) < 1e-6
    small, large = drift(lm, change(lm, 0.1), rows), drift(lm, change(lm, 0.6), rows)
    assert sum(small) < sum(large)


def test_what_is_impossible_counts_for_nothing() -> None:
    never = torch.tensor([[0.5, 0.5, 0.0]]).log()
    other = torch.tensor([[0.25, 0.25, 0.5]]).log()
    assert float(divergence(never, other)) == pytest.approx(0.6931, abs=1e-4)
    assert float(divergence(other, never)) == float("inf")
