"""Writing to many prompts at once is writing to each alone."""

from collections.abc import Sequence

import pytest
import torch

from retcon import edit, forward, tokens
from retcon.evaluate.generating import said, written
from retcon.forward import decoding
from retcon.forward.starts import rows_part
from retcon.lm import LM
from retcon.patch import LowRank, Patch, describe_base
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer

PROMPTS = [one.text for one in tiny_edits(12)]
MOST = [4 + n for n in range(12)]


def made(family: str = "llama") -> LM:
    return LM.wrap(tiny_model(family), tiny_tokenizer())


@pytest.fixture(scope="module")
def lm() -> LM:
    return made()


def rows_of(lm: LM) -> list[list[int]]:
    return [tokens.encode(lm, prompt) for prompt in PROMPTS]


def alone(lm: LM, row: Sequence[int], most: int, ends: Sequence[int] = (), breaks: int = -1) -> list[int]:
    """One prompt, a whole forward a token."""
    found: list[int] = []
    while len(found) < most:
        with torch.no_grad():
            token = int(lm.model(torch.tensor([[*row, *found]])).logits[0, -1].argmax())
        if token in ends:
            break
        found.append(token)
        if token == breaks:
            break
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma2", "bloom", "falcon", "opt", "gpt_neo"])
def test_rows_of_one_batch_are_written_as_each_alone(family: str) -> None:
    lm = made(family)
    rows = rows_of(lm)
    assert written(lm, rows, MOST) == [alone(lm, row, most) for row, most in zip(rows, MOST, strict=True)]


def test_small_batches_and_the_library_write_the_same(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(lm)
    expected = written(lm, rows, MOST)
    assert written(lm, rows, MOST, batch_tokens=30) == expected
    assert written(lm, rows[:3], MOST[:3]) == expected[:3]
    monkeypatch.setattr(decoding, "rows_part", lambda _: False)
    assert written(lm, rows, MOST) == expected


def test_a_patch_that_is_on_counts(lm: LM) -> None:
    rows, path = rows_of(lm), lm.arch.mlp_out[2]
    draw = torch.Generator().manual_seed(0)
    entry = LowRank(torch.randn(64, 2, generator=draw) * 0.6, torch.randn(112, 2, generator=draw) * 0.3)
    patch = Patch({path: entry}, describe_base(lm.model, [path]))
    before = written(lm, rows, MOST)
    with patch.on(lm.model):
        after = written(lm, rows, MOST)
        assert after == [alone(lm, row, most) for row, most in zip(rows, MOST, strict=True)]
    assert after != before


def test_rows_end_with_the_end_token_and_leave_the_others_undisturbed() -> None:
    lm = made()
    rows = rows_of(lm)
    free = written(lm, rows, [12] * 12)
    ends = [free[0][3], free[5][6]]
    lm.model.generation_config.eos_token_id = ends
    assert forward.end_ids(lm) == ends
    found = written(lm, rows, [12] * 12)
    assert found == [alone(lm, row, 12, ends) for row in rows]
    assert len(found[0]) <= 3
    assert len({len(row) for row in found}) > 1


def test_rows_end_where_the_line_does(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(lm)
    free = written(lm, rows, [12] * 12)
    real, line = tokens.decode, free[0][3]

    def decode(lm: LM, ids: list[int]) -> str:
        return "".join("\n" if token == line else real(lm, [token]) for token in ids)

    monkeypatch.setattr(tokens, "decode", decode)
    found = written(lm, rows, [12] * 12)
    assert found == [alone(lm, row, 12, breaks=line) for row in rows]
    assert len(found[0]) == 4
    assert "\n" not in said(lm, found[0])
    monkeypatch.setattr(decoding, "rows_part", lambda _: False)
    assert written(lm, rows, [12] * 12) == found


def test_a_line_break_before_anything_is_written_ends_nothing(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    row = rows_of(lm)[0]
    [free] = written(lm, [row], [6])
    monkeypatch.setattr(tokens, "decode", lambda _lm, ids: "".join("\n" if token == free[0] else "x" for token in ids))
    [found] = written(lm, [row], [6])
    expected = next((free[:n] for n in range(2, 7) if free[n - 1] == free[0] and set(free[:n]) != {free[0]}), free)
    assert found == expected
    assert said(lm, found).startswith("x")


def test_rows_of_memories_are_left_to_the_library(lm: LM) -> None:
    edits = tiny_edits(3)
    patch = edit(lm.model, lm.tokenizer, edits, method="ike", cache=False)
    rows = rows_of(lm)[:4]
    before = written(lm, rows, [6] * 4)
    with patch.on(lm.model):
        assert not rows_part(lm)
        after = written(lm, rows, [6] * 4)
        assert after == forward.greedy(lm, rows, max_new_tokens=6)
    assert after != before
    assert rows_part(lm)


def test_no_prompt_needs_no_model(lm: LM) -> None:
    assert written(lm, [], []) == []


def test_what_is_said_is_one_line_without_white_space_around() -> None:
    lm = made()
    assert said(lm, tokens.encode(lm, " the river\nRome")) == "the river"
    assert said(lm, tokens.encode(lm, "\n\n the river \n")) == "the river"
