"""A memory beside a projection: the output of the nearest key, for prompts that come near enough to one.

GRACE's adaptor (Hartvigsen et al., arXiv 2211.11031).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retcon.errors import PatchError
from retcon.patch.entries import no_autocast, placed
from retcon.patch.forward_record import ForwardRecord
from retcon.patch.screen import Screen

__all__ = ["REPLACEMENTS", "Codebook", "Lookup", "nearest", "replaced"]

REPLACEMENTS = ("replace_last", "replace_prompt", "replace_all")
"""Where a hit row's output becomes its value: at the last prompt token, at those before it, everywhere."""

_SCREENED = 32
"""Keys that one matrix product leaves over, to be decided by explicit differences."""
_MANY = 512
"""Keys from which on it pays to look at some of their coordinates first."""
_ROUNDED = 1 + 1e-5
"""What a square is taken times before it is compared with a bound."""


class Lookup(NamedTuple):
    """What a codebook finds for some queries."""

    key: Int[Tensor, " n"]
    """The nearest key; the newest where several are."""
    distance: Float[Tensor, " n"]
    """Euclidean, by explicit differences."""
    hit: Bool[Tensor, " n"]
    """Whether it is within the key's radius."""


@dataclass(frozen=True, eq=False, slots=True)
class Codebook:
    """Keys with radii, and for each the output that takes the place of the module's: y' = V_i where |K_i - h| <= r_i.

    The query h is what the module reads at a row's last prompt token, i the nearest key. It is decided at prefill and
    held while decoding. The rest of what is stored says how the keys came about, so that edits can be added and taken
    out later.

    Args:
        keys: (n, d_in).
        values: (n, d_out).
        radii: (n,), in units of the module's input.
        label_ids: token ids of the answers, one after the other; of answers that nobody is to read, numbers of our own.
        label_offsets: (n + 1,): the answer of key i is label_ids[label_offsets[i] : label_offsets[i + 1]].
        queries: (m, d_in), the query of each edit.
        owners: (m,), the key that each edit is answered by.
        names: m ids of the edits.
        mode: one of `REPLACEMENTS`.
        radius: the radius that a new key begins with.
        retest: whether each token after the prompt is looked up on its own too, and replaced where it hits.
        strength: 1 gives V_i itself, else y + strength (V_i - y).
    """

    keys: Float[Tensor, "n d_in"]
    values: Float[Tensor, "n d_out"]
    radii: Float[Tensor, " n"]
    label_ids: Int[Tensor, " ids"]
    label_offsets: Int[Tensor, " n_and_1"]
    queries: Float[Tensor, "m d_in"]
    owners: Int[Tensor, " m"]
    names: tuple[str, ...]
    mode: str = REPLACEMENTS[0]
    radius: float = 1.0
    retest: bool = False
    strength: float = 1.0
    kind: ClassVar[str] = "codebook"
    folds: ClassVar[bool] = False
    _halves: Float[Tensor, " n"] = field(init=False, repr=False)
    """|K_i|^2 / 2."""
    _screen: list[Screen | None] = field(init=False, repr=False, default_factory=list)
    """Of the keys, from when it is first asked for; None where it would tell too little."""

    def __post_init__(self) -> None:
        n, m = len(self.keys), len(self.names)
        fits = self.keys.ndim == self.values.ndim == self.queries.ndim == 2 and self.mode in REPLACEMENTS
        fits = fits and len(self.values) == len(self.radii) == len(self.label_offsets) - 1 == n
        fits = fits and len(self.queries) == len(self.owners) == m and self.queries.shape[1] == self.keys.shape[1]
        if not fits or int(self.label_offsets[-1]) != len(self.label_ids) or (m and int(self.owners.max()) >= n):
            raise PatchError("the parts of a codebook do not fit together; get the patch again")
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "_halves", self.keys.square().sum(1) / 2)

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the module."""
        return self.values.shape[1], self.keys.shape[1]

    @property
    def rank(self) -> int:
        """The number of keys."""
        return len(self.keys)

    @property
    def labels(self) -> list[tuple[int, ...]]:
        """The token ids that each key stands for."""
        ids = self.label_ids.tolist()
        return [tuple(ids[start:end]) for start, end in pairwise(self.label_offsets.tolist())]

    def edits_of(self, key: int) -> list[str]:
        """Ids of the edits that a key answers."""
        return [self.names[place] for place in (self.owners == key).nonzero()[:, 0].tolist()]

    def lookup(self, queries: Float[Tensor, "n d_in"]) -> Lookup:
        """The nearest key of each query, its distance, and whether it is a hit."""
        with no_autocast(queries.device):
            index, distance = nearest(self.keys, self._halves, queries.to(self.keys.dtype))
        if self.rank == 0:
            return Lookup(index, distance, torch.zeros_like(index, dtype=torch.bool))
        return Lookup(index, distance, distance <= self.radii[index])

    def hits(self, queries: Float[Tensor, "n d_in"]) -> Int[Tensor, " n"]:
        """The key that each query hits, -1 where it hits none: as `lookup`, but quicker among many keys.

        A quarter of the coordinates tells that no key can be within its radius, or that the nearest is among 32; the
        few queries for which it does not are looked up in full. Where balls are so wide that these would not be few,
        all queries are.
        """
        screen = self._screened()
        if screen is None:
            return self._hit(queries)
        with no_autocast(queries.device):
            queries = queries.to(self.keys.dtype)
            lower = screen.lower(queries)  # (rows, n)
            found = torch.full((len(queries),), -1, device=queries.device)
            near = (lower <= _ROUNDED * self.radii.square()).any(1).nonzero()[:, 0]
            if len(near):
                bounds, keys = lower[near].topk(_SCREENED, dim=1, largest=False)
                key, distance = _closest(self.keys, keys, queries[near])
                found[near] = torch.where(distance <= self.radii[key], key, -1)
                unsure = near[bounds[:, -1] <= _ROUNDED * distance.square()]
                if len(unsure):
                    found[unsure] = self._hit(queries[unsure])
        return found

    def _screened(self) -> Screen | None:
        """The screen of the keys; None where they are few, or where it does not tell most of them apart."""
        if self.rank < _MANY:
            return None
        if not self._screen:
            with torch.inference_mode(False), no_autocast(self.keys.device):
                screen = Screen.of(self.keys)
                lower = screen.lower(self.keys[:: self.rank // _SCREENED])
                blind = (lower <= _ROUNDED * self.radii.square()).sum(1) > _SCREENED
                self._screen.append(None if bool(blind.float().mean() > 1 / 2) else screen)
        return self._screen[0]

    def _hit(self, queries: Float[Tensor, "n d_in"]) -> Int[Tensor, " n"]:
        found = self.lookup(queries)
        return torch.where(found.hit, found.key, -1)

    def apply(
        self, x: Float[Tensor, "*rows d_in"], y: Float[Tensor, "*rows d_out"], record: ForwardRecord | None = None
    ) -> Float[Tensor, "*rows d_out"]:
        """`y`, with the values of hit rows in it; other rows are handed on bit for bit.

        Raises:
            PatchError: nothing is known of the forward, or its prompt has not been seen.
        """
        if record is None:
            raise PatchError(
                "a codebook decides by the prompt and knows nothing of this forward; call the whole model, not a part"
            )
        states = record.laid_out(x)
        key = record.decide(lambda: self._decided(states, record))
        if not record.prefill and self.mode != "replace_all" and not self.retest:
            return y  # what was changed stands in the cache
        chosen = self._chosen(states, key, record)
        if not bool((chosen >= 0).any()):
            return y
        old = record.laid_out(y)
        return self._written(old, chosen).reshape(y.shape)

    def _decided(self, states: Float[Tensor, "rows width d_in"], record: ForwardRecord) -> Int[Tensor, " rows"]:
        """The key that each row hits with its last prompt token, -1 where it hits none."""
        last = record.last.to(states.device)
        found = self.hits(states[torch.arange(record.rows, device=states.device), last.clamp_min(0)].detach())
        return torch.where(last >= 0, found, -1)

    def _chosen(
        self, states: Float[Tensor, "rows width d_in"], key: Int[Tensor, " rows"], record: ForwardRecord
    ) -> Int[Tensor, "rows width"]:
        """The key whose value each place takes, -1 where it stays."""
        attended, last = record.attended.to(states.device), record.last.to(states.device)[:, None]
        columns = torch.arange(record.width, device=states.device)
        if self.mode == "replace_all":
            where = attended
        elif self.mode == "replace_last":
            where = (columns == last) & record.prefill
        else:
            where = attended & (columns < last) & record.prefill
        chosen = torch.where(where, key.to(states.device)[:, None], -1)
        after = attended & (columns > last)  # while decoding `last` is -1, and every column comes after the prompt
        if self.retest and self.mode != "replace_prompt" and bool(after.any()):
            chosen[after] = self.hits(states[after].detach())
        return chosen

    def _written(
        self, old: Float[Tensor, "rows width d_out"], chosen: Int[Tensor, "rows width"]
    ) -> Float[Tensor, "rows width d_out"]:
        """The outputs with the chosen values in them."""
        new = self.values[chosen.clamp_min(0)]
        if self.strength != 1:
            new = old.to(new.dtype) + self.strength * (new - old.to(new.dtype))
        return replaced(old, chosen >= 0, new)

    def delta(self) -> Float[Tensor, "d_out d_in"]:
        """None: raises PatchError."""
        raise PatchError("a codebook looks at the prompt and is no change of a weight; use patch.on(model)")

    def scaled(self, factor: float) -> "Codebook":
        """The entry with `factor` times the effect; the same prompts hit."""
        return self._with(strength=self.strength * factor)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Codebook":
        """The entry on another device; keys, values and radii in another dtype."""
        floats = ("keys", "values", "radii", "queries")
        moved = {name: placed(t, device, dtype if name in floats else t.dtype) for name, t in self.tensors().items()}
        same = all(tensor is moved[name] for name, tensor in self.tensors().items())
        return self if same else self._with(**moved)

    def _with(self, **changed: Any) -> "Codebook":
        return Codebook(**{**self.tensors(), **self.settings(), **changed})

    def tensors(self) -> dict[str, Tensor]:
        """Keys, values, radii, labels as one array with offsets, queries and their keys."""
        names = ("keys", "values", "radii", "label_ids", "label_offsets", "queries", "owners")
        return {name: getattr(self, name) for name in names}

    def settings(self) -> dict[str, Any]:
        """Ids of the edits, and how the codebook acts."""
        named = {name: getattr(self, name) for name in ("mode", "radius", "retest", "strength")}
        return {"names": list(self.names), **named}

    @classmethod
    def made(
        cls,
        keys: Float[Tensor, "n d_in"],
        values: Float[Tensor, "n d_out"],
        radii: Sequence[float],
        labels: Sequence[Sequence[int]],
        queries: Float[Tensor, "m d_in"],
        owners: Sequence[int],
        names: Sequence[str],
        **settings: Any,
    ) -> "Codebook":
        """A codebook from its parts as lists."""
        ends = torch.tensor([0, *(len(label) for label in labels)]).cumsum(0)
        ids = torch.tensor([token for label in labels for token in label], dtype=torch.long)
        radius, owner = torch.tensor(list(radii), dtype=torch.float32), torch.tensor(list(owners), dtype=torch.long)
        return cls(keys, values, radius, ids, ends, queries, owner, tuple(names), **settings)


def nearest(
    keys: Float[Tensor, "n d"], halves: Float[Tensor, " n"], queries: Float[Tensor, "rows d"]
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """The nearest key of each query and its distance; of equally near ones the newest, which stands last.

    One product screens, |K|^2 / 2 - K.h, in which the digits of small distances are lost; the nearest 32 it leaves are
    decided by explicit differences.
    """
    rows = len(queries)
    if len(keys) == 0:
        return torch.zeros(rows, dtype=torch.long, device=keys.device), keys.new_full((rows,), torch.inf)
    if len(keys) <= _SCREENED:
        near = torch.arange(len(keys), device=keys.device).expand(rows, -1)
    else:
        scores = torch.addmm(halves, queries, keys.T, alpha=-1)  # (rows, n)
        near = scores.topk(_SCREENED, dim=1, largest=False).indices
    return _closest(keys, near, queries)


def _closest(
    keys: Float[Tensor, "n d"], near: Int[Tensor, "rows few"], queries: Float[Tensor, "rows d"]
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """The nearest of a few keys of each query, by explicit differences."""
    gaps = (keys[near] - queries[:, None]).norm(dim=2)  # (rows, few, d) -> (rows, few)
    least = gaps.amin(1)
    return torch.where(gaps == least[:, None], near, -1).amax(1), least


def replaced(
    old: Float[Tensor, "rows width d"], where: Bool[Tensor, "rows width"], new: Float[Tensor, "*any d"]
) -> Float[Tensor, "rows width d"]:
    """`old` with `new`, cast to its dtype, at the places of `where`."""
    return torch.where(where[:, :, None], new.to(old.dtype), old)
