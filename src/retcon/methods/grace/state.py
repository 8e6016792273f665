"""What GRACE decides for each edit: a new key, a wider or a split ball, another answer; no model is needed for it.

Pure bookkeeping of keys, radii, labels and of every edit's query (Hartvigsen et al., arXiv 2211.11031). Distances are
fp32 by explicit differences, as in the lookup; of equally near keys the newest counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from retcon.errors import PatchError
from retcon.patch import Codebook

__all__ = ["Case", "Decision", "Growth", "Memory"]

Case = Literal["first", "far", "conflict", "agree", "beyond", "inside", "same", "overwrite"]
"""What an edit met: no key; none near; one of another answer; one of the same answer that widens; one that may not
widen so far; one whose ball holds it; its own place, with the same or with another answer."""
Growth = Literal["coverage", "moving_average"]
Label = tuple[int, ...]

_SAME = 1e-6
_GAP = 1e-5
"""What two touching balls leave free between them."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of one edit."""

    case: Case
    key: int
    """The key that answers it, and whose value is to be trained."""
    distance: float
    """To the nearest key before; infinite where there was none."""
    nearest: int
    """That key; -1 where there was none."""
    copies: tuple[tuple[int, int], ...] = ()
    """(new, old): new keys whose value is a copy of an old key's, as that was before this edit."""
    dropped: tuple[str, ...] = ()
    """Earlier edits at the very place of this one, whose answer it takes over."""

    @property
    def fresh(self) -> bool:
        """Whether the key's value begins anew, rather than where a value stands already."""
        return self.case in ("first", "far", "conflict", "overwrite")


@dataclass(slots=True)
class _Rows:
    """Vectors that are appended one by one, in room that doubles."""

    room: Tensor
    count: int = 0

    @property
    def all(self) -> Tensor:
        return self.room[: self.count]

    def append(self, row: Tensor) -> None:
        if self.count == len(self.room):
            self.room = torch.cat([self.room, torch.empty_like(self.room)])
        self.room[self.count] = row
        self.count += 1

    def keep(self, index: Sequence[int]) -> None:
        kept = self.room[torch.tensor(index, dtype=torch.long)]
        self.room[: len(index)], self.count = kept, len(index)


