"""Side memories of a projection: changes of its weight that only rows pass whose prompt excites them enough.

WISE's side memory (Wang et al., arXiv 2405.14768).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retcon.errors import PatchError
from retcon.patch.entries import no_autocast, placed
from retcon.patch.forward_record import ForwardRecord

__all__ = ["ACTIVATIONS", "ROLES", "Gated", "Memory", "distances", "packed", "routed", "row_scores", "unpacked"]

ROLES = ("shard", "merged", "live")
"""What a memory is: closed; made of several; still open to further edits."""
_SCORES, _RANKS, _LONG_PROMPTS = ("act", "linear"), ("raw", "ratio"), ("mean", "max")
_LONG = 100
"""Prompt tokens beyond which `long_prompt="max"` takes the largest one."""
_WORD = 64

_tanh_gelu = partial(F.gelu, approximate="tanh")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "gelu_python_tanh": _tanh_gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
"""What the score `act` may pass outputs through, by the names that configurations of transformers use."""


class Memory(NamedTuple):
    """One side memory, as a `Gated` is made of it."""

    mask: Bool[Tensor, "d_out d_in"]
    """The entries that it may change."""
    delta: Float[Tensor, "d_out d_in"]
    """Its weight less the module's; zero off the mask."""
    threshold: float
    names: tuple[str, ...]
    """Ids of the edits in it."""
    role: str
    """One of `ROLES`."""


