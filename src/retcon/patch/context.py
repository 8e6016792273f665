"""Texts that go before a prompt: facts that the model reads, in place of a change that makes it know them.

The memory of in-context editing (IKE, Zheng et al., arXiv 2305.12740) and of retrieval with a check (SCR, arXiv
2503.05212). It is kept under the path of the model's root; `retcon.patch.prefix` puts the texts there.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retcon.errors import PatchError
from retcon.patch.entries import placed
from retcon.patch.forward_record import ForwardRecord
from retcon.patch.ragged import parts, ragged, texts

__all__ = ["EVERY", "ROOT", "Choice", "Context", "Embed", "Question"]

ROOT = ""
"""The path of a context: that of the model itself."""
EVERY = -2.0
"""A threshold that every cosine exceeds."""
_FLOOR = 0.1
"""Weight of a token that all documents hold."""
_AT_ONCE = 1024
_LONGEST = 256
"""Last tokens of a prompt that the model is shown when it is asked about a fact."""


class Embed(Protocol):
    """What ids are compared by."""

    def __call__(self, ids: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens d"]:
        """The model's input embeddings."""

    def sentences(self, encoder: str, contents: Sequence[Sequence[int]]) -> Float[Tensor, "k d"]:
        """What a sentence encoder makes of the texts of some ids."""


Ask = Callable[[Sequence[Sequence[int]]], Sequence[float]]
"""log p(yes) - log p(no) after each of some rows of ids."""


class Question(NamedTuple):
    """What the model is asked of a fact and a prompt: fact, `between`, prompt, `after`."""

    between: tuple[int, ...]
    after: tuple[int, ...]
    yes: int
    """The token that confirms."""
    no: int
    threshold: float
    """log p(yes) - log p(no) beyond which a fact is confirmed."""


class Choice(NamedTuple):
    """What a context decides for one prompt."""

    facts: list[int]
    """Those that go before it, the most similar first."""
    cosines: Float[Tensor, " n"]
    """How similar each fact's prompt is."""
    answers: dict[int, float]
    """Of the facts that the model was asked about: log p(yes) - log p(no)."""


