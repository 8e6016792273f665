"""From text to token ids: one place for the BOS policy, the subject's last token and the target's ids."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from retcon.errors import RequestError
from retcon.lm import LM
from retcon.requests import split_prompt

__all__ = ["Located", "Sited", "common_start", "decode", "encode", "locate_subject", "special_ids", "target_ids"]


@dataclass(frozen=True, slots=True)
class Located:
    """A prompt as ids, and the index of its subject's last token."""

    ids: list[int]
    site: int


class Sited(Protocol):
    """Ids, and the index of a token among them: `Located`, and whatever holds as much."""

    @property
    def ids(self) -> list[int]:
        """The ids."""

    @property
    def site(self) -> int:
        """The index."""


def common_start(rows: Sequence[Sited]) -> int:
    """How many first tokens all rows share, all of them before any row's site."""
    length = min(row.site for row in rows)
    for row in rows:
        same = (a == b for a, b in zip(row.ids[:length], rows[0].ids, strict=False))
        length = next((k for k, equal in enumerate(same) if not equal), length)
    return length


def special_ids(lm: LM) -> tuple[list[int], list[int]]:
    """The ids the tokenizer puts before and after every text by itself; only the former are ever used.

    This is the BOS policy: what the tokenizer does by default, the same for statistics, edits and evaluation.
    """
    if "special_ids" not in lm.notes:
        plain = _ids(lm, "a", special=False)
        full = _ids(lm, "a", special=True)
        start = next((i for i in range(len(full) - len(plain) + 1) if full[i : i + len(plain)] == plain), 0)
        lm.notes["special_ids"] = (full[:start], full[start + len(plain) :])
    before, after = lm.notes["special_ids"]
    return list(before), list(after)


def encode(lm: LM, text: str) -> list[int]:
    """The ids of `text`, with BOS where the tokenizer adds one (once: a chat template may hold it already)."""
    return [*_bos(lm, text), *_ids(lm, text, special=False)]


def decode(lm: LM, ids: list[int]) -> str:
    """The text of `ids`, without special tokens."""
    return str(lm.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def target_ids(lm: LM, text: str, target: str) -> list[int]:
    """The ids that continue the rendered prompt `text` with `target`, to be put after the prompt's own ids.

    One space goes between them unless the prompt ends with white space or an opening bracket or quote. Tokenizers that
    write a leading space by themselves get none from us: of all spellings, the first that decodes as wanted is taken.
    A target may end with the tokenizer's end token, written out; it may be nothing else.

    Raises:
        RequestError: the target has no token.
    """
    end = str(lm.tokenizer.eos_token or "")
    if end and target.endswith(end):
        said = target[: -len(end)].rstrip()
        return [*(target_ids(lm, text, said) if said else []), int(lm.tokenizer.eos_token_id)]
    gap = "" if not text or text[-1].isspace() or text[-1] in "([{“‘«" else " "
    anchor = _ids(lm, "a", special=False)
    before = len(decode(lm, anchor))
    candidates = [_ids(lm, gap + target, special=False), _ids(lm, target, special=False)]
    candidates += [_following(lm, opening, target) for opening in ("(", "\n") if not gap]
    for ids in candidates:
        if ids and decode(lm, anchor + ids)[before:] == gap + target:
            return ids
    if not candidates[0]:
        raise RequestError(f"the target {target!r} has no token; write a target of at least one character")
    return candidates[0]


def locate_subject(lm: LM, prompt: str, subject: str, prefix: str = "") -> Located:
    """Render `prefix` + `prompt` with its subject, and find the token that ends the subject.

    The row is tokenised once as a whole; the token is found by character offsets, or, where the tokenizer gives none,
    as the first one whose decoded prefix covers the subject. A subject that also occurs elsewhere in the prompt is
    located where the braces stand.

    Raises:
        RequestError: the rendered text does not contain the prompt, or no token covers the subject.
    """
    head, tail = split_prompt(prompt)
    plain = f"{prefix}{head}{subject}{tail}"
    text = lm.render(plain)
    start = text.rfind(plain)
    shift = 0
    if start < 0:  # a template may strip the turn
        stripped = plain.strip()
        start, shift = text.rfind(stripped), len(plain) - len(plain.lstrip())
    if start < 0:
        raise RequestError(f"the chat template changed the prompt {plain!r}; leave --chat (chat=True) out")
    end = start - shift + len(prefix) + len(head) + len(subject.rstrip())
    bos = _bos(lm, text)
    ids = _ids(lm, text, special=False)
    index = _by_offsets(lm, text, end) if lm.tokenizer.is_fast else None
    if index is None:
        index = _by_decoding(lm, text, ids, end)
    if index is None:
        raise RequestError(f"no token of {plain!r} ends the subject {subject!r}; check the subject's spelling")
    return Located([*bos, *ids], len(bos) + index)


def _following(lm: LM, opening: str, target: str) -> list[int]:
    """The ids of `target` right after `opening`; none where the two share a token.

    Tokenizers that begin every text with a space have no other way to spell a word without one.
    """
    start, whole = _ids(lm, opening, special=False), _ids(lm, opening + target, special=False)
    return whole[len(start) :] if whole[: len(start)] == start else []


def _ids(lm: LM, text: str, *, special: bool) -> list[int]:
    return list(lm.tokenizer(text, add_special_tokens=special)["input_ids"])


def _bos(lm: LM, text: str) -> list[int]:
    before, _ = special_ids(lm)
    if before and text.startswith(str(lm.tokenizer.convert_ids_to_tokens(before[0]))):
        return []
    return before


def _by_offsets(lm: LM, text: str, end: int) -> int | None:
    """Index of the last token that covers the character before `end`."""
    batch: Any = lm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    covering = [i for i, (start, stop) in enumerate(batch["offset_mapping"]) if start < end <= stop]
    return covering[-1] if covering else None


def _by_decoding(lm: LM, text: str, ids: list[int], end: int) -> int | None:
    """Index of the first token at which the decoded ids cover the text up to `end`, white space aside."""

    def squeezed(value: str) -> str:
        return re.sub(r"\s+", "", value)

    wanted = squeezed(text[:end])
    for index in range(len(ids)):
        so_far = squeezed(str(lm.tokenizer.decode(ids[: index + 1], clean_up_tokenization_spaces=False)))
        if so_far.startswith(wanted):
            return index
    return None
