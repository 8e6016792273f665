"""A `Report` for people: a terminal table, Markdown, and one HTML page that needs nothing else.

All three show failures first, and what the edit harmed beside what it achieved.
"""

from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from retcon.evaluate import Report
from retcon.metrics import METRICS
from retcon.report.parts import (
    NONE,
    Answer,
    Kind,
    answer_table,
    figure_table,
    figures,
    flat,
    markdown_figures,
    markdown_table,
    template,
    written,
)

__all__ = ["html", "markdown", "table", "write"]

_HEADINGS: dict[Kind, str] = {"gain": "What the edit achieved", "harm": "What it harmed"}


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
    for kind, heading in _HEADINGS.items():
        shown = figures(report, kind, METRICS)
        if shown:
            parts += [Text(), figure_table(report, kind, heading, shown)]
    said, broken = answers(report), harms(report)
    if said:
        parts += [
            Text(),
            answer_table("Answers, failures first", said[:rows], len(said), edited=report.edited, wanted="wanted"),
        ]
    if broken:
        parts += [
            Text(),
            answer_table("Neighbours that changed", broken[:rows], len(broken), edited=report.edited, wanted="wanted"),
        ]
    return Group(*parts)


# ---- Markdown -------------------------------------------------------------------------------------------------------


def markdown(report: Report, *, rows: int = 20) -> str:
    """The report as GitHub-flavoured Markdown, with at most `rows` answers and as many harms."""
    lines = [f"# {_title(report)}", "", _subtitle(report), ""]
    for kind, heading in _HEADINGS.items():
        shown = figures(report, kind, METRICS)
        if shown:
            lines += [f"## {heading}", "", *markdown_figures(shown)]
    for heading, said in (("Answers, failures first", answers(report)), ("Neighbours that changed", harms(report))):
        if said:
            cells = [[a.prompt, a.wanted, a.before, a.after, a.note] for a in said[:rows]]
            lines += [f"## {heading}", "", *markdown_table(["prompt", "wanted", "before", "after", ""], cells)]
        if len(said) > rows:
            lines += [f"{len(said) - rows} more in the JSON report.", ""]
    return "\n".join(lines).rstrip() + "\n"


# ---- HTML -----------------------------------------------------------------------------------------------------------


def html(report: Report) -> str:
    """The report as one page without scripts or outside files, every case in it."""
    return template().render(
        report=report,
        title=_title(report),
        subtitle=_subtitle(report),
        sections=[(kind, heading, figures(report, kind, METRICS)) for kind, heading in _HEADINGS.items()],
        answers=answers(report),
        harms=harms(report),
        wanted="wanted",
        notes=[],
        provenance=flat(report.provenance),
    )


def write(report: Report, folder: str | Path) -> list[Path]:
    """Write `report.json`, `report.md` and `report.html` into a folder, each whole or not at all; their paths."""
    return written(folder, {"json": report.to_json() + "\n", "md": markdown(report), "html": html(report)})


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


def _said(text: str | None) -> str:
    return NONE if text is None else text or "(nothing)"


def _edit(case: dict[str, Any]) -> str:
    return str(case["subject"] or case["prompt"])
