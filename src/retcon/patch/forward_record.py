"""What entries that decide by the prompt are told of the forward they run in: mask, prompt, prefill or decoding.

A hook on the model's root reads it from the public arguments of the model's `forward`. It is put there only where a
patch holds an entry that asks for it.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from retcon.errors import PatchError

__all__ = [
    "ANEW",
    "CHUNKED",
    "UNSEEN",
    "ForwardRecord",
    "Recorder",
    "Widened",
    "argument_names",
    "arguments",
    "attended_columns",
    "cache_length",
    "last_columns",
    "prompts",
    "widened",
]

Columns = int | Sequence[int] | Tensor
"""The column of the last prompt token: of every row, or of each."""


@dataclass(frozen=True, slots=True, eq=False)
class ForwardRecord:
    """One forward of a model, as its entries see it."""

    attended: Bool[Tensor, "rows width"]
    """Which columns of this forward hold tokens."""
    last: Int[Tensor, " rows"]
    """Column of each row's last prompt token; in decoding the prompt is over and this means nothing. Where no scorer
    has told it, the last attended column: the whole attended input is the prompt."""
    past: int
    """Columns in the cache as the forward began; 0 is a prefill."""
    held: dict[str, Tensor] | None
    """What was decided at prefill, row by row, by the names of the deciders; it lives as long as the cache. None where
    the forward goes on from a cache whose beginning nobody has seen."""
    refusal: str = ""
    """Why no decision can be told where `held` is None."""
    who: str = ""
    """The name under which the present entry decides."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.attended.shape[0]

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.attended.shape[1]

    @property
    def prefill(self) -> bool:
        """Whether the prompt is in this forward; else it decodes."""
        return self.past == 0

    @property
    def prompt(self) -> Bool[Tensor, "rows width"]:
        """Which columns hold prompt tokens; none while decoding."""
        columns = torch.arange(self.width, device=self.attended.device)
        return self.attended & (columns <= self.last[:, None]) & self.prefill

    def part(self, name: str) -> "ForwardRecord":
        """The record for an entry of that name."""
        return replace(self, who=f"{self.who}/{name}")

    def decide(self, decision: Callable[[], Tensor]) -> Tensor:
        """What the present entry decides for each row: taken at prefill, and the same while decoding.

        Args:
            decision: computes it, (rows, ...), from the prompt alone.

        Raises:
            PatchError: the prompt of this forward has not been seen.
        """
        if self.held is None:
            raise PatchError(self.refusal)
        if self.prefill:
            self.held[self.who] = decision()
        elif self.who not in self.held:
            raise PatchError(UNSEEN)
        return self.held[self.who]

    def laid_out(self, states: Float[Tensor, "*any d"]) -> Float[Tensor, "rows width d"]:
        """States as (rows, width, d), also where the model has flattened rows and columns (OPT).

        Raises:
            PatchError: they are laid out in another way.
        """
        if states.shape[:-1] not in ((self.rows, self.width), (self.rows * self.width,)):
            raise PatchError(
                f"a memory wants states of {self.rows} rows and {self.width} columns, and the module was given "
                f"{tuple(states.shape)}; this model runs its tokens in a way that memories cannot follow"
            )
        return states.reshape(self.rows, self.width, states.shape[-1])


ANEW = "run the prompt anew with the patch on"
UNSEEN = (
    "a memory on this model decides by the prompt, and this forward goes on from a cache that began without it; "
) + ANEW
CHUNKED = (
    "a memory on this model decides by the whole prompt at once, and this forward adds several tokens to a cache; "
    "give the whole prompt in one forward, without chunked prefill and without assisted decoding"
)


@dataclass(slots=True, eq=False)
class _Kept:
    """What belongs to one cache."""

    held: dict[str, Tensor]
    rows: int
    told: bool = False
    """Whether a scorer has said that what follows goes on from the prompt, so that several tokens may come at once."""


@dataclass(slots=True, eq=False)
class Recorder:
    """Watches a model's forwards for the entries of one patch."""

    now: ForwardRecord | None = None
    """The forward that runs now; None outside of any."""
    _caches: Any = field(default_factory=WeakIdKeyDictionary)
    """Cache -> `_Kept`."""

    def attached(self, model: nn.Module) -> list[RemovableHandle]:
        """Hook it to a model's root."""
        first = model.register_forward_pre_hook(self._begin, with_kwargs=True)
        try:
            return [first, model.register_forward_hook(self._end, with_kwargs=True, always_call=True)]
        except BaseException:
            first.remove()
            raise

    def carry(self, before: object, after: object, rows: Int[Tensor, " m"]) -> None:
        """Let what was decided for some rows of one cache hold for another cache, whose rows go on from them."""
        kept = self._caches.get(before)
        if kept is not None:
            held = {name: decision[rows.to(decision.device)] for name, decision in kept.held.items()}
            self._caches[after] = _Kept(held, len(rows), told=True)

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.now = None
        given = arguments(model, args, kwargs)
        tokens = given.get("input_ids")
        tokens = given.get("inputs_embeds") if tokens is None else tokens
        if not isinstance(tokens, Tensor):
            raise PatchError("a memory on this model needs the forward's input_ids or inputs_embeds; give one of them")
        rows, width = tokens.shape[:2]
        cache = given.get("past_key_values")
        past = cache_length(cache)
        attended = attended_columns(given.get("attention_mask"), rows, width, tokens.device)
        if past == 0:
            wide = _widened.get(model)
            added = 0 if wide is None else wide.added
            attended = attended if wide is None else attended & wide.own
            self.now = ForwardRecord(attended, last_columns(model, attended, added), 0, {})
            return
        kept, refusal = self._caches.get(cache), ""
        if kept is None:
            refusal = UNSEEN
        elif kept.rows != rows:
            refusal = f"the cache began with {kept.rows} rows and goes on with {rows}; {ANEW}"
        elif width > 1 and not kept.told:
            refusal = CHUNKED
        last = torch.full((rows,), -1, device=tokens.device)
        self.now = ForwardRecord(attended, last, past, None if refusal else kept.held, refusal)

    def _end(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: object) -> None:
        record, self.now = self.now, None
        if record is None or not record.prefill or record.held is None:
            return
        cache = arguments(model, args, kwargs).get("past_key_values")
        cache = getattr(output, "past_key_values", None) if cache is None else cache
        if cache is not None:
            self._caches[cache] = _Kept(record.held, record.rows)


