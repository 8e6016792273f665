"""What the measurements share: the data, the model, and results as files that carry their command."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from retcon import forward, storage, tokens
from retcon.evaluate import Report, provenance
from retcon.lm import LM
from retcon.methods import METHODS, Method
from retcon.patch import Patch
from retcon.requests import Case, Edit, load_cases
from retcon.targets import Store

__all__ = [
    "CHANGE",
    "DATA",
    "MODEL",
    "RESULTS",
    "STATISTICS",
    "TEXT",
    "cases",
    "configured",
    "held",
    "keep",
    "kept",
    "mean",
    "notes",
    "nowhere",
    "reached",
    "say",
    "store",
    "surprise",
    "timed",
    "work",
]

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("RETCON_DATA", "."))
COUNTERFACT = DATA / "editing" / "counterfact_full.jsonl.gz"
STATISTICS = DATA / "text" / "wikitext2_valid.txt"
TEXT = DATA / "text" / "wikitext103_test.txt"
MODEL = "smollm2-135m"
CHANGE = "log-perplexity change"
"""The head of that column in all tables."""


def cases(n: int, start: int = 0) -> list[Case]:
    """`n` cases of CounterFact's full records, in file order, the later of two that contradict each other kept."""
    return list(load_cases(COUNTERFACT, conflicts="last", limit=start + n).items[start:])


def configured(name: str, **options: Any) -> Method:
    """The method with its defaults but for `options`, and statistics from the shared text."""
    kind = METHODS[name]
    known = kind.Config.__dataclass_fields__
    return kind(kind.Config(**({"statistics": str(STATISTICS)} if "statistics" in known else {}), **options))


def store() -> Store:
    """Where measurements that are not timed share found targets: where all commands do."""
    return Store.shared()


def reached(report: Report) -> dict[str, Any]:
    """What an evaluation found, as it is kept."""
    return {
        "judged": report.n,
        "after": report.metrics,
        "intervals": report.intervals,
        "before": report.before,
    }


def surprise(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    """By how much the log perplexity of ordinary text rose, in nats; rows of long ago have it as two figures."""
    then, now = before.get("log_perplexity"), after.get("log_perplexity")
    return None if then is None or now is None else now - then


def notes(patch: Patch) -> dict[str, Any]:
    """What a method tells of a whole batch, without the record of each fact."""
    left_out = ("facts", "labels", "seconds", "n")
    return {key: value for key, value in patch.info.items() if key not in left_out}


def work(name: str) -> Path:
    """A folder in which a long measurement keeps how far it has come."""
    return storage.cache_dir("benchmark-runs") / name


def held(lm: LM, edits: Sequence[Edit], patch: Patch) -> list[bool]:
    """Which facts the edited model answers with every token of the target, asked under the bare prompt."""
    items = [(tokens.encode(lm, edit.text), [tokens.target_ids(lm, edit.text, edit.target)]) for edit in edits]
    with patch.on(lm.model):
        return [all(found[0].hits) for found in forward.score(lm, items)]


def say(text: str) -> None:
    """Tell how it goes."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result of `work` and the seconds it took."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def keep(name: str, figures: dict[str, Any], lm: LM | None = None, made_by: str | None = None) -> None:
    """Write `results/NAME.json`: the figures, the command that makes them, and what they were made with."""
    record = {
        "command": f"RETCON_DATA=... python -m benchmarks {made_by or name}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "figures": figures,
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "data_sha256": {COUNTERFACT.name: storage.file_sha256(COUNTERFACT)},
    }
    if lm is not None:
        record["model"] = provenance.model(lm)
    plain = json.loads(nowhere(json.dumps(record)))
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_json(path, plain)
    say(json.dumps(figures, indent=2))


def nowhere(text: str) -> str:
    """A text without the folders of this machine."""
    folders = {
        "$RETCON_DATA": DATA, "$RETCON_CACHE": storage.cache_dir(), ".": Path(__file__).parents[1],
        "~": Path(os.path.expanduser("~")),
    }  # fmt: skip
    for name, folder in sorted(folders.items(), key=lambda pair: -len(str(pair[1]))):
        if folder.is_absolute() and len(folder.parts) > 1:
            text = text.replace(str(folder), name)
    return text


def kept(name: str) -> dict[str, Any] | None:
    """An earlier result, so that an interrupted series goes on."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def mean(values: Sequence[float]) -> float:
    """Their mean."""
    return float(torch.tensor(list(values), dtype=torch.float64).mean())
