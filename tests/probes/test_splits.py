"""Other ways to cut a text: the same bytes, of every kind of tokenizer, drawn as they should be."""

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from retcon import tokens
from retcon.lm import LM
from retcon.probes.splits import Cuts, Pieces, span_of
from retcon.testing import tiny_model, tiny_tokenizer
from retcon.testing.tokenizers import KINDS

TEXTS = ["Where was Niccolò Paganini born?", "São Tomé: 東京 or Málaga? 1,809!", "the"]


@pytest.fixture(scope="module", params=list(KINDS))
def lm(request: pytest.FixtureRequest) -> LM:
    return LM.wrap(tiny_model("llama", layers=1), tiny_tokenizer(request.param))


@pytest.mark.parametrize("text", TEXTS)
def test_every_way_stands_for_the_same_bytes(lm: LM, text: str) -> None:
    pieces, ids = Pieces(lm), tokens.encode(lm, text)
    drawn, again = (
        [cuts.draw(generator) for _ in range(30)]
        for cuts, generator in [(Cuts(pieces, ids, 0.5), random.Random(0)) for _ in range(2)]
    )
    assert all(pieces.text(new) == pieces.text(ids) for new in drawn)
    assert len(set(map(tuple, drawn))) > 1 or text != TEXTS[0]  # some texts have one way alone
    assert drawn == again


def test_special_tokens_and_bytes_are_neither_cut_nor_put_in(lm: LM) -> None:
    pieces: Any = Pieces(lm)
    ids = [1, *tokens.encode(lm, "tower 東"), 2]
    for _ in range(10):
        new = Cuts(pieces, ids, 1.0).draw(random.Random())
        assert (new[0], new[-1]) == (1, 2)
        assert pieces.written(new).count("</s>") == 1
    assert not any(piece.startswith("<0x") for piece in pieces.ids)


def test_ways_are_drawn_by_their_number_of_pieces() -> None:
    """Of `abc` in a, b, c, ab, bc: thrift^2, thrift^2, thrift^3."""
    pieces: Any = Pieces.__new__(Pieces)
    pieces.ids, pieces.longest = {"a": 10, "b": 11, "c": 12, "ab": 13, "bc": 14}, 2
    pieces.written = lambda ids: ["a", "bc"]
    cuts, generator = Cuts(pieces, [10, 14], 0.5), random.Random(1)
    seen = Counter(tuple(cuts.draw(generator)) for _ in range(4000))
    assert set(seen) == {(10, 14), (13, 12), (10, 11, 12)}
    assert [seen[way] / 4000 for way in ((10, 14), (13, 12), (10, 11, 12))] == pytest.approx([0.4, 0.4, 0.2], abs=0.03)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("chat", [False, True])
def test_the_span_of_a_subject_holds_it_and_no_more_than_its_tokens(kind: str, chat: bool) -> None:
    lm = LM.wrap(tiny_model("llama", layers=1), tiny_tokenizer(kind))
    if chat and not lm.tokenizer.chat_template:
        return
    lm = replace(lm, chat=chat)
    question = "Who taught Niccolò Paganini in {Rome}?"
    for subject in ("Niccolò Paganini", "Who", "{Rome}?", question):
        start = question.index(subject)
        first, end = span_of(lm, question, start, start + len(subject))
        ids = tokens.encode(lm, lm.render(question))
        inside = tokens.decode(lm, ids[first:end])
        assert subject.strip("?{} ")[1:-1] in inside
        assert len(inside.strip()) <= len(subject) + 3
