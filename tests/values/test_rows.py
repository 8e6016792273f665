"""The rows of a fact, and facts that have none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from retcon import tokens, values
from retcon.errors import RequestError
from retcon.lm import LM
from retcon.requests import Edit
from retcon.testing import tiny_edits
from retcon.values import SearchConfig

Tiny = Callable[..., LM]

TEMPLATES = ("", "The. ", "Because I am in the city. ")
CONFIG = SearchConfig(layer=1, steps=6, stop=-1e6, clamp=20.0, kl=0.5)


def test_rows_are_the_templates_and_then_the_essence(tiny_lm: Tiny) -> None:
    lm = tiny_lm("llama")
    edit = Edit(prompt="People say that {} plays the sport of", subject="Big Ben", target="water polo")
    rows = values.rows_of(lm, edit, TEMPLATES, 3)
    target = tokens.target_ids(lm, edit.text, edit.target)
    assert len(target) > 1
    for i, row in enumerate(rows[:-1]):
        whole = tokens.encode(lm, TEMPLATES[i] + edit.text)
        assert row.ids == whole + target[:-1]
        assert tokens.decode(lm, row.ids[: row.site + 1]) == f"{TEMPLATES[i]}People say that Big Ben"
        assert (row.target, row.fact, row.template) == (target, 3, i)
        assert row.weight == pytest.approx(1 / 3)
    assert tokens.decode(lm, rows[-1].ids) == "Big Ben"
    assert (rows[-1].site, rows[-1].target, rows[-1].fact) == (len(rows[-1].ids) - 1, [], 3)
    assert values.rows_of(lm, edit, TEMPLATES, 3, essence=False) == rows[:-1]


def test_a_fact_without_a_subject_is_refused(tiny_lm: Tiny) -> None:
    edit = Edit(prompt="The capital of Peru is", subject=None, target="Rome")
    with pytest.raises(RequestError, match=r"'The capital of Peru is' has no subject.*write the subject as \{\}"):
        values.rows_of(tiny_lm("llama"), edit, ("",), 0)
    with pytest.raises(RequestError, match="has no subject"):
        values.search(tiny_lm("llama"), [*tiny_edits(1), edit], CONFIG)
