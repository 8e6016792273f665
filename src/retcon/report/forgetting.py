"""A `ForgetReport` for people: what must be known first, then what was forgotten beside what was harmed.

Questions and answers are shown where the report has them, which is on request only; those that still leak come first.
"""

from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from retcon.evaluate import ForgetReport
from retcon.metrics import FORGET_METRICS
from retcon.patch import Patch
from retcon.report import heat, words
from retcon.report.cards import card
from retcon.report.parts import (
    Answer,
    Kind,
    answer_table,
    escaped,
    figure_table,
    figures,
    flat,
    markdown_figures,
    markdown_table,
    number,
    page,
    written,
)

__all__ = ["html", "markdown", "table", "write"]

_SHOWN = 12  # answers that a page shows at first, where fewer are failures
_HEADINGS: dict[Kind, str] = {"gain": "What was forgotten", "harm": "What it harmed"}
_NEAR_ZERO = ("privleak", "rel_diff")
_SETS = {
    "forget": "Questions to forget, those that leak first",
    "retain": "Questions to keep, those that changed first",
}
_WAYS = {"chat": "through the chat template", "plain": "plainly"}


def table(report: ForgetReport, *, rows: int = 10) -> RenderableType:
    """The report for a terminal, with at most `rows` answers of each set where it tells them."""
    headline = Text(words.of_forgetting(report).sentence)
    parts: list[RenderableType] = [Text(_title(report), style="bold"), headline, Text(_subtitle(report), style="dim")]
    parts += [Text(f"warning: {warning}", style="yellow") for warning in report.warnings]
    for kind, heading in _HEADINGS.items():
        shown = figures(report, kind, FORGET_METRICS, _NEAR_ZERO)
        if shown:
            parts += [Text(), figure_table(report, kind, heading, shown)]
    parts += [Text(note, style="dim") for note in _notes(report)]
    for name, heading in _SETS.items():
        said = _answers(report, name)
        if said:
            parts += [Text(), answer_table(heading, said[:rows], len(said), edited=report.edited, wanted="true answer")]
    return Group(*parts)


def markdown(report: ForgetReport, *, rows: int = 20) -> str:
    """The report as GitHub-flavoured Markdown, with at most `rows` answers of each set where it tells them."""
    headline = words.of_forgetting(report)
    lines = [f"# {_title(report)}", "", f"**{escaped(headline.sentence)}**", "", _subtitle(report), ""]
    lines += [*(f"- {escaped(rule)}" for rule in headline.rules), ""]
    lines += [line for warning in report.warnings for line in (f"> **Warning:** {escaped(warning)}", "")]
    for kind, heading in _HEADINGS.items():
        shown = figures(report, kind, FORGET_METRICS, _NEAR_ZERO)
        if shown:
            lines += [f"## {heading}", "", *markdown_figures(shown)]
    lines += [*(f"- {escaped(note)}" for note in _notes(report)), ""]
    for name, heading in _SETS.items():
        said = _answers(report, name)
        if said:
            cells = [[a.prompt, a.wanted, a.before, a.after, a.note] for a in said[:rows]]
            columns = ["question", "true answer", "before", "after", ""]
            lines += [f"## {heading}", "", *markdown_table(columns, cells)]
        if len(said) > rows:
            lines += [f"{len(said) - rows} more in the JSON report.", ""]
    return "\n".join(lines).rstrip() + "\n"


def html(report: ForgetReport, patch: Patch | None = None) -> str:
    """The report as one page without scripts or outside files; with the patch, also where its change lies."""
    return page(
        "report.html.jinja",
        report=report,
        title=_title(report),
        headline=words.of_forgetting(report),
        subtitle=_subtitle(report),
        sections=[
            (kind, heading, figures(report, kind, FORGET_METRICS, _NEAR_ZERO)) for kind, heading in _HEADINGS.items()
        ],
        answers=[_told(report, name, heading) for name, heading in _SETS.items()],
        harms=[],
        details=[],
        where=None if patch is None else heat.where(patch),
        wanted="true answer",
        notes=[*(f"Warning: {warning}" for warning in report.warnings), *_notes(report)],
        retention=None,
        provenance=flat(report.provenance),
    )


