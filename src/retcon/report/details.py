"""What is behind the figures of a report on edits: `Report.details` as small tables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from retcon.evaluate import Report
from retcon.metrics.summary import mean
from retcon.report.parts import NONE, escaped, markdown_table, number

__all__ = ["Small", "markdown", "tables"]

_COUNTS = ("subjects", "facts")
"""Of `facts_of_the_subject`, what is counted rather than measured."""


@dataclass(frozen=True, slots=True)
class Small:
    """A small table."""

    title: str
    meaning: str
    """One sentence: what its lines are."""
    heads: list[str]
    rows: list[list[str]]


def tables(report: Report) -> list[Small]:
    """One table for each part of the details that is there; of the model alone without what was before."""
    parts: dict[str, Callable[[Any], Small]] = {
        "prefix_tokens": _by_length,
        "facts_of_the_subject": _by_facts,
        "steps": _by_step,
        "portability": _by_kind,
        "specificity_gen": _known,
        "ability": _by_task,
    }
    found = [make(report.details[name]) for name, make in parts.items() if report.details.get(name)]
    return [_filled(small if report.edited else _of_one(small)) for small in found]


def markdown(report: Report) -> list[str]:
    """The tables as lines of Markdown; none where there are no details."""
    lines = []
    for small in tables(report):
        lines += [f"### {small.title}", "", escaped(small.meaning), "", *markdown_table(small.heads, small.rows)]
    return ["## Behind the figures", "", *lines] if lines else []


def _by_length(lengths: Mapping[str, Any]) -> Small:
    rows = []
    for tokens, part in lengths.items():
        figures = [_told(part["before"]), _told(part["efficacy_prefixed"])]
        rows.append([tokens, *figures, _bounds(part["interval"]), _told(part["texts"])])
    meaning = "Strict efficacy with so many tokens of running text before the prompt; 0 is the bare prompt."
    return Small("After text of each length", meaning, ["tokens", "before", "after", "95% interval", "texts"], rows)


def _by_facts(groups: Mapping[str, Any]) -> Small:
    """Figures down, as there are many of them, and numbers of facts across."""
    names = dict.fromkeys(name for part in groups.values() for name in part if name != "intervals")
    ordered = sorted(names, key=lambda name: name not in _COUNTS)
    rows = [[name, *(_with_bounds(part, name) for part in groups.values())] for name in ordered]
    heads = ["figure", *(f"{count} fact{'' if count == '1' else 's'}" for count in groups)]
    meaning = "Means over the facts whose subject has so many; all_...: the share of subjects whose facts all hold."
    return Small("By how many facts a subject has", meaning, heads, [row for row in rows if set(row[1:]) != {NONE}])


def _by_step(steps: Sequence[Mapping[str, Any]]) -> Small:
    shown = [name for name in ("efficacy_gen", "efficacy", "generalization_gen", "generalization") if name in steps[0]]
    rows = []
    for part in steps:
        told = [str(part["step"]), part["method"], _told(part["edits"]), _told(part["judged"])]
        rows.append([*told, *(_with_bounds(part, name) for name in shown)])
    meaning = "The final model on the edits of each step of the patch, the earliest first: how much of each is kept."
    return Small("By the step that made the edits", meaning, ["step", "method", "edits", "judged", *shown], rows)


def _by_kind(kinds: Mapping[str, Any]) -> Small:
    names = ("questions", "before", "portability_gen")
    rows = [
        [kind, *(_told(part[name]) for name in names), _bounds(part.get("interval"))] for kind, part in kinds.items()
    ]
    meaning = "Questions on what follows from the edits that get a right answer, written freely."
    heads = ["kind", "questions", "before", "after", "95% interval"]
    return Small("What follows from the edits, by kind", meaning, heads, rows)


def _known(part: Mapping[str, Any]) -> Small:
    meaning = "specificity_gen tells of neighbour prompts that the unedited model answers right; with few, of little."
    row = [_told(part["neighbours"]), _told(part["answered_right_before"])]
    return Small("Neighbours that were known", meaning, ["neighbours", "answered right before the edits"], [row])


def _by_task(tasks: Mapping[str, Any]) -> Small:
    rows = []
    for task, part in tasks.items():
        change = part.get("change") or {}
        figures = [_told(mean(part.get(name) or ())) for name in ("hits_before", "hits")]
        moved = [_signed(change.get("difference")), _bounds(change.get("interval")), _told(change.get("p"))]
        rows.append([task, _told(part["items"]), *figures, *moved, f"{part['metric']}, by {part['scored_by']}"])
    heads = ["task", "items", "before", "after", "change", "95% interval", "p", "scored"]
    meaning = (
        "Items of each task that the model gets right; the change, item by item, with its interval and two-sided p."
    )
    return Small("General ability", meaning, heads, rows)


def _of_one(small: Small) -> Small:
    """The table of a model without a patch: what it says before is what it says."""
    bare = [n for n, head in enumerate(small.heads) if head == "before"]
    rows = [["" if n in bare else cell for n, cell in enumerate(row)] for row in small.rows]
    return replace(small, heads=["value" if head == "after" else head for head in small.heads], rows=rows)


def _filled(small: Small) -> Small:
    """The table without columns that hold nothing."""
    kept = [n for n in range(len(small.heads)) if any(row[n] not in ("", NONE) for row in small.rows)]
    return replace(small, heads=[small.heads[n] for n in kept], rows=[[row[n] for n in kept] for row in small.rows])


def _told(value: float | None) -> str:
    return f"{value:,}" if isinstance(value, int) else number(value)


def _with_bounds(part: Mapping[str, Any], name: str) -> str:
    """A figure, and its interval in brackets where it has one."""
    bounds = part.get("intervals", {}).get(name)
    return _told(part.get(name)) + (f" [{_bounds(bounds)}]" if bounds else "")


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.3f}"


def _bounds(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{number(interval[0])} to {number(interval[1])}"
