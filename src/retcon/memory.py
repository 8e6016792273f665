"""How much memory this process takes, and giving back what it no longer needs."""

import ctypes
import gc
import os
import sys
import time

__all__ = ["bound_kernel_caches", "give_back", "peak_memory_mb"]

_EVERY = 4.0
"""Seconds between two times that memory is handed back: to look for reference cycles is slow."""
_last = 0.0
_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32", "LRU_CACHE_CAPACITY": "16"}
"""Kernels kept by oneDNN itself, and by the layer between it and torch."""


def bound_kernel_caches() -> None:
    """Keep few compiled kernels of oneDNN, unless the user has set how many.

    It compiles one for each shape that it meets and keeps 1,024 of them, so that memory would grow with every batch of
    facts that is searched. Read once, at the process's first product.
    """
    for name, capacity in _KERNELS.items():
        os.environ.setdefault(name, capacity)


def peak_memory_mb() -> float | None:
    """The largest resident set so far, in MB (2**20 bytes); None where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def give_back() -> None:
    """Hand freed memory back to the system.

    Forwards that end early leave their tensors in reference cycles, and glibc keeps what large tensors of many sizes
    leave behind. Called again within a few seconds, it does nothing.
    """
    global _last
    if time.monotonic() - _last < _EVERY:
        return
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
    _last = time.monotonic()
