"""The same text in other tokens: random ways to cut a stretch of ids into pieces of the vocabulary."""

import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from retcon import tokens
from retcon.errors import RequestError
from retcon.lm import LM
from retcon.requests import literal

__all__ = ["Cuts", "Pieces", "span_of"]

_BYTE = ("<0x", ">")
"""How a piece is written that stands for one byte."""


class Pieces:
    """The pieces of a tokenizer's vocabulary as it writes them, where the pieces of a text make up one string.

    Special and added tokens, and pieces that stand for one byte, are never cut and never put in.
    """

    def __init__(self, lm: LM) -> None:
        tokenizer: Any = lm.tokenizer
        self._tokenizer = tokenizer
        fixed = {*tokenizer.all_special_tokens, *getattr(tokenizer, "get_added_vocab", dict)()}
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.ids = {
            piece: number
            for piece, number in vocabulary.items()
            if piece and piece not in fixed and not (piece.startswith(_BYTE[0]) and piece.endswith(_BYTE[1]))
        }
        self.longest = max(map(len, self.ids), default=0)

    def written(self, ids: Sequence[int]) -> list[str]:
        """The pieces of ids, as the tokenizer writes them."""
        return [str(piece) for piece in self._tokenizer.convert_ids_to_tokens(list(ids))]

    def text(self, ids: Sequence[int]) -> bytes:
        """The bytes of what ids stand for, special tokens and all."""
        decoded = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(decoded).encode()


class Cuts:
    """All ways to cut what some ids stand for into pieces of the vocabulary; what must not be cut stays.

    A way of k pieces is drawn with probability ~ thrift^k, exactly: the sums of what can follow each place are found
    once, in logarithms.

    Args:
        pieces: the vocabulary.
        ids: a stretch of a text's ids.
        thrift: above 0; 1 takes all ways as equal, most of which are letter by letter; the smaller, the fewer pieces.
    """

    def __init__(self, pieces: Pieces, ids: Sequence[int], thrift: float) -> None:
        self._parts: list[list[int] | list[_Place]] = []
        run = ""
        for number, piece in zip(ids, pieces.written(ids), strict=True):
            if piece in pieces.ids:
                run += piece
                continue
            self._parts += [_places(pieces, run, thrift), [number]]
            run = ""
        self._parts.append(_places(pieces, run, thrift))

    def draw(self, generator: random.Random) -> list[int]:
        """The ids of one way."""
        found: list[int] = []
        for part in self._parts:
            at = 0
            while at < len(part):
                place = part[at]
                if isinstance(place, int):
                    found.append(place)
                    at += 1
                    continue
                (which,) = generator.choices(range(len(place.ids)), place.weights)
                found.append(place.ids[which])
                at = place.ends[which]
        return found


class _Place(NamedTuple):
    """What a piece can be that begins at one place of a string; nothing where no way leads on from there."""

    ids: list[int]
    ends: list[int]
    weights: list[float]


def _places(pieces: Pieces, text: str, thrift: float) -> list[_Place]:
    """The choices at each place of a string."""
    size, cost = len(text), math.log(thrift)
    ways = [-math.inf] * size + [0.0]  # ways[i]: log of the summed weights of all ways to cut text[i:]
    found = [_Place([], [], [])] * size
    for start in range(size - 1, -1, -1):
        ends = range(start + 1, min(size, start + pieces.longest) + 1)
        ends_here = [end for end in ends if ways[end] > -math.inf and text[start:end] in pieces.ids]
        if ends_here:
            most = max(ways[end] for end in ends_here)
            weights = [math.exp(ways[end] - most) for end in ends_here]
            ways[start] = cost + most + math.log(sum(weights))
            found[start] = _Place([pieces.ids[text[start:end]] for end in ends_here], ends_here, weights)
    return found


def span_of(lm: LM, question: str, start: int, end: int) -> tuple[int, int]:
    """Where a stretch of a question stands among the ids of the rendered question: first and past the last.

    Args:
        lm: the model.
        question: as it is asked.
        start: first character.
        end: past the last character.

    Raises:
        RequestError: no token covers it.
    """

    def site(stop: int) -> int:
        prompt = f"{literal(question[:start])}{{}}{literal(question[stop:])}"
        return tokens.locate_subject(lm, prompt, question[start:stop]).site

    first, last = site(start + 1), site(end)
    if last < first:
        raise RequestError(f"no tokens of {question!r} cover what stands from character {start} to {end}")
    return first, last + 1
