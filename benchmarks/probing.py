"""What gets forgotten answers back: every usual probe on the best editors and two controls. One cell a process.

A cell goes on from the kind of probe at which it was stopped. What a cell may cost is bounded by `BOUNDS`, which its
result repeats.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import common, forgetting
from retcon import storage
from retcon.evaluate.sampling import sampled
from retcon.forget_bench import Cell
from retcon.forget_bench.cells import cells as ways_of
from retcon.lm import LM
from retcon.patch import Patch
from retcon.patch.history import jsonable
from retcon.probes import Decoding, Mixed, Probed, Relearn, Tokenisation, Wordings, probe, together
from retcon.probes.verdict import label
from retcon.requests import ForgetCase

TARGET = "idk100"
"""The family of targets whose patches are probed; objectives that learn none have none."""
DATASETS = ("tofu", "factual")


@dataclass(frozen=True)
class Bound:
    """One kind of probe, and what it may cost."""

    questions: int
    """Drawn from those to forget, by seed 0; the same ones for every way to forget."""
    probes: tuple[str, ...]
    settings: tuple[Any, ...] = ()
    """Options that differ from the probes' own."""


BOUNDS = {
    "prompts": Bound(40, ("prompts",), (Wordings(most=2), Mixed(others=(1, 3)))),
    "decoding": Bound(40, ("decoding",), (Decoding(samples=10),)),
    "inside": Bound(40, ("lens", "quantise", "detach")),
    "tokenisation": Bound(20, ("tokenisation",), (Tokenisation(splits=5),)),
    "relearning": Bound(40, ("relearn_same", "relearn_disjoint"), (Relearn(steps=(1, 5, 10, 25)),)),
}
TOKENS = 40


def measure(dataset: str, way: Cell, name: str) -> None:
    """All probes of one way to forget."""
    bench = forgetting.bench(dataset, [way])
    row = bench.run()[-1]
    if "failed" in row or "na" in row:
        raise SystemExit(f"{way.name}: {row.get('failed', row.get('na'))}")
    patches = {name: Patch.load(bench.folder / name) for name in ("taught", "twin") if bench.teaching is not None}
    patch = Patch.load(bench.folder / "patches" / way.slug)
    found = []
    for kind, bound in BOUNDS.items():
        file = bench.folder / "probes" / way.slug / f"{kind}.json"
        cases = sampled(bench.split.forget, bound.questions, 0)
        found.append(_part(bench.lm, cases, bench.split.retain, patch, patches, bound, file))
    whole = together(found)
    results = [{key: value for key, value in asdict(result).items() if key != "items"} for result in whole]
    told = {key: value for key, value in whole.to_dict().items() if key not in ("results", "settings")}
    bounds = {kind: _told(bound) for kind, bound in BOUNDS.items()}
    figures = {"set": dataset, "way": way.name, "bounds": bounds, **told, "settings": whole.settings}
    common.keep(f"forgetting/{name}", {**figures, "results": results}, bench.lm)


def _part(
    lm: LM,
    cases: Sequence[ForgetCase],
    retain: Sequence[ForgetCase],
    patch: Patch,
    patches: dict[str, Patch],
    bound: Bound,
    file: Path,
) -> Probed:
    """What one kind of probe found; taken from its file where it was found before."""
    key = storage.digest(patch.id, [other.id for other in patches.values()], _told(bound), TOKENS)[:16]
    older = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if older.get("key") != key:
        found = probe(
            lm,
            cases,
            patch=patch,
            retain=retain,
            twin=patches.get("twin"),
            start=patches.get("taught"),
            names=bound.probes,
            settings=bound.settings,
            chat=lm.chat,
            max_new_tokens=TOKENS,
        )
        older = {"key": key, "found": found.to_dict()}
        file.parent.mkdir(parents=True, exist_ok=True)
        storage.write_json(file, older)
    return Probed.from_dict(older["found"])


def _told(bound: Bound) -> dict[str, Any]:
    """A bound in JSON types."""
    options = {type(one).__name__: jsonable(asdict(one)) for one in bound.settings}
    return {"questions": bound.questions, "probes": list(bound.probes), "settings": options}


def section() -> list[str]:
    """One table a set: what each probe brings out of each way to forget, and in brackets the recovery."""
    lines: list[str] = []
    for dataset in DATASETS:
        found = [result["figures"] for name in _cells(dataset) if (result := common.kept(name))]
        if found:
            lines += [f"## Forgetting, {dataset}: what probes bring out, and in brackets the recovery", ""]
            lines += [*_table(found), "", *(f"- {part['way']}: {part['verdict']}" for part in found), ""]
    return lines


def _table(found: Sequence[dict[str, Any]]) -> list[str]:
    """Probes down, ways to forget across."""
    shown = [{label(result): _shown(result) for result in Probed.from_dict(_whole(part))} for part in found]
    names = dict.fromkeys(name for column in shown for name in column)
    rows = [[name, *(column.get(name, "–") for column in shown)] for name in names]
    plain = ["asked plainly", *(_share(part["unlearned"]) for part in found)]
    heads = ["probe", *(part["way"] for part in found)]
    return ["| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), plain, *rows)]


def _whole(figures: dict[str, Any]) -> dict[str, Any]:
    """The record of the probes within a result."""
    return {key: value for key, value in figures.items() if key not in ("set", "way", "bounds")}


def _shown(result: Any) -> str:
    if result.failed:
        return "n/a"
    back = "" if result.recovery is None else f" ({result.recovery:.2f})"
    return f"{_share(result.attacked)}{back}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _cells(dataset: str) -> dict[str, Callable[[], None]]:
    """The cells of one set by the name of their result."""
    shared = {"statistics": str(common.STATISTICS)}
    found: dict[str, Callable[[], None]] = {}
    for way in ways_of((*forgetting.BEST, *forgetting.CONTROLS), (TARGET,), shared=shared):
        name = f"probes_{dataset}_{way.slug}"
        found[f"forgetting/{name}"] = partial(measure, dataset, way, name)
    return found


def cells() -> dict[str, Callable[[], None]]:
    """All cells by the name of their result."""
    return {name: cell for dataset in DATASETS for name, cell in _cells(dataset).items()}
