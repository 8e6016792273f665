"""Running a model with contexts: their tokens go before each row's own, and the caller sees the columns it gave.

A row's context stands directly before its first token (after the token or the chat turn's head that opens it), so index
differences are true distances also in rows that are padded on the left; padding that the caller gave is used up before
columns are added. What is added is cut off again before the model's head, and from the hidden states it returns. A
cache holds the added columns too: while it is gone on from, mask and positions are widened by what each row got.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from retcon.arch import max_positions
from retcon.errors import PatchError
from retcon.patch.asking import Embedder, answers, head_of, is_asked
from retcon.patch.context import Context
from retcon.patch.forward_record import (
    ANEW,
    CHUNKED,
    UNSEEN,
    Widened,
    argument_names,
    arguments,
    attended_columns,
    cache_length,
    last_columns,
    widened,
)
from retcon.patch.placement import Placement

__all__ = ["Prefixer", "Standing", "prefixer", "standing", "steady"]


@dataclass(slots=True, eq=False)
class _Kept:
    """What belongs to one cache."""

    mask: Bool[Tensor, "rows added_and_width"]
    """Which of the columns that prefill left in it hold tokens."""
    width: int
    """Columns of prefill as the caller counts them."""
    shift: Int[Tensor, " rows"]
    """Tokens that stand before each row's own."""
    contexts: tuple[Context, ...]
    """Those that decided."""
    told: bool = False
    """Whether a scorer has said that what follows goes on from the prompt, so that several tokens may come at once."""

    @property
    def bare(self) -> bool:
        """Whether no row has a context."""
        return not bool(self.shift.any())


class _Now(NamedTuple):
    """The prefill that runs now."""

    rows: int
    width: int
    added: int
    kept: _Kept
    """What to remember with the cache."""