@dataclass(frozen=True, eq=False, slots=True)
class Gated:
    """Memories D_j of one projection, of which each row takes one or none: `y + strength * x D_jᵀ`.

        d_j = mean over the row's prompt tokens of | s(y + x D_jᵀ) - s(y) |    (score "act"),  of | x D_jᵀ |  ("linear")

    A memory is eligible where d_j > ratio * threshold_j; the eligible one with the largest d_j (rank "raw") or
    d_j / threshold_j ("ratio") takes all tokens of the row, those that are generated too. It is decided at prefill
    from the prompt alone. `y` holds the module's bias, and a D_j of zero changes nothing.

    Args:
        bits: (m, words): the entries that each memory holds, one bit each, row after row of (d_out, d_in).
        values: the entries themselves, memory after memory.
        offsets: (m + 1,): values[offsets[j] : offsets[j + 1]] are memory j's.
        thresholds: (m,), in units of the score.
        size: (d_out, d_in).
        names: ids of the edits in each memory.
        roles: what each memory is, of `ROLES`.
        score: "act" or "linear".
        activation: s, one of `ACTIVATIONS`.
        ratio: share of a threshold from which a memory is eligible.
        order: "raw" or "ratio".
        long_prompt: "mean", or "max": beyond 100 prompt tokens their largest, as in the released code.
        strength: 1 for the memories as they are.
        making: how the memories came about, in JSON types; without effect here, but needed to go on.
    """

    bits: Int[Tensor, "m words"]
    values: Float[Tensor, " v"]
    offsets: Int[Tensor, " m_and_1"]
    thresholds: Float[Tensor, " m"]
    size: tuple[int, int]
    names: tuple[tuple[str, ...], ...]
    roles: tuple[str, ...]
    score: str = _SCORES[0]
    activation: str = "silu"
    ratio: float = 0.88
    order: str = _RANKS[0]
    long_prompt: str = _LONG_PROMPTS[0]
    strength: float = 1.0
    making: Mapping[str, Any] = field(default_factory=dict)
    kind: ClassVar[str] = "gated_memory"
    folds: ClassVar[bool] = False
    _dense: dict[int, Tensor] = field(init=False, repr=False, default_factory=dict)
    """Memories as matrices, from when they are first used."""

    def __post_init__(self) -> None:
        m, words = len(self.names), -(-self.size[0] * self.size[1] // _WORD)
        fits = self.bits.shape == (m, words) and len(self.thresholds) == len(self.roles) == len(self.offsets) - 1 == m
        fits = fits and int(self.offsets[-1]) == len(self.values) and all(role in ROLES for role in self.roles)
        if not fits:
            raise PatchError("the parts of a gated memory do not fit together; get the patch again")
        known = (self.score, _SCORES), (self.order, _RANKS), (self.long_prompt, _LONG_PROMPTS)
        for value, values in (*known, (self.activation, tuple(ACTIVATIONS))):
            if value not in values:
                raise PatchError(f"a gated memory knows no {value!r}; it knows {', '.join(values)}")
        object.__setattr__(self, "size", (int(self.size[0]), int(self.size[1])))
        object.__setattr__(self, "names", tuple(tuple(names) for names in self.names))
        object.__setattr__(self, "roles", tuple(self.roles))
        object.__setattr__(self, "making", dict(self.making))

    @classmethod
    def made(cls, memories: Sequence[Memory], size: tuple[int, int], **settings: Any) -> "Gated":
        """The entry of some memories of a projection of that (d_out, d_in)."""
        bits = [packed(memory.mask) for memory in memories]
        values = [memory.delta.float().cpu()[memory.mask.cpu()] for memory in memories]
        ends = torch.tensor([0, *(len(part) for part in values)]).cumsum(0)
        return cls(
            torch.stack(bits) if bits else torch.empty(0, -(-size[0] * size[1] // _WORD), dtype=torch.long),
            torch.cat([torch.empty(0), *values]),
            ends,
            torch.tensor([memory.threshold for memory in memories], dtype=torch.float32),
            size,
            tuple(memory.names for memory in memories),
            tuple(memory.role for memory in memories),
            **settings,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the module."""
        return self.size

    @property
    def rank(self) -> int:
        """The number of memories."""
        return len(self.names)

    def memory(self, number: int) -> Memory:
        """One of the memories, its mask and matrix in full.

        Raises:
            PatchError: it holds another number of entries than values.
        """
        mask = unpacked(self.bits[number], self.size)
        values = self.values[int(self.offsets[number]) : int(self.offsets[number + 1])]
        if int(mask.sum()) != len(values):
            raise PatchError("a gated memory holds another number of entries than values; get the patch again")
        delta = torch.zeros(self.size, dtype=values.dtype, device=values.device)
        delta[mask] = values
        return Memory(mask, delta, float(self.thresholds[number]), self.names[number], self.roles[number])

    def dense(self, number: int) -> Float[Tensor, "d_out d_in"]:
        """The matrix D of a memory; kept, so that it is unpacked once."""
        if number not in self._dense:
            with torch.inference_mode(False):  # else it could not take part in a backward pass later
                self._dense[number] = self.memory(number).delta
        return self._dense[number]

    def scores(
        self,
        x: Float[Tensor, "rows width d_in"],
        y: Float[Tensor, "rows width d_out"],
        prompt: Bool[Tensor, "rows width"],
    ) -> Float[Tensor, "rows m"]:
        """d_j of each row and memory, over the row's own prompt tokens; zero in a row without any."""
        where = prompt.to(x.device)
        owner = where.nonzero()[:, 0]
        found = [x.new_zeros(len(where), 0, dtype=self.thresholds.dtype)]
        for number in range(self.rank):
            delta = self.dense(number)
            work = torch.promote_types(delta.dtype, x.dtype)
            with no_autocast(x.device):
                added = x[where].to(work) @ delta.to(work).T  # (tokens, d_out)
                apart = distances(y[where].to(work), added, self.score, self.activation)
            of_rows = row_scores(apart, owner, len(where), self.long_prompt)
            found.append(of_rows.to(self.thresholds.dtype)[:, None])
        return torch.cat(found, 1)

    def apply(
        self, x: Float[Tensor, "*rows d_in"], y: Float[Tensor, "*rows d_out"], record: ForwardRecord | None = None
    ) -> Float[Tensor, "*rows d_out"]:
        """`y`, with the chosen memory added in rows that have one; other rows are handed on bit for bit.

        Raises:
            PatchError: nothing is known of the forward, or its prompt has not been seen.
        """
        if record is None:
            raise PatchError(
                "a gated memory decides by the prompt and knows nothing of this forward; call the whole model, not a "
                "part"
            )
        states, old = record.laid_out(x), record.laid_out(y)
        chosen = record.decide(lambda: self.choose(states.detach(), old.detach(), record.prompt)).to(x.device)
        numbers = [number for number in chosen.unique().tolist() if number >= 0]
        if not numbers:
            return y
        new = old.clone()
        for number in numbers:
            rows, delta = chosen == number, self.dense(number)
            work = torch.promote_types(delta.dtype, x.dtype)
            with no_autocast(x.device):
                added = states[rows].to(work) @ delta.to(work).T
                new[rows] = (old[rows].to(work) + self.strength * added).to(old.dtype)
        return new.reshape(y.shape)

    def choose(
        self,
        x: Float[Tensor, "rows width d_in"],
        y: Float[Tensor, "rows width d_out"],
        prompt: Bool[Tensor, "rows width"],
    ) -> Int[Tensor, " rows"]:
        """The memory that each row takes, -1 where it takes none."""
        return routed(self.scores(x, y, prompt), self.thresholds, self.ratio, self.order)

    def without(self, names: Sequence[str]) -> "Gated":
        """The entry without whole memories.

        Raises:
            PatchError: a memory holds some of these edits and others too, or none holds one of them.
        """
        gone = set(names)
        if missing := gone - {name for mine in self.names for name in mine}:
            raise PatchError(f"there is no edit {min(missing)!r} in these memories")
        kept = [number for number, mine in enumerate(self.names) if not gone.issuperset(mine)]
        for number in kept:
            both = [name for name in self.names[number] if name in gone]
            if both:
                raise PatchError(
                    f"edit {both[0]!r} shares its memory with {len(self.names[number]) - len(both)} others, and what "
                    "one of them wrote cannot be told apart; delete all edits of that memory, or edit anew without it"
                )
        return self._with(**_joined([self.memory(number) for number in kept], self.size))

    def delta(self) -> Float[Tensor, "d_out d_in"]:
        """None: raises PatchError."""
        raise PatchError("a gated memory looks at the prompt and is no change of a weight; use patch.on(model)")

    def scaled(self, factor: float) -> "Gated":
        """The entry with `factor` times the effect; the same prompts are routed."""
        return self._with(strength=self.strength * factor)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Gated":
        """The entry on another device; values and thresholds in another dtype."""
        floats = ("values", "thresholds")
        moved = {name: placed(t, device, dtype if name in floats else t.dtype) for name, t in self.tensors().items()}
        same = all(tensor is moved[name] for name, tensor in self.tensors().items())
        return self if same else self._with(**moved)

    def _with(self, **changed: Any) -> "Gated":
        return Gated(**{**self.tensors(), **self.settings(), **changed})

    def tensors(self) -> dict[str, Tensor]:
        """Bits, values, offsets and thresholds."""
        return {name: getattr(self, name) for name in ("bits", "values", "offsets", "thresholds")}

    def settings(self) -> dict[str, Any]:
        """Ids of the edits, how rows are routed, and how the memories came about."""
        plain = ("score", "activation", "ratio", "order", "long_prompt", "strength")
        lists = {"size": list(self.size), "names": [list(n) for n in self.names], "roles": list(self.roles)}
        return {**lists, **{name: getattr(self, name) for name in plain}, "making": dict(self.making)}


def _joined(memories: Sequence[Memory], size: tuple[int, int]) -> dict[str, Any]:
    """The arguments of a `Gated` that belong to its memories."""
    made = Gated.made(memories, size)
    return {**made.tensors(), "names": made.names, "roles": made.roles}


def distances(
    y: Float[Tensor, "*any d_out"], added: Float[Tensor, "*any d_out"], score: str, activation: str
) -> Float[Tensor, "*any"]:
    """How far a memory that adds `added` takes each output from the module's own; the gradient at zero is zero."""
    if score == "linear":
        moved = added
    else:
        act = ACTIVATIONS[activation]
        moved = act(y + added) - act(y)
    apart: Tensor = torch.linalg.vector_norm(moved, dim=-1)
    return apart


def row_scores(
    apart: Float[Tensor, " tokens"], owner: Int[Tensor, " tokens"], rows: int, long_prompt: str = "mean"
) -> Float[Tensor, " rows"]:
    """The score of each row from those of its prompt tokens.

    Args:
        apart: one value a token.
        owner: the row of each.
        rows: how many rows there are; one without tokens scores zero.
        long_prompt: "mean" at any length, or "max" of the tokens where a row has more than 100.
    """
    count = torch.bincount(owner, minlength=rows)
    mean = apart.new_zeros(rows).index_add(0, owner, apart) / count.clamp_min(1)
    if long_prompt == "mean":
        return mean
    most = apart.new_zeros(rows).scatter_reduce(0, owner, apart, "amax")
    return torch.where(count > _LONG, most, mean)


def routed(
    scores: Float[Tensor, "rows m"], thresholds: Float[Tensor, " m"], ratio: float, order: str = "raw"
) -> Int[Tensor, " rows"]:
    """The eligible memory that comes first for each row, -1 where none is eligible.

    Whether a memory is eligible is asked before which is the largest: one that scores high and still falls short of its
    own threshold stands in nobody's way.
    """
    if scores.shape[1] == 0:
        return torch.full((len(scores),), -1, device=scores.device)
    eligible = scores > ratio * thresholds
    tiny = torch.finfo(scores.dtype).tiny
    value = scores if order == "raw" else scores / thresholds.clamp_min(tiny)
    best = value.masked_fill(~eligible, -torch.inf).argmax(1)
    return torch.where(eligible.any(1), best, -1)


def packed(mask: Bool[Tensor, "d_out d_in"]) -> Int[Tensor, " words"]:
    """A mask as one bit an entry."""
    flat = mask.flatten().cpu()
    whole = F.pad(flat.long(), (0, -len(flat) % _WORD)).view(-1, _WORD)
    return (whole << torch.arange(_WORD)).sum(1)  # the sign bit stands for the last of a word


def unpacked(bits: Int[Tensor, " words"], size: tuple[int, int]) -> Bool[Tensor, "d_out d_in"]:
    """The mask that was packed."""
    found = (bits[:, None] >> torch.arange(_WORD, device=bits.device)) & 1
    return found.flatten()[: size[0] * size[1]].bool().view(size)
