"""The rows of WISE: where a subject's tokens stand, whatever the template, the tokenizer and the padding."""

from collections.abc import Callable
from typing import Any

import pytest

from retcon import tokens
from retcon.errors import RequestError
from retcon.lm import LM
from retcon.methods.wise.rows import Row, Site, edit_rows, read_clean
from retcon.methods.wise.shards import Margins
from retcon.requests import Edit, split_prompt
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer

TinyLM = Callable[..., LM]
TEMPLATES = ["Because it is. ", "So {x} and {}. "]


def site(lm: LM) -> Site:
    named: dict[str, Any] = {"score": "act", "activation": "silu", "long_prompt": "mean", "precision": "float32"}
    return Site(
        layer=2, path=lm.arch.mlp_out[2], skipped=False, margins=Margins(1, 2, 1), lr=1.0, steps=1, clip=1.0,
        stop=0.02, stop_change=1e-4, **named,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["fast", "slow", "bos", "sentencepiece"])
def test_a_subjects_tokens_hold_it_and_no_token_of_them_is_one_too_many(kind: str) -> None:
    lm = LM.wrap(tiny_model("llama"), tiny_tokenizer(kind))
    more = [
        Edit("The set {{1}} of {} is", "A", "Rome"),
        Edit("Paris, and {} is not Paris or", "Paris", "Rome"),
        Edit("{}", "Big Ben", "Rome"),
    ]
    for edit in [*tiny_edits(12), *more]:
        for row in edit_rows(lm, edit, TEMPLATES, subject=True):
            first, end = row.subject
            assert edit.subject is not None
            assert edit.subject in tokens.decode(lm, row.prompt[first:end])
            assert edit.subject not in tokens.decode(lm, row.prompt[first + 1 : end])
            assert edit.subject not in tokens.decode(lm, row.prompt[first : end - 1])
            tail = split_prompt(edit.prompt)[1]
            assert tokens.decode(lm, row.prompt[end:]).strip() == tail.strip(), "of several it is the one in the braces"


def test_padding_leaves_the_subjects_tokens_where_they_are(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("gpt2")
    rows = [row for edit in tiny_edits(3) for row in edit_rows(lm, edit, TEMPLATES, subject=True)]
    together = read_clean(lm, site(lm), rows)
    for number, row in enumerate(rows):
        alone = read_clean(lm, site(lm), [row])
        first, end = row.subject
        assert alone.subject[0].nonzero()[:, 0].tolist() == list(range(first, end))
        shift = together.rows.split - len(row.prompt)
        assert together.subject[number].nonzero()[:, 0].tolist() == list(range(first + shift, end + shift))
        assert not (together.subject[number] & ~together.prompt[number]).any()
    assert len({len(row.prompt) for row in rows}) > 1


def test_where_no_subject_is_asked_for_no_token_is_one(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama")
    rows = edit_rows(lm, tiny_edits(1)[0], [])
    assert rows == [Row(rows[0].prompt, rows[0].target)]
    assert not read_clean(lm, site(lm), rows).subject.any()


def test_an_edit_without_a_subject_is_refused_where_one_is_needed(tiny_lm: TinyLM) -> None:
    with pytest.raises(RequestError, match="'The river is' has no subject.*use scope prompt"):
        edit_rows(tiny_lm("llama"), Edit("The river is", target="far"), [], subject=True)
