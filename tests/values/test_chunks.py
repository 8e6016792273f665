"""Chunks of rows: cut by width, and let go of once their facts are finished."""

from __future__ import annotations

from collections.abc import Callable
from weakref import ref

import torch

from retcon import values
from retcon.arch import frozen
from retcon.lm import LM
from retcon.testing import tiny_edits
from retcon.values import SearchConfig
from retcon.values.chunks import Chunk, cut, drop_finished
from retcon.values.clean import prepare

Tiny = Callable[..., LM]

TEMPLATES = ("", "The. ", "Because I am in the city. ")
CONFIG = SearchConfig(layer=1)


def prepared(lm: LM, n: int, chunk_tokens: int = 64) -> list[Chunk]:
    rows = [row for i, edit in enumerate(tiny_edits(n)) for row in values.rows_of(lm, edit, TEMPLATES, i)]
    with frozen(lm.model):
        return prepare(lm, rows, n, CONFIG, chunk_tokens, "shared")[1]


def test_finished_facts_leave_and_nothing_of_them_is_kept(tiny_lm: Tiny) -> None:
    """The list that the caller holds is the one that shrinks."""
    chunks = prepared(tiny_lm("llama"), 8)
    before, held = len(chunks), [ref(chunk.past[-1][0]) for chunk in chunks]
    assert before > 3
    active = torch.zeros(8, dtype=torch.bool)
    active[2] = True
    drop_finished(chunks, active)
    assert {int(fact) for chunk in chunks for fact in chunk.fact} == {2}
    assert sum(len(chunk.fact) for chunk in chunks) == len(TEMPLATES) + 1
    assert len(chunks) < before
    assert not any(there() is not None for there in held)
    drop_finished(chunks, torch.zeros(8, dtype=torch.bool))
    assert chunks == []


def test_a_chunk_with_few_idle_rows_is_left_as_it_is(tiny_lm: Tiny) -> None:
    (chunk,) = chunks = prepared(tiny_lm("llama"), 5, chunk_tokens=10_000)[:1]
    active = torch.ones(5, dtype=torch.bool)
    active[0] = False
    drop_finished(chunks, active)
    assert chunks[0] is chunk
    active[1:3] = False
    drop_finished(chunks, active)
    assert set(chunks[0].fact.tolist()) == {3, 4}


def test_chunks_hold_every_row_once_and_no_more_tokens_than_asked_for(tiny_lm: Tiny) -> None:
    lm = tiny_lm("llama")
    rows = [row for i, edit in enumerate(tiny_edits(20)) for row in values.rows_of(lm, edit, TEMPLATES, i)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids) - rows[i].site)
    batches = list(cut(order, rows, 64, whole=False))
    assert sorted(i for batch in batches for i in batch) == sorted(order)
    for batch in batches:
        widest = max(len(rows[i].ids) - rows[i].site for i in batch)
        assert len(batch) == 1 or len(batch) * widest <= 64
        assert sum(len(rows[i].target) or 1 for i in batch) <= 32 or len(batch) == 1
