"""The cases of a cell: a set by name or path, with a hash of what is edited and judged."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from retcon.errors import RetconError
from retcon.requests import Case, case_to_dict, to_dict
from retcon.sets import SETS, cases
from retcon.storage import digest

__all__ = ["Data", "Datasets"]


@dataclass(frozen=True, slots=True)
class Data:
    """Cases and where they come from."""

    cases: list[Case]
    sha256: str
    """Hash of the cases, however they were written down."""
    edits_sha256: str
    """Hash of what a method sees of them."""
    provenance: dict[str, Any]
    notes: tuple[str, ...] = ()
    """What a user should know: records left out, fewer of them than were asked for."""


class Datasets:
    """Loads sets, each once; with `shuffle`, in an order that the seed draws."""

    def __init__(self, *, shuffle: bool = False) -> None:
        self._shuffle = shuffle
        self.get = cache(self._load)
        """`get(name, n, seed)`: the first n good records of that order; raises as `retcon.sets.cases` does."""

    def _load(self, name: str, n: int, seed: int) -> Data:
        place, colon, split = name.partition(":")
        named = place in SETS and not Path(name).exists()
        if named and SETS[place].kind == "forget":
            raise RetconError(f"{place} holds questions to forget, not edits; take it with `retcon forget-bench`")
        found = cases(
            place if named else name,
            split=split if named and colon else None,
            limit=n,
            seed=seed,
            shuffle=self._shuffle,
        )
        left_out = [f"{name}: {len(found.skipped)} records are left out: {found.skipped[0]}"] if found.skipped else []
        notes = (*left_out, *found.warnings)
        whole = digest([case_to_dict(case) for case in found.items])
        edits = digest([to_dict(case.edit) for case in found.items])
        return Data(found.items, whole, edits, found.provenance, notes)