def write(report: ForgetReport, folder: str | Path, *, patch: Patch | None = None) -> list[Path]:
    """Write `report.json`, `report.md` and `report.html` into a folder, each whole or not at all; their paths.

    They tell what the report tells: questions and answers only if it was asked to reveal them. With the patch that was
    on, the page shows where its change lies, and `card.md`, the README of the patch for a hub, is written too; that
    one tells neither questions nor answers in any case.
    """
    texts = {
        "report.json": report.to_json() + "\n",
        "report.md": markdown(report),
        "report.html": html(report, patch),
    }
    return written(folder, texts if patch is None else texts | {"card.md": card(patch, report)})


def _title(report: ForgetReport) -> str:
    name = report.provenance.get("model", {}).get("name", "the model")
    patch = report.provenance.get("patch")
    if patch is None:
        return f"{name}, unedited: what it would have to forget"
    return f"{name} made to forget by {patch['method'] or 'hand'}"


def _subtitle(report: ForgetReport) -> str:
    questions = f"{report.n} {'question' if report.n == 1 else 'questions'} to forget"
    retained = report.provenance.get("data", {}).get("retain", {}).get("asked", 0)
    parts = [questions, f"{report.known} of them answered right before", *([f"{retained} to keep"] if retained else [])]
    if report.edited:
        parts.append(f"patch {report.provenance['patch']['id']}")
    asked = report.provenance.get("asked")
    return ", ".join([*parts, *([f"asked {_WAYS[asked]}"] if asked in _WAYS else []), f"{report.seconds:.1f} s"])


def _notes(report: ForgetReport) -> list[str]:
    """What stands behind the figures, in sentences."""
    found = [f"{name}: not applicable: {reason}" for name, reason in report.not_applicable.items()]
    found += [
        f"{name} before: not applicable: {reason}"
        for name, reason in report.before_not_applicable.items()
        if report.edited and name not in report.not_applicable
    ]
    test = report.details.get("forget_quality", {}).get("after")
    if test:
        floor = "; the floor: as different as the test can say, which grades nothing" if test["floor"] else ""
        weak = "" if test["p"] <= 0.05 or floor else "; not told apart, which is no proof that they are alike"
        sizes = " and ".join(map(str, test["n"]))
        found.append(f"forget_quality: log10 p {test['log10_p']:.2f}, D {test['distance']:.2f}, n {sizes}{floor}{weak}")
    if others := report.details.get("paraphrases"):
        found.append(
            f"generalization: {others['items']} of {others['of']} questions were rephrased, {others['own']} with the "
            f"set's own wordings, {others['by_rules']} by rules of ours"
        )
    if split := report.details.get("locality"):
        parts = [f"{number(part['value'])} on {part['n']} {name}" for name, part in split.items() if part["n"]]
        found.append(f"locality, by whether the method was shown the question to keep: {', '.join(parts)}")
    if report.detector:
        fresh = report.detector["fresh"]
        found.append(
            f"refusals are told by expressions: precision {number(report.detector['precision'])}, recall "
            f"{number(report.detector['recall'])} on labelled lines, {number(fresh['precision'])} and "
            f"{number(fresh['recall'])} on those that they were not written with"
        )
    if kind := report.provenance.get("kind"):
        found += [] if kind in report.warnings else [str(kind)]
    return found


def _told(report: ForgetReport, name: str, heading: str) -> tuple[str, str, str, list[Answer], list[Answer]]:
    """One set's answers as the page shows them: all that should be otherwise, then a few."""
    said = _answers(report, name)
    shown = max(sum(not answer.good for answer in said), _SHOWN)
    return name, heading, f"{words.counted(len(said), 'question')}.", said[:shown], said[shown:]


def _answers(report: ForgetReport, name: str) -> list[Answer]:
    """The answers of one set, if the report tells them: those first that should be otherwise."""
    told = [item for item in report.items if item["set"] == name and "question" in item]
    return sorted((_answer(item, name) for item in told), key=lambda answer: answer.good)


def _answer(item: dict[str, Any], name: str) -> Answer:
    before, after = (item[when] or "(nothing)" for when in ("before", "after"))
    good = item["before"] == item["after"] if name == "retain" else not item["leaked"]
    note = "" if item.get("known", True) else "not known before"
    return Answer(item["question"], item["gold"], before, after, good, note)