@dataclass(slots=True)
class Memory:
    """Keys and edits, as they grow.

    Equal labels are equal answers. An edit is answered by the key it is the nearest to; whenever keys come or balls
    shrink, every edit that now another answer's key would answer, or none, gets a key of its own with a copy of the
    value it had.
    """

    width: int
    """d_in."""
    radius: float
    """Of a new key, in units of the module's input."""
    most: float | None = None
    """The radius up to which a ball may widen; None for no limit."""
    growth: Growth = "coverage"
    """What a key does that widens: stay, or move half-way to the new edit, where that disturbs no other key's edits."""
    noise: float = 0.0
    """Relative rounding error of a query between two forwards, added to radii that end at an edit's query."""
    labels: list[Label] = field(default_factory=list)
    radii: list[float] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    """The key of each edit."""
    names: list[str] = field(default_factory=list)
    """The id of each edit."""
    _keys: _Rows = field(init=False)
    _queries: _Rows = field(init=False)

    def __post_init__(self) -> None:
        self._keys, self._queries = (_Rows(torch.empty(16, self.width)) for _ in range(2))

    @classmethod
    def of(cls, codebook: Codebook, *, most: float | None, growth: Growth, noise: float) -> "Memory":
        """The memory that a codebook holds."""
        memory = cls(codebook.shape[1], codebook.radius, most, growth, noise)
        memory.labels, memory.radii = codebook.labels, codebook.radii.tolist()
        memory.owners, memory.names = codebook.owners.tolist(), list(codebook.names)
        for rows, tensors in ((memory._keys, codebook.keys), (memory._queries, codebook.queries)):
            for row in tensors:
                rows.append(row)
        return memory

    @property
    def keys(self) -> Float[Tensor, "n d_in"]:
        """The keys."""
        return self._keys.all

    @property
    def queries(self) -> Float[Tensor, "m d_in"]:
        """The query of each edit."""
        return self._queries.all

    def nearest(self, query: Float[Tensor, " d_in"]) -> tuple[int, float]:
        """The nearest key, the newest of several, and its distance; -1 and infinity where there is none."""
        if not self.labels:
            return -1, float("inf")
        gaps = (self.keys - query).norm(dim=1)
        least = gaps.min()
        return int((gaps == least).nonzero()[-1]), float(least)

    def add(self, query: Float[Tensor, " d_in"], label: Sequence[int], name: str) -> Decision:
        """Take in an edit: its query, the label of its answer, its id."""
        query, label = query.detach().to("cpu", torch.float32), tuple(label)
        near, distance = self.nearest(query)
        case = self._case(query, label, near, distance)
        key, shaken, lost = near, list[int](), list[tuple[int, Label]]()
        if case in ("first", "far", "beyond"):
            key = self._new(query, label, self.radius)
            shaken = [key]
        elif case == "conflict":
            key = self._split(query, label, near, distance)
            shaken = [key, near]
        elif case == "agree":
            self.radii[near] = distance + self.noise * float(query.norm())
            shaken = self._moved(near, query) if self.growth == "moving_average" else []
        elif case == "overwrite":
            lost = [(place, self.labels[near]) for place, owner in enumerate(self.owners) if owner == near]
            self.labels[near] = label
        self._queries.append(query)
        self.owners.append(key)
        self.names.append(name)
        copies, dropped = self._settled([*lost, *self._lost(shaken)])
        return Decision(case, key, distance, near, ((key, near),) * (case == "beyond") + copies, dropped)

    def delete(self, name: str) -> list[int]:
        """Take out all edits of an id.

        A key that answers others too keeps its value, and its ball shrinks to what they need, though not below that of
        a new key; keys that answer nobody go.

        Returns:
            The keys that are left, by their old numbers, in order.

        Raises:
            PatchError: there is no such edit.
        """
        places = [place for place, known in enumerate(self.names) if known == name]
        if not places:
            raise PatchError(f"there is no edit {name!r} in this memory; its edits are {', '.join(self.names[:20])}")
        touched = {self.owners[place] for place in places}
        self._forget(places)
        for key in touched:
            rest = [place for place, owner in enumerate(self.owners) if owner == key]
            if rest:
                mine = self.queries[torch.tensor(rest)]
                needed = (mine - self.keys[key]).norm(dim=1) + self.noise * mine.norm(dim=1)
                self.radii[key] = min(self.radii[key], max(float(needed.max()), self.radius))
        left = sorted(set(self.owners))
        self._keys.keep(left)
        self.labels, self.radii = [self.labels[key] for key in left], [self.radii[key] for key in left]
        number = {key: place for place, key in enumerate(left)}
        self.owners = [number[key] for key in self.owners]
        return left

    def _case(self, query: Tensor, label: Label, near: int, distance: float) -> Case:
        if near < 0:
            return "first"
        agrees = self.labels[near] == label
        if distance <= self._same(query):
            return "same" if agrees else "overwrite"
        if distance > self.radius + self.radii[near]:
            return "far"
        if not agrees:
            return "conflict"
        if distance <= self.radii[near]:
            return "inside"
        return "agree" if self.most is None or distance <= self.most else "beyond"

    def _same(self, query: Tensor) -> float:
        """Up to which distance two queries are of one place."""
        size = float(query.norm())
        return _SAME * (1 + size) + self.noise * size

    def _new(self, query: Tensor, label: Label, radius: float) -> int:
        self._keys.append(query)
        self.labels.append(label)
        self.radii.append(radius)
        return len(self.labels) - 1

    def _moved(self, key: int, query: Tensor) -> list[int]:
        """Move a key half-way to a query, unless an edit would then be nearer to another key; the key, if it moved."""
        before = self.keys[key].clone()
        self._keys.room[key] = (before + query) / 2
        mine = [query, *(self.queries[place] for place, owner in enumerate(self.owners) if owner == key)]
        taken = any(self.owners[place] != key for place, _ in self._lost([key]))
        if not taken and all(self.nearest(edit)[0] == key for edit in mine):
            return [key]
        self._keys.room[key] = before
        return []

    def _split(self, query: Tensor, label: Label, near: int, distance: float) -> int:
        """A new key whose ball meets the nearest one's half-way."""
        half = distance / 2
        self.radii[near] = min(self.radii[near], max(half - _GAP, half / 2))
        return self._new(query, label, half if self.most is None else min(half, self.most))

    def _settled(self, lost: list[tuple[int, Label]]) -> tuple[tuple[tuple[int, int], ...], tuple[str, ...]]:
        """Give keys of their own to edits that have lost theirs; drop those at whose place there is another answer.

        A key of the same answer that is now the nearest and holds the edit takes it over. Every other edit becomes the
        centre of its key, and no centre is ever lost; so this comes to an end.

        Args:
            lost: the edits, with their answers.

        Returns:
            `copies` and `dropped` of the decision.
        """
        copies: list[tuple[int, int]] = []
        gone: list[int] = []
        before = self.owners.copy()  # values are copied as they were before this edit
        while lost:
            place, label = lost.pop(0)
            query = self.queries[place].clone()
            near, distance = self.nearest(query)
            if self.labels[near] == label and distance <= max(self.radii[near], self._same(query)):
                self.owners[place] = near
                continue
            if distance <= self._same(query):
                gone.append(place)
                continue
            if self.labels[near] != label and distance <= self.radius + self.radii[near]:
                key = self._split(query, label, near, distance)
                shaken = [key, near]
            else:
                key = self._new(query, label, self.radius)
                shaken = [key]
            copies.append((key, before[place]))
            self.owners[place] = key
            known = {other for other, _ in lost} | set(gone)
            lost += [item for item in self._lost(shaken) if item[0] not in known]
        dropped = tuple(self.names[place] for place in gone)
        self._forget(gone)
        return tuple(copies), dropped

    def _lost(self, shaken: Sequence[int]) -> list[tuple[int, Label]]:
        """The edits that are not answered by their key any more, and their answers.

        Args:
            shaken: keys that are new, have shrunk or have moved; the others' edits can only be lost to these.
        """
        if not shaken:
            return []
        owners, radii = torch.tensor(self.owners), torch.tensor(self.radii)
        lost = torch.zeros(len(owners), dtype=torch.bool)
        for key in shaken:
            gaps = (self.queries - self.keys[key]).norm(dim=1)  # (m,)
            mine = owners == key
            lost |= mine & (gaps > radii[key])
            close = (~mine & (gaps <= radii[owners])).nonzero()[:, 0]
            held = (self.queries[close] - self.keys[owners[close]]).norm(dim=1)
            newer = torch.full_like(owners[close], key) > owners[close]
            lost[close] |= (gaps[close] < held) | ((gaps[close] == held) & newer)
        return [(place, self.labels[self.owners[place]]) for place in lost.nonzero()[:, 0].tolist()]

    def _forget(self, places: Sequence[int]) -> None:
        """Take out edits; their keys stay."""
        gone = set(places)
        left = [place for place in range(len(self.names)) if place not in gone]
        if gone:
            self._queries.keep(left)
            self.names, self.owners = [self.names[i] for i in left], [self.owners[i] for i in left]
