"""A `Report` for people: a terminal table, Markdown, and one HTML page that needs nothing else.

All three show failures first, and what the edit harmed beside what it achieved.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, StrictUndefined, Template
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from retcon import storage
from retcon.evaluate import Report
from retcon.metrics import METRICS

__all__ = ["html", "markdown", "table", "write"]

Kind = Literal["gain", "harm"]

_HEADINGS: dict[Kind, str] = {"gain": "What the edit achieved", "harm": "What it harmed"}
_NONE = "–"
_STEADY = 5e-4  # a change that three decimals do not show is none


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric as it is shown."""

    name: str
    meaning: str
    before: str
    after: str
    change: str
    interval: str
    verdict: Literal["better", "worse", "same", ""]
    share: tuple[float | None, float] | None
    """Before and after for a bar from 0 to 1; None where the metric is no share or was not measured."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt, what was wanted there, and what the model said before and after."""

    prompt: str
    wanted: str
    before: str
    after: str
    good: bool
    note: str = ""


def figures(report: Report, kind: Kind) -> list[Figure]:
    """The figures of one kind, in the order of `METRICS`."""
    return [_figure(report, name) for name in METRICS if name in report.metrics and METRICS[name].kind == kind]


def answers(report: Report) -> list[Answer]:
    """What the model said at the edits' prompts, failures first; only cases whose answers were asked for."""
    found = []
    for case in report.cases:
        said = case["answers"]
        if said["before"] is None and said["after"] is None:
            continue
        good = case["metrics"].get("efficacy") == 1
        missed = len(case["missed"])
        note = f"{missed} {'paraphrase' if missed == 1 else 'paraphrases'} not changed" if missed else ""
        found.append(Answer(case["prompt"], case["target"], _said(said["before"]), _said(said["after"]), good, note))
    return sorted(found, key=lambda answer: answer.good)


def harms(report: Report) -> list[Answer]:
    """Neighbour prompts that are answered otherwise than before; those whose answers were asked for come first."""
    changed = [(case, item) for case in report.cases for item in case["changed"]]
    changed.sort(key=lambda pair: pair[1]["after"] is None)
    return [
        Answer(item["prompt"], "", _said(item["before"]), _said(item["after"]), False, f"after editing {_edit(case)}")
        for case, item in changed
    ]


# ---- terminal -------------------------------------------------------------------------------------------------------


def table(report: Report, *, rows: int = 10) -> RenderableType:
    """The report for a terminal, with at most `rows` answers and as many harms."""
    parts: list[RenderableType] = [Text(_title(report), style="bold"), Text(_subtitle(report), style="dim")]
    for kind in _HEADINGS:
        shown = figures(report, kind)
        if shown:
            parts += [Text(), _figure_table(report, kind, shown)]
    said, broken = answers(report), harms(report)
    if said:
        parts += [Text(), _answer_table(report, "Answers, failures first", said[:rows], len(said))]
    if broken:
        parts += [Text(), _answer_table(report, "Neighbours that changed", broken[:rows], len(broken))]
    return Group(*parts)


def _figure_table(report: Report, kind: Kind, shown: Iterable[Figure]) -> Table:
    heading = _HEADINGS[kind] if report.edited else "What it knows" if kind == "gain" else "How it stands"
    grid = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("figure")
    names = ("before", "after", "change", "95% interval") if report.edited else ("value", "95% interval")
    for name in names:
        grid.add_column(name, justify="right")
    colours = {"better": "green", "worse": "red", "same": "dim", "": ""}
    for figure in shown:
        after = Text(figure.after, style="bold")
        change = Text(figure.change, style=colours[figure.verdict])
        edited = (Text(figure.before), after, change, Text(figure.interval, style="dim"))
        grid.add_row(Text(figure.name), *(edited if report.edited else (after, edited[3])))
    return grid


def _answer_table(report: Report, heading: str, shown: list[Answer], total: int) -> Table:
    caption = f"{total - len(shown)} more in the full report" if total > len(shown) else None
    grid = Table(title=heading, title_justify="left", caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)
    wanted = any(answer.wanted for answer in shown)
    said = ("before", "after") if report.edited else ("answer",)
    for name in ("prompt", *(("wanted",) if wanted else ()), *said):
        grid.add_column(name, overflow="fold", ratio=2 if name == "prompt" else 1)
    for answer in shown:
        cells = [Text(answer.prompt), *([Text(answer.wanted)] if wanted else []), Text(answer.before)]
        if report.edited:
            cells.append(Text(answer.after, style="green" if answer.good else "red"))
        grid.add_row(*cells)
    return grid


# ---- Markdown -------------------------------------------------------------------------------------------------------


