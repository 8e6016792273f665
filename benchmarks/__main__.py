"""`python -m benchmarks [--again] [NAME ...]`: run the measurements whose result is not there yet, one process each.

A name may be a pattern: `python -m benchmarks 'matrix/counterfact_100_*'`.
"""

import argparse
import fnmatch
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks import (
    common,
    costs,
    eamet,
    ece,
    forgetting,
    many,
    matrix,
    memories,
    methods,
    probing,
    quality,
    speed,
    table,
    tuning,
)

MEASUREMENTS: dict[str, Callable[[], None]] = {
    "quality_memit_100": partial(quality.memit, 100),
    "quality_memit_1000": partial(quality.memit, 1000, 200),
    "memit": speed.memit,
    "speed_search": speed.search,
    "quality_memit_1": partial(quality.single, "memit"),
    "quality_rome_1": partial(quality.single, "rome"),
    "builtin_known": quality.known,
    "cost_statistics": costs.statistics,
    "cost_evaluation": costs.evaluation,
    "cost_generation": costs.generation,
    "cost_locating": costs.locating,
    **methods.cells(),
    **ece.cells(),
    **eamet.cells(),
    **many.cells(),
    **memories.cells(),
    **forgetting.cells(),
    **probing.cells(),
    **tuning.cells(),
    **matrix.cells(),
}


def main() -> int:
    """Run what was asked for; each measurement in a process of its own, so that memory and caches start fresh."""
    asked = _parser().parse_args()
    words, again = asked.names, asked.again
    names = _named(words)
    unknown = [word for word, found in zip(words, names, strict=True) if not found]
    if unknown:
        common.say(f"there is no measurement {unknown[0]!r}; there are {', '.join(MEASUREMENTS)}")
        return 2
    if not common.COUNTERFACT.is_file():
        common.say(f"{common.COUNTERFACT} is not there; set RETCON_DATA to the folder of benchmark data")
        return 2
    if len(words) == 1 and words[0] in MEASUREMENTS:
        if again and words[0] in matrix.cells():
            matrix.anew(words[0])
        MEASUREMENTS[words[0]]()
        table.write()
        return 0
    return _all([name for found in names for name in found] or list(MEASUREMENTS), again)


def _parser() -> argparse.ArgumentParser:
    """What the command line may say."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Run the measurements whose result is not there yet, one process each."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a measurement, or a pattern of several; without: all")
    parser.add_argument("--again", action="store_true", help="measure anew what is there already")
    parser.epilog = f"Measurements: {', '.join(MEASUREMENTS)}."
    return parser


def _named(words: Sequence[str]) -> list[list[str]]:
    """The measurements that each word names."""
    return [[word] if word in MEASUREMENTS else fnmatch.filter(MEASUREMENTS, word) for word in words]


def _all(names: Sequence[str], again: bool) -> int:
    """Run measurements one after the other; of one that fails the rest are finished all the same."""
    failed = []
    for name in dict.fromkeys(names):
        if not again and (matrix.kept(name) if name in matrix.cells() else common.kept(name)):
            common.say(f"{name}: already in {common.RESULTS}; --again measures it anew")
            continue
        done = subprocess.run([sys.executable, "-m", "benchmarks", name, *(["--again"] if again else [])], check=False)
        if done.returncode < 0:  # it was stopped
            return done.returncode
        if done.returncode:
            failed.append(name)
    table.write()
    if failed:
        common.say(f"failed, and tried again by the same command: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
