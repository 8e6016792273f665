"""Demonstrations of how a fact in the context is used: copies, other wordings, neighbours that keep their answers."""

import random
from collections.abc import Sequence
from typing import Any

from retcon import tokens
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods.in_context import content_of, newline, statement, text_ids
from retcon.patch import Context
from retcon.patch.context import Embed
from retcon.requests import Case, Edit, load_cases

__all__ = ["KINDS", "Pool", "counts_of"]

KINDS = ("copy", "update", "retain")
"""The fact's own prompt with the new answer; a paraphrase with it; a neighbour with its true one."""


class Pool:
    """Cases whose only use is to be examples, and the wording of examples.

    Methods see no case that an edit is judged by. These are none of those: the user names their file for this use, and
    those that share a prompt with an edit are left out.
    """

    def __init__(self, lm: LM, path: str | None, edits: Sequence[Edit]) -> None:
        self._lm = lm
        asked = {edit.text for edit in edits}
        cases = [] if path is None else load_cases(path, conflicts="last").items
        self.cases: list[Case] = [case for case in cases if case.edit.text not in asked]
        self._gap: str | None = None

    def alone(self, edit: Edit) -> list[list[int]]:
        """The text of a fact without demonstrations."""
        return [text_ids(self._lm, self._lead(edit))]

    def demonstrated(
        self,
        context: Context,
        edits: Sequence[Edit],
        told: Sequence[dict[str, Any]],
        counts: Sequence[int],
        seed: int,
        embed: Embed,
    ) -> Context:
        """The context with demonstrations before the facts of this call, the most similar last.

        Args:
            context: with the facts, each alone.
            edits: those of this call.
            told: what is told of each; the number of demonstrations of each kind is added.
            counts: how many of each of `KINDS`.
            seed: of the order of kinds.
            embed: the model's input embeddings.

        Raises:
            RetconError: the pool has too few cases of some kind.
        """
        vectors = context.vectors([content_of(self._lm, case.edit.text) for case in self.cases], embed)
        texts = [context.pieces(fact) for fact in range(context.rank)]
        where = {name: fact for fact, name in enumerate(context.names)}
        for edit, fact in zip(edits, told, strict=True):
            place = where.get(fact["id"])
            if place is None:  # a later edit of this call took its place
                continue
            order = (vectors @ context.keys[place]).sort(descending=True, stable=True).indices.tolist()
            chosen = self._chosen(order, counts, seed)
            examples = [self._example(self.cases[case], kind) for case, kind in reversed(chosen)]
            copied = self._lines(edit.text, edit.target, edit.text, edit.target)
            texts[place] = [tuple(text_ids(self._lm, text)) for text in (*examples, copied, self._lead(edit))]
            fact["demonstrations"] = {kind: sum(one == kind for _, one in chosen) for kind in KINDS}
        return context.retold(texts)

    def _chosen(self, order: Sequence[int], counts: Sequence[int], seed: int) -> list[tuple[int, str]]:
        """Cases and what each shows, the most similar first: kinds in a random order, each by the nearest case left."""
        kinds = [kind for kind, count in zip(KINDS, counts, strict=True) for _ in range(count)]
        random.Random(seed).shuffle(kinds)
        left, rank = list(order), {case: number for number, case in enumerate(order)}
        found: list[tuple[int, str]] = []
        for kind in kinds:
            case = next((case for case in left if self._shows(self.cases[case], kind)), None)
            if case is None:
                raise RetconError(
                    f"the pool has too few cases for {counts[KINDS.index(kind)]} demonstrations that {kind}; give more "
                    f"cases with {'neighbours' if kind == 'retain' else 'paraphrases'}, or fewer demonstrations"
                )
            left.remove(case)
            found.append((case, kind))
        return sorted(found, key=lambda pair: rank[pair[0]])

    def _shows(self, case: Case, kind: str) -> bool:
        return kind == "copy" or bool(case.paraphrases if kind == "update" else case.neighbours)

    def _example(self, case: Case, kind: str) -> str:
        edit = case.edit
        if kind == "retain":
            return self._lines(edit.text, edit.target, case.neighbours[0].prompt, case.neighbours[0].answers[0])
        return self._lines(edit.text, edit.target, case.paraphrases[0] if kind == "update" else edit.text, edit.target)

    def _lines(self, prompt: str, answer: str, asked: str, said: str) -> str:
        return f"New Fact: {statement(prompt, answer)}\nPrompt: {statement(asked, said)}\n\n"

    def _lead(self, edit: Edit) -> str:
        """The lines that the prompt itself goes on from."""
        if self._gap is None:
            self._gap = _gap(self._lm, edit.text)
        return f"New Fact: {statement(edit.text, edit.target)}\nPrompt:{self._gap}"


def counts_of(n: int, ratio: Sequence[int]) -> list[int]:
    """`n` things in a ratio, by largest remainders.

    >>> counts_of(32, (1, 3, 4)), counts_of(5, (1, 3, 4))
    ([4, 12, 16], [1, 2, 2])
    """
    exact = [n * part / sum(ratio) for part in ratio]
    counts = [int(value) for value in exact]
    order = sorted(range(len(ratio)), key=lambda place: (counts[place] - exact[place], place))
    for place in order[: n - sum(counts)]:
        counts[place] += 1
    return counts


def _gap(lm: LM, text: str) -> str:
    """The space that "Prompt:" needs before a prompt's own ids, whose first may hold one."""
    ids = [*newline(lm), *text_ids(lm, "Prompt:"), *content_of(lm, text)]
    return "" if tokens.decode(lm, ids).endswith(f"Prompt: {text}") else " "