def markdown(report: Report, *, rows: int = 20) -> str:
    """The report as GitHub-flavoured Markdown, with at most `rows` answers and as many harms."""
    lines = [f"# {_title(report)}", "", _subtitle(report), ""]
    for kind, heading in _HEADINGS.items():
        shown = figures(report, kind)
        if shown:
            cells = [[f.name, f.before, f.after, f.change, f.interval, f.meaning] for f in shown]
            lines += [f"## {heading}", ""]
            lines += _markdown_table(["figure", "before", "after", "change", "95% interval", "meaning"], cells)
    for heading, said in (("Answers, failures first", answers(report)), ("Neighbours that changed", harms(report))):
        if said:
            cells = [[a.prompt, a.wanted, a.before, a.after, a.note] for a in said[:rows]]
            lines += [f"## {heading}", "", *_markdown_table(["prompt", "wanted", "before", "after", ""], cells)]
        if len(said) > rows:
            lines += [f"{len(said) - rows} more in the JSON report.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_table(names: list[str], rows: list[list[str]]) -> list[str]:
    filled = [n for n, _ in enumerate(names) if any(row[n] not in ("", _NONE) for row in rows)]
    picked = [[names[n] for n in filled], ["---"] * len(filled), *([_cell(row[n]) for n in filled] for row in rows)]
    return [*(f"| {' | '.join(row)} |" for row in picked), ""]


def _cell(text: str) -> str:
    """Text that no Markdown table or tag can trip over.

    >>> _cell("a|b <i> *c*")
    'a\\\\|b &lt;i&gt; \\\\*c\\\\*'
    """
    flat = " ".join(text.split()).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "|*_`[]":
        flat = flat.replace(mark, f"\\{mark}")
    return flat


# ---- HTML -----------------------------------------------------------------------------------------------------------


def html(report: Report) -> str:
    """The report as one page without scripts or outside files, every case in it."""
    return _template().render(
        report=report,
        title=_title(report),
        subtitle=_subtitle(report),
        sections=[(kind, heading, figures(report, kind)) for kind, heading in _HEADINGS.items()],
        answers=answers(report),
        harms=harms(report),
        provenance=_flat(report.provenance),
    )


@cache
def _template() -> Template:
    text = resources.files("retcon").joinpath("data", "report.html.jinja").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        text
    )


def write(report: Report, folder: str | Path) -> list[Path]:
    """Write `report.json`, `report.md` and `report.html` into a folder, each whole or not at all; their paths."""
    texts = {"json": report.to_json() + "\n", "md": markdown(report), "html": html(report)}
    paths = []
    for kind, text in texts.items():
        path = Path(folder) / f"report.{kind}"
        with storage.new_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


# ---- words and numbers ----------------------------------------------------------------------------------------------


def _title(report: Report) -> str:
    name = report.provenance.get("model", {}).get("name", "the model")
    patch = report.provenance.get("patch")
    if patch is None:
        return f"{name}, unedited"
    return f"{name} after {patch['edits']} {'edit' if patch['edits'] == 1 else 'edits'} by {patch['method'] or 'hand'}"


def _subtitle(report: Report) -> str:
    patch = report.provenance.get("patch")
    parts = [f"{report.n} {'case' if report.n == 1 else 'cases'}"]
    if report.provenance.get("cases", {}).get("sampled"):
        parts[0] += f" (a sample of {report.provenance['cases']['given']})"
    if patch is not None:
        parts.append(f"patch {patch['id']}")
    dtype = report.provenance.get("model", {}).get("dtype")
    return ", ".join([*parts, *([dtype] if dtype else []), f"{report.seconds:.1f} s"])


def _figure(report: Report, name: str) -> Figure:
    metric, after, before = METRICS[name], report.metrics[name], report.before.get(name)
    change, verdict = "", ""
    if report.edited and after is not None and before is not None and math.isfinite(after - before):
        difference = after - before
        better = (difference > 0) == (metric.better == "higher")
        verdict = "same" if abs(difference) < _STEADY else "better" if better else "worse"
        change = "0.000" if verdict == "same" else f"{difference:+.3f}"
    bounds = report.intervals.get(name)
    return Figure(
        name=name,
        meaning=metric.meaning,
        before=_number(before) if report.edited else "",
        after=_number(after),
        change=change,
        interval="" if bounds is None else f"{_number(bounds[0])} to {_number(bounds[1])}",
        verdict=verdict,  # type: ignore[arg-type]
        share=(before if report.edited else None, after) if metric.share and after is not None else None,
    )


def _number(value: float | None) -> str:
    """
    >>> _number(0.5), _number(None), _number(123456.0), _number(float("inf"))
    ('0.500', '–', '1.23e+05', '∞')
    """
    if value is None:
        return _NONE
    if not math.isfinite(value):
        return "∞" if value == math.inf else "not a number"
    return f"{value:.3f}" if abs(value) < 10_000 else f"{value:.3g}"


def _said(text: str | None) -> str:
    return _NONE if text is None else text or "(nothing)"


def _edit(case: dict[str, Any]) -> str:
    return str(case["subject"] or case["prompt"])


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested data as (name, value) lines."""
    lines: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, dict):
            lines += _flat(item, f"{prefix}{key} ")
        elif isinstance(item, list | tuple):
            lines.append((prefix + key, " · ".join(map(str, item)) or _NONE))
        else:
            lines.append((prefix + key, _NONE if item is None else str(item)))
    return lines