_told: WeakKeyDictionary[nn.Module, list[Columns]] = WeakKeyDictionary()


@contextmanager
def prompts(model: nn.Module, last: Columns) -> Iterator[None]:
    """Tell the entries on a model where the prompt ends in the rows that are run inside the block.

    Scorers run a prompt and its continuation in one forward; what a memory decides must come from the prompt alone.
    Without this the whole attended input of a forward without a cache is the prompt. While a cache is gone on from it
    has no effect.

    Args:
        model: the model, or whatever `patch.on` was given.
        last: column of the last prompt token, one for all rows or one for each.
    """
    stack = _told.setdefault(model, [])
    stack.append(last)
    try:
        yield
    finally:
        stack.pop()


@dataclass(frozen=True, slots=True, eq=False)
class Widened:
    """A forward to which a context has added columns; it is told where a caller still counts without them."""

    added: int
    """Columns on the left that the caller does not know of."""
    own: Bool[Tensor, "rows added_and_width"]
    """Which columns hold the rows' own tokens, and not those of a context."""


_widened: WeakKeyDictionary[nn.Module, Widened] = WeakKeyDictionary()


def widened(model: nn.Module, wide: Widened | None) -> None:
    """Tell those who watch a model's forwards that the one which begins now has more columns; None: no longer."""
    if wide is None:
        _widened.pop(model, None)
    else:
        _widened[model] = wide


def last_columns(model: nn.Module, attended: Bool[Tensor, "rows width"], added: int = 0) -> Int[Tensor, " rows"]:
    """Column of the last prompt token: as told, else the last attended one; -1 in a row without any.

    Args:
        model: the model, of which prompts were told.
        attended: which columns hold tokens.
        added: columns on the left that whoever told did not count.
    """
    rows, width = attended.shape
    columns = torch.arange(width, device=attended.device)
    told = _told.get(model)
    if not told:
        return torch.where(attended, columns, -1).amax(1)
    last = torch.as_tensor(told[-1], device=attended.device) + added
    if last.ndim > 1 or (last.ndim == 1 and len(last) != rows):
        raise PatchError(f"prompts were told for {len(last)} rows and the forward has {rows}; tell one column a row")
    within = attended & (columns <= last.expand(rows)[:, None])  # a column of padding is not the prompt's last token
    return torch.where(within, columns, -1).amax(1)


_signatures: WeakKeyDictionary[type, inspect.Signature] = WeakKeyDictionary()


def arguments(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a forward by name."""
    return {**dict(zip(argument_names(model), args, strict=False)), **kwargs} if args else kwargs


def argument_names(model: nn.Module) -> list[str]:
    """The names of what a model's forward takes, in order."""
    kind = type(model)
    if kind not in _signatures:
        _signatures[kind] = inspect.signature(kind.forward)
    return list(_signatures[kind].parameters)[1:]


def cache_length(cache: Any) -> int:
    """Columns that a cache holds.

    Raises:
        PatchError: it does not tell.
    """
    if cache is None:
        return 0
    try:
        return int(cache.get_seq_length())
    except (AttributeError, TypeError, ValueError, IndexError):
        raise PatchError(
            f"a memory on this model cannot tell what a {type(cache).__name__} holds; run it with use_cache=False, and "
            "within patch.prompts, which tells where the prompts end"
        ) from None


def attended_columns(mask: Any, rows: int, width: int, device: torch.device) -> Bool[Tensor, "rows width"]:
    """The present columns of an attention mask; all of them where there is none.

    Raises:
        PatchError: the mask is not one of tokens.
    """
    if mask is None:
        return torch.ones(rows, width, dtype=torch.bool, device=device)
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[0] != rows or mask.shape[1] < width:
        raise PatchError(
            "a memory on this model needs an attention mask of shape (rows, tokens); leave it to the model to widen it"
        )
    return mask[:, mask.shape[1] - width :].to(device) != 0
