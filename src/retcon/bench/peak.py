"""How much memory one piece of work takes at most, where the system can tell it from what came before."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from retcon.memory import peak_memory_mb

__all__ = ["Peak", "measured"]

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(slots=True)
class Peak:
    """What was found once the block has ended."""

    megabytes: float | None = None
    """The largest resident set, in MB (2**20 bytes), the model included; None where the system does not tell."""
    own: bool = False
    """Whether it is of the block alone; else of the whole process so far."""
    device_megabytes: float | None = None
    """The most that tensors took of a GPU; None without one."""


@contextmanager
def measured() -> Iterator[Peak]:
    """Watch the memory of this process within the block."""
    found = Peak(own=_reset())
    graphics = torch.cuda.is_available()
    if graphics:
        torch.cuda.reset_peak_memory_stats()
    try:
        yield found
    finally:
        found.megabytes = _resident() if found.own else peak_memory_mb()
        if graphics:
            found.device_megabytes = round(torch.cuda.max_memory_allocated() / 2**20, 1)


def _reset() -> bool:
    """Let Linux forget the peak so far; elsewhere, and where it may not be, it cannot."""
    if sys.platform != "linux":
        return False
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError:
        return False
    return _resident() is not None


def _resident() -> float | None:
    found = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
    return None if found is None else round(int(found[1]) / 2**10, 1)
