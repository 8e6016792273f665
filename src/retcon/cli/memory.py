"""How much memory this process took at most."""

import sys

__all__ = ["peak_memory_mb"]


def peak_memory_mb() -> float | None:
    """The largest resident set so far, in MB (2**20 bytes); None where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