@dataclass(frozen=True, eq=False, slots=True)
class Context:
    """Facts as texts, of which those go before a prompt that are about the same thing.

        e(x)  = sum over the tokens t of x of  w_t (E_t - mean E),   w_t = log((1 + documents) / (1 + count_t)) + 0.1
        c_i   = cos(e(prompt), e(prompt of fact i))
        chosen: the `most` facts with the largest c_i above `threshold`, and of those, where there is a question, the
                ones that the model confirms

    E are the model's own input embeddings and `count_t` the documents that hold the token, so that what many facts
    share counts little; or e(x) is what a sentence encoder makes of the text. It is decided from a row's own prompt at
    prefill, and what is put there stays in the cache. A row for which nothing is chosen is run as without the patch.

    Args:
        keys: (n, k), e(prompt of fact i), of norm 1; k is d, or the encoder's width.
        center: (d,), mean E.
        seen_ids: tokens of the documents.
        seen_counts: how many documents hold each.
        prompt_ids: the facts' own prompts, one after the other, without opening and closing.
        prompt_offsets: (n + 1,): prompt i is prompt_ids[prompt_offsets[i] : prompt_offsets[i + 1]].
        piece_ids: the pieces of text that contexts are made of.
        piece_offsets: where each of them begins and ends.
        member_ids: the pieces of each fact's text, in order; the last one is the fact itself.
        member_offsets: (n + 1,), of `member_ids`.
        names: n ids of edits.
        vocabulary: number of token ids.
        documents: number of documents.
        opening: ids that a prompt begins with before its text (the token that opens every text, a chat turn's head);
            the context comes after them.
        start: how many of them a prompt begins with that is no chat turn.
        closing: ids that end it.
        most: facts that one prompt may get.
        threshold: cosine that a fact must exceed; `EVERY` for none.
        budget: tokens that a context may have; the pieces of the least similar facts are dropped first, and of a fact
            the first ones.
        question: what the model is asked; without one nothing is asked.
        encoder: the name of a sentence encoder; the model's own embeddings without one.
        strength: 1, or 0 for no effect.
        making: how the context came about, in JSON types; without effect here, but needed to go on.
    """

    keys: Float[Tensor, "n k"]
    center: Float[Tensor, " d"]
    seen_ids: Int[Tensor, " t"]
    seen_counts: Int[Tensor, " t"]
    prompt_ids: Int[Tensor, " p"]
    prompt_offsets: Int[Tensor, " n_and_1"]
    piece_ids: Int[Tensor, " q"]
    piece_offsets: Int[Tensor, " pieces_and_1"]
    member_ids: Int[Tensor, " m"]
    member_offsets: Int[Tensor, " n_and_1"]
    names: tuple[str, ...]
    vocabulary: int
    documents: int
    opening: tuple[int, ...] = ()
    start: int = 0
    closing: tuple[int, ...] = ()
    most: int = 1
    threshold: float = EVERY
    budget: int = 1024
    question: Question | None = None
    encoder: str = ""
    strength: float = 1.0
    making: Mapping[str, Any] = field(default_factory=dict)
    kind: ClassVar[str] = "context"
    folds: ClassVar[bool] = False
    _weights: Float[Tensor, " vocabulary"] = field(init=False, repr=False)
    """w_t of every token."""
    _pieces: tuple[tuple[int, ...], ...] = field(init=False, repr=False)
    _members: tuple[tuple[int, ...], ...] = field(init=False, repr=False)
    _own: Mapping[tuple[int, ...], int] = field(init=False, repr=False)
    """The fact of each prompt."""

    def __post_init__(self) -> None:
        for name in ("names", "opening", "closing"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "making", dict(self.making))
        if self.question is not None:
            between, after, yes, no, threshold = self.question
            object.__setattr__(self, "question", Question(tuple(between), tuple(after), yes, no, threshold))
        pieces, members = parts(self.piece_ids, self.piece_offsets), parts(self.member_ids, self.member_offsets)
        n = len(self.names)
        fits = len(self.keys) == len(members) == len(self.prompt_offsets) - 1 == n
        fits = fits and self.keys.ndim == 2 and (bool(self.encoder) or self.center.shape == self.keys.shape[1:])
        fits = fits and len(self.seen_ids) == len(self.seen_counts) and all(members)
        fits = fits and all(0 <= piece < len(pieces) for fact in members for piece in fact)
        if not fits:
            raise PatchError("the parts of a context do not fit together; get the patch again")
        object.__setattr__(self, "_pieces", pieces)
        object.__setattr__(self, "_members", members)
        own = {prompt: fact for fact, prompt in enumerate(parts(self.prompt_ids, self.prompt_offsets))}
        object.__setattr__(self, "_own", own)
        unseen = math.log(1 + self.documents) + _FLOOR
        weights = torch.full((self.vocabulary,), unseen, dtype=self.keys.dtype, device=self.keys.device)
        weights[self.seen_ids] = unseen - torch.log1p(self.seen_counts.to(weights.dtype))
        object.__setattr__(self, "_weights", weights)

    @property
    def shape(self) -> tuple[int, int]:
        """(vocabulary, d): that of the input embeddings, which stand for the root."""
        return self.vocabulary, len(self.center)

    @property
    def rank(self) -> int:
        """The number of facts."""
        return len(self.names)

    def prompt(self, fact: int) -> list[int]:
        """The ids of a fact's own prompt."""
        begin, end = self.prompt_offsets[fact : fact + 2].tolist()
        return [int(token) for token in self.prompt_ids[begin:end].tolist()]

    def pieces(self, fact: int) -> list[tuple[int, ...]]:
        """The pieces of a fact's text, in order."""
        return [self._pieces[piece] for piece in self._members[fact]]

    def head(self, row: Sequence[int]) -> int:
        """How many first ids of a row the context comes after."""
        for length in (len(self.opening), self.start):
            if tuple(row[:length]) == self.opening[:length]:
                return length
        return 0

    def content(self, row: Sequence[int]) -> list[int]:
        """The ids of a prompt without its opening and its closing."""
        end = len(row) - len(self.closing)
        closed = end >= 0 and bool(self.closing) and tuple(row[end:]) == self.closing
        return list(row[self.head(row) : end if closed else None])

    def vectors(self, contents: Sequence[Sequence[int]], embed: Embed) -> Float[Tensor, "m k"]:
        """e(x) of some texts, at norm 1; zero of an empty one."""
        found: list[Tensor] = []
        for start in range(0, len(contents), _AT_ONCE):
            part = contents[start : start + _AT_ONCE]
            total = embed.sentences(self.encoder, part).to(self.keys) if self.encoder else self._means(part, embed)
            found.append(total / total.norm(dim=1, keepdim=True).clamp_min(torch.finfo(total.dtype).tiny))
        return torch.cat(found) if found else self.keys[:0]

    def _means(self, contents: Sequence[Sequence[int]], embed: Embed) -> Float[Tensor, "m d"]:
        lengths = torch.tensor([len(content) for content in contents])
        flat = torch.tensor([token for content in contents for token in content], dtype=torch.long)
        ids, owner = (t.to(self.keys.device) for t in (flat, torch.arange(len(contents)).repeat_interleave(lengths)))
        states = (embed(ids).to(self.keys) - self.center) * self._weights[ids][:, None]  # (tokens, d)
        return self.keys.new_zeros(len(contents), len(self.center)).index_add(0, owner, states)

    def vector(self, content: Sequence[int], embed: Embed) -> Float[Tensor, " k"]:
        """e(x) of one text."""
        return self.vectors([content], embed)[0]

    def nearest(self, content: Sequence[int], embed: Embed) -> tuple[list[int], Float[Tensor, " n"]]:
        """The facts that come into question, and all cosines: the one whose very prompt it is, then the most similar,
        the newest of like ones. Prompts of the same tokens in another order look alike."""
        cosines = self.keys @ self.vector(content, embed)
        if not content or self.rank == 0:
            return [], cosines
        order = cosines.flip(0).sort(descending=True, stable=True).indices[: self.most]
        facts = [fact for fact in (self.rank - 1 - order).tolist() if float(cosines[fact]) > self.threshold]
        own = self._own.get(tuple(content))
        if own is not None:
            facts = [own, *(fact for fact in facts if fact != own)][: self.most]
        return facts, cosines

    def asking(self, fact: int, content: Sequence[int]) -> list[int]:
        """The row after which the model says whether a fact bears on a prompt."""
        assert self.question is not None
        text = self._pieces[self._members[fact][-1]]
        return [*self.opening, *text, *self.question.between, *content[-_LONGEST:], *self.question.after, *self.closing]

    def choose(self, prompts: Iterable[Sequence[int]], embed: Embed, ask: Ask) -> list[Choice]:
        """What goes before each of some prompts, given as whole rows of ids."""
        contents = [self.content(row) for row in prompts]
        found = [self.nearest(content, embed) for content in contents]
        if self.question is None:
            return [Choice(facts, cosines, {}) for facts, cosines in found]
        pairs = [(row, fact) for row, (facts, _) in enumerate(found) for fact in facts]
        answers = ask([self.asking(fact, contents[row]) for row, fact in pairs]) if pairs else []
        told: list[dict[int, float]] = [{} for _ in found]
        for (row, fact), answer in zip(pairs, answers, strict=True):
            told[row][fact] = answer
        return [
            Choice([fact for fact in facts if mine[fact] > self.question.threshold], cosines, mine)
            for (facts, cosines), mine in zip(found, told, strict=True)
        ]

    def text(self, facts: Sequence[int], room: int | None = None) -> list[int]:
        """The ids of a context, within the budget.

        Args:
            facts: the most similar first; its text comes last, next to the prompt.
            room: tokens that there are for it, where they may be fewer than the budget.
        """
        kept: list[tuple[int, ...]] = []
        room = self.budget if room is None else min(room, self.budget)
        for piece in (piece for fact in facts for piece in reversed(self.pieces(fact))):
            room -= len(piece)
            if room < 0:
                break
            kept.append(piece)
        return [token for piece in reversed(kept) for token in piece]

    def apply(
        self, x: Float[Tensor, "*rows d_in"], y: Float[Tensor, "*rows d_out"], record: ForwardRecord | None = None
    ) -> Float[Tensor, "*rows d_out"]:
        """None: raises PatchError; a context acts before any module does."""
        raise PatchError("a context goes before the prompt of a whole model and acts on no module; use patch.on(model)")

    def delta(self) -> Float[Tensor, "d_out d_in"]:
        """None: raises PatchError."""
        raise PatchError("a context goes before the prompt and is no change of a weight; use patch.on(model)")

    def scaled(self, factor: float) -> "Context":
        """The entry itself, or, by 0, one without effect.

        Raises:
            PatchError: another factor; a text is there or is not.
        """
        if factor not in (0, 1):
            raise PatchError(f"a context goes before the prompt or does not, and cannot be scaled by {factor:g}; "
                             "take 0 or 1")  # fmt: skip
        return self._with(strength=self.strength * factor)

    def gated(self, threshold: float) -> "Context":
        """The entry with another threshold."""
        return self._with(threshold=threshold)

    def confirmed_above(self, threshold: float) -> "Context":
        """The entry with another threshold of its question."""
        assert self.question is not None
        return self._with(question=self.question._replace(threshold=threshold))

    def remade(self, making: Mapping[str, Any]) -> "Context":
        """The entry with another record of how it came about."""
        return self._with(making=dict(making))

    def retold(self, pieces: Sequence[Sequence[Sequence[int]]]) -> "Context":
        """The entry with other texts for its facts."""
        return self._with(**texts(pieces))

    def without(self, names: Sequence[str]) -> "Context":
        """The entry without some facts; the others are found and told as before."""
        kept = [fact for fact, name in enumerate(self.names) if name not in set(names)]
        rows = ragged("prompt", [self.prompt(fact) for fact in kept]) | texts([self.pieces(fact) for fact in kept])
        return self._with(keys=self.keys[kept].clone(), names=tuple(self.names[fact] for fact in kept), **rows)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Context":
        """The entry on another device; keys in another dtype."""
        floats = ("keys", "center")
        moved = {name: placed(t, device, dtype if name in floats else t.dtype) for name, t in self.tensors().items()}
        return self._with(**moved)

    def _with(self, **changed: Any) -> "Context":
        return Context(**{**self.tensors(), **self.settings(), **changed})

    def tensors(self) -> dict[str, Tensor]:
        """Keys, counts, and all texts as ids."""
        names = ("keys", "center", "seen_ids", "seen_counts", "prompt_ids", "prompt_offsets", "piece_ids",
                 "piece_offsets", "member_ids", "member_offsets")  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def settings(self) -> dict[str, Any]:
        """Ids of the edits, and how a prompt gets its context."""
        plain = ("vocabulary", "documents", "start", "most", "threshold", "budget", "encoder", "strength")
        lists = {name: list(getattr(self, name)) for name in ("names", "opening", "closing")}
        asked = self.question and [list(part) if isinstance(part, tuple) else part for part in self.question]
        named = {name: getattr(self, name) for name in plain}
        return {**lists, **named, "question": asked, "making": dict(self.making)}

    @classmethod
    def made(
        cls,
        contents: Sequence[Sequence[int]],
        pieces: Sequence[Sequence[Sequence[int]]],
        names: Sequence[str],
        counts: Counter[int],
        center: Float[Tensor, " d"],
        embed: Embed,
        **settings: Any,
    ) -> "Context":
        """A context from its parts as lists; the keys are computed.

        Args:
            contents: each fact's prompt, without opening and closing.
            pieces: each fact's text.
            names: each fact's id.
            counts: how many documents hold each token.
            center: the mean of the input embeddings.
            embed: the model's input embeddings.
            settings: the rest of the arguments.
        """
        tensors = ragged("prompt", contents) | texts(pieces)
        seen = sorted(counts)
        rest: dict[str, Any] = {
            "center": center,
            "seen_ids": torch.tensor(seen, dtype=torch.long),
            "seen_counts": torch.tensor([counts[token] for token in seen], dtype=torch.long),
            "names": tuple(names),
            **tensors,
            **settings,
        }
        empty = cls(keys=torch.zeros(len(names), 0 if settings.get("encoder") else len(center)), **rest)
        return empty._with(keys=empty.vectors(contents, embed))
