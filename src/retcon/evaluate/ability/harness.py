"""lm-evaluation-harness on a model in memory, with its patches on: any of its tasks, or yours from local files.

It is behind the extra `lm-eval`. It scores whole texts: a memory that decides by the prompt takes all of a text, the
choice included, for the prompt.
"""

import copy
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from retcon import storage
from retcon.errors import RetconError
from retcon.evaluate.ability.tasks import TASKS, load
from retcon.lm import LM

__all__ = ["Scored", "check", "run", "write_tasks"]

_OURS = "retcon_"
"""Begins the harness's names of our tasks; some of ours it has under the same name, with other items."""

_SHARES = ("acc", "exact_match", "em", "acc_norm", "f1")
"""Figures that are shares of items, the plainest first."""

_BATCH = 16


@dataclass(frozen=True, slots=True)
class Scored:
    """How a model did on a task."""

    hits: list[float]
    items: str
    """Hash of the items."""
    version: str
    metric: str
    filter: str | None = None
    """What the harness took the answer out of the text by, where it tells."""


def check(names: Sequence[str], files: Path | None = None) -> None:
    """Refuse tasks that cannot be run, before anything else is measured.

    Raises:
        RetconError: the harness is not installed, there is no such folder, or it knows no such task.
    """
    if find_spec("lm_eval") is None:
        raise RetconError(
            f"the task {names[0]!r} needs lm-evaluation-harness; run `pip install 'retcon-lm[lm-eval]'`, or choose "
            f"from those that come with Retcon: {', '.join(TASKS)}"
        )
    if files is not None and not files.is_dir():
        raise RetconError(f"there is no folder {files}; give one with tasks as YAML files")
    with _manager(files) as manager:
        for name in names:
            if _theirs(name) not in manager.all_tasks:
                raise RetconError(
                    f"lm-evaluation-harness knows no task {name!r}; `lm-eval ls tasks` lists its own, --task-files DIR "
                    f"(task_files=) adds yours, and Retcon has {', '.join(TASKS)}"
                )


def run(lm: LM, names: Sequence[str], files: Path | None = None) -> dict[str, Scored]:
    """Score tasks with the model as it is now; a group gives its tasks, each by its own name.

    The tokenizer is a copy and every flag of the model is put back.

    Args:
        lm: the model, with any patch already on.
        names: of tasks or groups.
        files: a folder with more of them.

    Raises:
        RetconError: a task gives no figure that is a share of its items.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    with _manager(files) as manager, lm.inference():
        model = HFLM(pretrained=lm.model, tokenizer=copy.deepcopy(lm.tokenizer), batch_size=_BATCH)
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=[_theirs(name) for name in names],
            task_manager=manager,
            log_samples=True,
            bootstrap_iters=0,
            random_seed=0,
            numpy_random_seed=0,
            torch_random_seed=0,
            fewshot_random_seed=0,
        )
    version = f"lm-eval {metadata.version('lm_eval')}"
    samples: Mapping[str, Sequence[Mapping[str, Any]]] = found["samples"]
    return {name.removeprefix(_OURS): _scored(name, rows, version) for name, rows in samples.items()}


def _scored(name: str, rows: Sequence[Mapping[str, Any]], version: str) -> Scored:
    chosen = _strictest(dict.fromkeys(row.get("filter") for row in rows))
    kept = [row for row in rows if row.get("filter") == chosen]  # one filter's figures are enough
    metric = next((metric for metric in _SHARES if kept and metric in kept[0]), None)
    if metric is None:
        raise RetconError(f"the task {name!r} gives no share of right items ({', '.join(_SHARES)}); choose another")
    kept.sort(key=lambda row: row["doc_id"])
    items = storage.digest([str(row.get("doc_hash", row["doc_id"])) for row in kept])
    return Scored([float(row[metric]) for row in kept], items, version, metric, chosen)


def _strictest(filters: Iterable[str | None]) -> str | None:
    """A strict filter, else the one that changes nothing, else the first of the task: never the one that flatters."""
    names = list(filters)
    strict = [name for name in names if name and "strict" in name.lower()]
    return next(iter([*strict, *(name for name in names if name == "none"), *names]), None)


def _theirs(name: str) -> str:
    return _OURS + name if name in TASKS else name


@contextmanager
def _manager(files: Path | None) -> Iterator[Any]:
    """Finds the harness's tasks, ours, and those of a folder."""
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory(prefix="retcon-tasks-") as folder:
        write_tasks(Path(folder))
        yield TaskManager(include_path=[folder, *([str(files)] if files is not None else [])])


def write_tasks(folder: Path) -> list[Path]:
    """Write our tasks as the harness reads them, items and all; the paths of the YAML files.

    Anyone can run them with `lm-eval --include_path DIR --tasks retcon_arithmetic` on any model.
    """
    written = []
    for name in TASKS:
        items = folder / f"{name}.jsonl"
        lines = (json.dumps(asdict(item), ensure_ascii=False) for item in load(name))
        items.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        task = {
            "task": _OURS + name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(items)}, "cache_dir": str(folder / "cache")},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "prompt",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "target_delimiter": " ",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1.0},
        }
        path = folder / f"{_OURS}{name}.yaml"
        path.write_text(json.dumps(task, indent=2) + "\n", encoding="utf-8")  # JSON is YAML
        written.append(path)
    return written
