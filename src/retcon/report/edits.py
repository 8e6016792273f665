"""A `Report` for people: a terminal table, Markdown, and one HTML page that needs nothing else.

All three show failures first, and what the edit harmed beside what it achieved. Answers are shown of as many cases as
the evaluation let the model say them (`retcon.evaluate.run.SHOWN`); how many failed in all stands above them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.text import Text

from retcon.evaluate import Report
from retcon.patch import Patch
from retcon.report import details, heat, plots, words
from retcon.report.cards import card
from retcon.report.parts import (
    NONE,
    Answer,
    Kind,
    answer_table,
    described,
    escaped,
    figure_table,
    figures,
    flat,
    markdown_figures,
    markdown_table,
    page,
    written,
)

__all__ = ["html", "markdown", "table", "write"]

SHOWN = 12
"""How many answers a page shows at first; of the failures that have answers none is folded away."""

_HEADINGS: dict[Kind, str] = {"gain": "What the edit achieved", "harm": "What it harmed"}


def answers(report: Report) -> list[Answer]:
    """What the model said at the edits' prompts, failures first; only cases whose answers were asked for."""
    found = []
    for case in report.cases:
        said = case["answers"]
        if said["before"] is None and said["after"] is None:
            continue
        good = _held(case) == 1
        missed = len(case["missed"])
        note = f"{missed} {'paraphrase' if missed == 1 else 'paraphrases'} not changed" if missed else ""
        found.append(Answer(case["prompt"], case["target"], _said(said["before"]), _said(said["after"]), good, note))
    return sorted(found, key=lambda answer: answer.good)


def counted(report: Report) -> str:
    """How many of all cases are not as wanted, and how many of them are shown; empty for the model alone."""
    values = [value for case in report.cases if (value := _held(case)) is not None]
    if not report.edited or not values:
        return ""
    failed, said = sum(value != 1 for value in values), answers(report)
    shown = sum(not answer.good for answer in said)
    told = f"{failed:,} of {words.counted(len(values), 'case')} {'is' if failed == 1 else 'are'} not as wanted"
    if shown < failed:
        return f"{told}; the first {shown:,} are shown."
    return f"{told}." if len(said) >= len(values) else f"{told}; {len(said):,} cases are shown, failures first."


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
    headline = Text(words.of_edits(report).sentence)
    parts: list[RenderableType] = [Text(_title(report), style="bold"), headline, Text(_subtitle(report), style="dim")]
    parts += [Text(warning, style="red") for warning in report.warnings]
    for kind, heading in _HEADINGS.items():
        shown = figures(report, kind, described(report))
        if shown:
            parts += [Text(), figure_table(report, kind, heading, shown)]
    said, broken = answers(report), harms(report)
    if said:
        parts += [
            Text(counted(report)),
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
    headline = words.of_edits(report)
    lines = [f"# {_title(report)}", "", f"**{escaped(headline.sentence)}**", "", _subtitle(report), ""]
    lines += [*(f"- {escaped(rule)}" for rule in headline.rules), ""]
    lines += [line for warning in report.warnings for line in (f"> **Warning:** {escaped(warning)}", "")]
    for kind, heading in _HEADINGS.items():
        shown = figures(report, kind, described(report))
        if shown:
            lines += [f"## {heading}", "", *markdown_figures(shown)]
    sections = (
        ("Answers, failures first", counted(report), answers(report)),
        ("Neighbours that changed", "", harms(report)),
    )
    for heading, caption, said in sections:
        if said:
            cells = [[a.prompt, a.wanted, a.before, a.after, a.note] for a in said[:rows]]
            lines += [f"## {heading}", "", *([caption, ""] if caption else [])]
            lines += [*markdown_table(["prompt", "wanted", "before", "after", ""], cells)]
        if len(said) > rows:
            lines += [f"{len(said) - rows} more in the JSON report.", ""]
    lines += details.markdown(report)
    return "\n".join(lines).rstrip() + "\n"


# ---- HTML -----------------------------------------------------------------------------------------------------------


def html(
    report: Report, patch: Patch | None = None, *, curves: Mapping[str, Mapping[str, Sequence[Any]]] | None = None
) -> str:
    """The report as one page without scripts or outside files, with every answer that the report has.

    Args:
        report: what was measured.
        patch: the one that was on; with it the page shows where the edits went.
        curves: of a run that edits in batches: by figure, how many `edits` had come and the figure `of_all` of them.
    """
    said = answers(report)
    shown = max(sum(not answer.good for answer in said), SHOWN)
    return page(
        "report.html.jinja",
        report=report,
        title=_title(report),
        headline=words.of_edits(report),
        subtitle=_subtitle(report),
        sections=[(kind, heading, figures(report, kind, described(report))) for kind, heading in _HEADINGS.items()],
        answers=[("answers", _answers_heading(report), counted(report), said[:shown], said[shown:])],
        harms=harms(report),
        details=details.tables(report),
        where=None if patch is None else heat.where(patch),
        wanted="wanted",
        notes=report.warnings,
        retention=_retention(curves) if curves else _kept(report),
        provenance=flat(report.provenance),
    )


def write(report: Report, folder: str | Path, *, patch: Patch | None = None) -> list[Path]:
    """Write `report.json`, `report.md` and `report.html` into a folder, each whole or not at all; their paths.

    Args:
        report: what was measured.
        folder: where; made if absent.
        patch: the one that was on; with it the page shows where the edits went, and `card.md` is written too, the
            README of the patch for a hub.
    """
    texts = {
        "report.json": report.to_json() + "\n",
        "report.md": markdown(report),
        "report.html": html(report, patch),
    }
    return written(folder, texts if patch is None else texts | {"card.md": card(patch, report)})


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


def _retention(curves: Mapping[str, Mapping[str, Sequence[Any]]]) -> Markup | None:
    """A line for each figure over all edits so far; None where none has two points."""
    series = []
    for name, curve in curves.items():
        steps = zip(curve["edits"], curve["of_all"], strict=True)
        known = tuple((float(n), float(value)) for n, value in steps if value is not None)
        series += [plots.Series(name, known)] if len(known) > 1 else []
    if not series:
        return None
    return plots.lines(series, title="Figures over all edits so far", x="edits so far", y="share")


def _kept(report: Report) -> Markup | None:
    """The final model on the edits of each step of its patch; None where they are of one."""
    steps = report.details.get("steps", [])
    series = []
    for name in ("efficacy_gen", "efficacy"):
        known = tuple((float(part["step"]), value) for part in steps if (value := part.get(name)) is not None)
        series += [plots.Series(name, known)] if len(known) > 1 else []
    title = "The final model on the edits of each step"
    return plots.lines(series, title=title, x="step of the patch", y="share") if series else None


def _answers_heading(report: Report) -> str:
    return "Answers, failures first" if report.edited else "Answers"


def _held(case: Mapping[str, Any]) -> float | None:
    """Whether a case holds, by the figure that the headline takes; by the strict one where the case has no such."""
    value: float | None = case["metrics"].get(words.preferred(case["metrics"], "efficacy"))
    return value


def _said(text: str | None) -> str:
    return NONE if text is None else text or "(nothing)"


def _edit(case: dict[str, Any]) -> str:
    return str(case["subject"] or case["prompt"])