class Prefixer:
    """Puts the contexts of all patches on one model before its prompts, in the order in which they came."""

    def __init__(self, model: nn.Module) -> None:
        self._contexts: list[Context] = []
        self._placed: dict[tuple[int, torch.device], Context] = {}
        self._caches: Any = WeakIdKeyDictionary()  # cache -> _Kept
        self._now: _Now | None = None
        self._steady = 0
        self._decided: dict[tuple[int, tuple[int, ...]], tuple[int, list[int]]] = {}
        self._handles: list[RemovableHandle] = []
        try:
            # first of all: those who watch the forward then see it as it runs
            hook = model.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True)
            self._handles.append(hook)
            self._handles.append(model.register_forward_hook(self._end, with_kwargs=True, always_call=True))
            self._handles.append(head_of(model).register_forward_pre_hook(self._at_head, with_kwargs=True))
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def add(self, contexts: Sequence[Context]) -> None:
        """Let some contexts act too."""
        self._contexts.extend(contexts)
        self._decided.clear()

    def remove(self, contexts: Sequence[Context]) -> bool:
        """Let some contexts act no longer; whether there is none left."""
        self._contexts = [mine for mine in self._contexts if not any(mine is other for other in contexts)]
        self._placed.clear()
        self._decided.clear()
        return not self._contexts

    def carry(self, before: object, after: Any, rows: Int[Tensor, " m"]) -> None:
        """Let what stands before some rows of one cache stand before the rows of another that go on from them.

        Whoever made the other cache counted its columns from the caller's first; those that were added come back here.
        """
        kept = self._caches.get(before)
        if kept is None:
            return
        added, where = kept.mask.shape[1] - kept.width, rows.to(kept.mask.device)
        total = min(added + cache_length(after), kept.mask.shape[1])
        if added:
            here: Any = before
            for mine, other in zip(here.layers, after.layers, strict=True):
                which = rows.to(mine.keys.device)
                other.keys, other.values = mine.keys[which, :, :total], mine.values[which, :, :total]
        self._caches[after] = _Kept(
            kept.mask[where, :total], total - added, kept.shift[where], kept.contexts, told=True
        )

    def decide(
        self, model: nn.Module, rows: Sequence[Sequence[int]], device: torch.device
    ) -> tuple[list[int], list[list[int]]]:
        """For each prompt: how many first tokens its text comes after, and the text."""
        embed = Embedder(model, hooked=False)
        heads, texts = [0] * len(rows), [list[int]() for _ in rows]
        for context in self._contexts:
            if context.strength == 0:
                continue
            key = id(context), device
            if key not in self._placed:
                with torch.inference_mode(False):
                    self._placed[key] = context.to(device, torch.float32)
            for number, (head, text) in enumerate(self._chosen(model, self._placed[key], rows, embed)):
                if text and not texts[number]:
                    heads[number] = head
                texts[number].extend(text)
        return heads, texts

    def _chosen(
        self, model: nn.Module, context: Context, rows: Sequence[Sequence[int]], embed: Embedder
    ) -> list[tuple[int, list[int]]]:
        """What one context decides for each prompt, as `decide`; while all is steady, once for each."""
        keys = [(id(context), tuple(row)) for row in rows]
        known = {key: self._decided[key] for key in keys if key in self._decided} if self._steady else {}
        missing = list(dict.fromkeys(key for key in keys if key not in known))
        if missing:
            asked = [row for _, row in missing]
            with torch.no_grad():
                found = context.choose(asked, embed, partial(answers, model, context))
            new = [
                (context.head(row), context.text(choice.facts, _room(model, row)))
                for row, choice in zip(asked, found, strict=True)
            ]
            known |= zip(missing, new, strict=True)
            if self._steady:
                self._decided |= zip(missing, new, strict=True)
        return [known[key] for key in keys]

    @contextmanager
    def steady(self) -> Iterator[None]:
        """See `steady`."""
        self._steady += 1
        try:
            yield
        finally:
            self._steady -= 1
            if not self._steady:
                self._decided.clear()

    def _begin(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if is_asked(model):
            return None
        self._now = None
        widened(model, None)
        given = dict(arguments(model, args, kwargs))
        ids, cache = given.get("input_ids"), given.get("past_key_values")
        if not isinstance(ids, Tensor):
            raise PatchError("a context on this model is chosen by the forward's input_ids; give them")
        if getattr(cache, "is_compileable", False):
            raise PatchError(
                f"a context on this model adds to what a cache holds, and a {type(cache).__name__} has a fixed size; "
                "use a dynamic one"
            )
        past = cache_length(cache)
        return self._prefill(model, given, ids) if past == 0 else self._decode(model, given, ids, past)

    def _prefill(
        self, model: nn.Module, given: dict[str, Any], ids: Int[Tensor, "rows width"]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        rows, width = ids.shape
        attended = attended_columns(given.get("attention_mask"), rows, width, ids.device)
        last = last_columns(model, attended)
        columns = torch.arange(width, device=ids.device)
        asked = [ids[row][attended[row] & (columns <= last[row])].tolist() for row in range(rows)]
        heads, texts = self.decide(model, asked, ids.device)
        shift = torch.tensor([len(text) for text in texts], device=ids.device)
        here = tuple(self._contexts)
        if not any(texts):
            self._now = _Now(rows, width, 0, _Kept(attended, width, shift, here))
            return None
        wide = Placement.of(ids, attended, _positions(given, attended), heads, texts)
        self._now = _Now(rows, width, wide.added, _Kept(wide.mask, width, shift, here))
        widened(model, Widened(wide.added, wide.own))
        changed = {"input_ids": wide.ids, "attention_mask": wide.mask.long()}
        return (), given | changed | _rest(model, given, wide.positions, width, wide.added)

    def _decode(
        self, model: nn.Module, given: dict[str, Any], ids: Int[Tensor, "rows width"], past: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        rows, width = ids.shape
        kept = self._caches.get(given["past_key_values"])
        if kept is None:
            raise PatchError(UNSEEN)
        if len(kept.contexts) != len(self._contexts) or any(
            mine is not other for mine, other in zip(kept.contexts, self._contexts, strict=True)
        ):
            raise PatchError(f"other contexts are on the model than when the cache began; {ANEW}")
        if len(kept.mask) != rows:
            raise PatchError(f"the cache began with {len(kept.mask)} rows and goes on with {rows}; {ANEW}")
        if width > 1 and not kept.told:
            raise PatchError(CHUNKED)
        if kept.bare:
            return None
        new = past - kept.mask.shape[1] + width
        mask = given.get("attention_mask")
        if mask is None:
            mask = torch.ones(rows, kept.width + new, dtype=torch.long, device=ids.device)
        if not isinstance(mask, Tensor) or mask.shape != (rows, kept.width + new):
            raise PatchError(
                f"a context on this model needs an attention mask of shape ({rows}, {kept.width + new}), for the "
                "tokens in the cache and the new ones; leave it to the model to widen it"
            )
        whole = torch.cat([kept.mask.to(mask.device), mask[:, kept.width :] != 0], 1)
        positions = given.get("position_ids")
        if positions is None:
            positions = (whole.long().cumsum(1) - 1)[:, -width:]
        else:
            positions = _checked(positions) + kept.shift.to(positions.device)[:, None]
        return (), given | {"attention_mask": whole.long()} | _rest(model, given, positions, width, 0)

    def _at_head(
        self, _head: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        now = self._now
        if now is None or not now.added or not args or not isinstance(args[0], Tensor):
            return None
        return (_cut(args[0], now), *args[1:]), kwargs

    def _end(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        if is_asked(model):
            return None
        now, self._now = self._now, None
        widened(model, None)
        if now is None or output is None:
            return None
        cache = arguments(model, args, kwargs).get("past_key_values")
        cache = getattr(output, "past_key_values", None) if cache is None else cache
        if cache is not None:
            self._caches[cache] = now.kept
        if not now.added:
            return None
        if isinstance(output, Mapping):
            for name, value in list(output.items()):
                output[name] = _cut(value, now)  # type: ignore[index]
            return output
        return _cut(output, now)


_prefixers: WeakKeyDictionary[nn.Module, Prefixer] = WeakKeyDictionary()


def prefixer(model: nn.Module) -> Prefixer | None:
    """What puts contexts before a model's prompts; None where none is on."""
    return _prefixers.get(model)


@contextmanager
def steady(model: nn.Module) -> Iterator[None]:
    """While this is open, what goes before a prompt is decided once for each prompt, and not again.

    For whoever asks the same prompts more than once, and sees to it that neither the model's weights nor what is on it
    change meanwhile. Without contexts on the model it does nothing.
    """
    own = prefixer(model)
    if own is None:
        yield
        return
    with own.steady():
        yield


class Standing:
    """The contexts of one patch on a model, until `remove()`."""

    def __init__(self, model: nn.Module, contexts: Sequence[Context]) -> None:
        self._model, self._contexts = ref(model), list(contexts)

    def remove(self) -> None:
        """Take them off, and with the last of them all hooks; a second call does nothing."""
        model = self._model()
        own = None if model is None else _prefixers.get(model)
        if model is not None and own is not None and own.remove(self._contexts):
            own.release()
            del _prefixers[model]


def standing(model: nn.Module, contexts: Sequence[Context]) -> Standing:
    """Let contexts act on a model."""
    if model not in _prefixers:
        _prefixers[model] = Prefixer(model)
    _prefixers[model].add(contexts)
    return Standing(model, contexts)


def _room(model: nn.Module, row: Sequence[int]) -> int | None:
    """Tokens that may stand before a prompt, so that a quarter of the model's positions is left to go on from it."""
    limit = max_positions(model)
    return None if limit is None else max(0, limit - limit // 4 - len(row))


def _positions(given: Mapping[str, Any], attended: Bool[Tensor, "rows width"]) -> Int[Tensor, "rows width"]:
    """The position of each token, as given, else counted from the row's first."""
    positions = given.get("position_ids")
    if positions is None:
        return (attended.long().cumsum(1) - 1).clamp_min(0)
    return _checked(positions).to(attended.device).expand(attended.shape).clone()


def _checked(positions: Tensor) -> Tensor:
    if positions.ndim != 2:
        raise PatchError("a context on this model needs position ids of shape (rows, tokens); leave them to the model")
    return positions


def _rest(
    model: nn.Module, given: Mapping[str, Any], positions: Int[Tensor, "rows width"], width: int, added: int
) -> dict[str, Any]:
    """The other arguments that go by columns."""
    rest: dict[str, Any] = {}
    if "position_ids" in given or "position_ids" in argument_names(model):
        rest["position_ids"] = positions
    kept = given.get("logits_to_keep")
    if isinstance(kept, Tensor) and kept.dtype == torch.bool:
        rest["logits_to_keep"] = nn.functional.pad(kept, (added, 0))
    elif isinstance(kept, Tensor):
        rest["logits_to_keep"] = torch.where(kept < 0, kept, kept + added)
    elif kept:
        rest["logits_to_keep"] = min(int(kept), width)
    types = given.get("token_type_ids")
    if isinstance(types, Tensor):
        rest["token_type_ids"] = nn.functional.pad(types, (added, 0))
    return rest


def _cut(value: Any, now: _Now) -> Any:
    """States and logits, and tuples of them, without the added columns; anything else as it is."""
    if isinstance(value, Tensor):
        wide = value.ndim == 3 and value.shape[:2] == (now.rows, now.added + now.width)
        return value[:, now.added :] if wide else value
    if type(value) in (tuple, list):
        return type(value)(_cut(part, now) for part in value)
    return value
