"""Working a list of jobs off: done ones are taken, one that fails says why, and the rest are finished."""

import sqlite3
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError

from retcon import progress
from retcon.bench.rows import Row, Rows
from retcon.errors import RetconError, RetconWarning

__all__ = ["Job", "sentence", "work"]

_CAUGHT = (
    RetconError, RuntimeError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, AssertionError,
    OSError, ImportError, MemoryError, sqlite3.Error, SafetensorError,
)  # fmt: skip
"""What may go wrong in one row while the others go on."""


@dataclass(frozen=True, slots=True)
class Job:
    """One row to be measured."""

    key: str
    """Hash of all that decides the row."""
    name: str
    asked: Mapping[str, Any]
    """What the row is of, in JSON types."""
    make: Callable[[], Mapping[str, Any]]
    """Measures the rest of it."""


def sentence(error: Exception) -> str:
    """What went wrong, on one line."""
    said = " ".join(str(error).split())
    return said if isinstance(error, RetconError) else f"{type(error).__name__}: {said}".removesuffix(": ")


def work(rows: Rows, jobs: Sequence[Job], *, said: Callable[[Exception], str] = sentence) -> list[Row]:
    """All rows, in order: those that are there already are taken, those that failed are tried again.

    Args:
        rows: what is done; each row is put there as soon as it is made.
        jobs: what is wanted.
        said: what the row of a failure tells of it.
    """
    made: list[Row] = []
    with progress.task("rows", len(jobs)) as advance:
        for job in jobs:
            found = rows.done(job.key)
            if found is None:
                found = rows.put(job.key, {"row": job.name, **job.asked, **_made(job, said)})
            made.append(found)
            advance(1)
    return made


def _made(job: Job, said: Callable[[Exception], str]) -> Mapping[str, Any]:
    try:
        return job.make()
    except _CAUGHT as error:
        warnings.warn(f"{job.name} failed ({type(error).__name__}): {error}", RetconWarning, stacklevel=3)
        return {"failed": said(error)}
