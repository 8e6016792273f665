"""`python -m benchmarks [--again] [NAME ...]`: run the measurements whose result is not there yet, one process each."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial

from benchmarks import common, costs, eamet, ece, forgetting, many, memories, methods, probing, quality, speed, table

MEASUREMENTS: dict[str, Callable[[], None]] = {
    "quality_memit_100": partial(quality.memit, 100),
    "quality_memit_1000": partial(quality.memit, 1000, 200),
    "memit": speed.memit,
    "speed_search": speed.search,
    "quality_memit_1": partial(quality.single, "memit"),
    "quality_rome_1": partial(quality.single, "rome"),
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
}


def main() -> int:
    """Run what was asked for; each measurement in a process of its own, so that memory and caches start fresh."""
    words = sys.argv[1:]
    again = "--again" in words
    names = [word for word in words if not word.startswith("--")]
    unknown = [name for name in names if name not in MEASUREMENTS]
    if unknown:
        common.say(f"there is no measurement {unknown[0]!r}; there are {', '.join(MEASUREMENTS)}")
        return 2
    if not common.COUNTERFACT.is_file():
        common.say(f"{common.COUNTERFACT} is not there; set RETCON_DATA to the folder of benchmark data")
        return 2
    if len(names) == 1:
        MEASUREMENTS[names[0]]()
        table.write()
        return 0
    for name in names or MEASUREMENTS:
        if common.kept(name) and not again:
            common.say(f"{name}: already in {common.RESULTS}; --again measures it anew")
            continue
        done = subprocess.run([sys.executable, "-m", "benchmarks", name], check=False)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
