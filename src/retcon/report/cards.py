"""A patch and what was measured of it as a model card: README.md for a hub."""

import json
from pathlib import Path

from retcon import storage
from retcon.errors import RetconError
from retcon.evaluate import ForgetReport, Report
from retcon.metrics import FORGET_METRICS
from retcon.patch import Patch
from retcon.patch.card import README, Held
from retcon.patch.card import card as filled
from retcon.report import words
from retcon.report.parts import Kind, described, escaped, figures, markdown_figures

__all__ = ["card", "read", "write"]

_ALONE = Held()
_NEAR_ZERO = ("privleak", "rel_diff")
_HEADINGS: dict[Kind, str] = {"gain": "Figures", "harm": "Harms"}


def card(patch: Patch, report: Report | ForgetReport | None = None, *, held: Held = _ALONE) -> str:
    """Markdown with YAML front matter: base model, method, edits, figures with intervals, harms, how to load and undo.

    Of a patch that makes a model forget, and of a report on forgetting, it tells counts, salted ids and figures, and
    never a question or an answer.

    Args:
        patch: what it is about.
        report: what was measured of it; None leaves the figures out, and says so.
        held: in which form the folder that it is for holds the patch.

    Raises:
        RetconError: the report is on another patch.
    """
    if report is None:
        lines = ["What it achieves and harms was not measured here; `retcon eval --patch` does it.", ""]
        return filled(patch, held, figures=lines)
    on = (report.provenance.get("patch") or {}).get("id")
    if on != patch.id:
        told = f"patch {on}" if on else "a model without a patch"
        raise RetconError(f"the report is on {told}, not on patch {patch.id}; give the report of this patch")
    return filled(patch, held, figures=_measured(report))


def read(path: str | Path) -> Report | ForgetReport:
    """The report that a `report.json` holds, of whichever kind.

    Raises:
        RetconError: there is none.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        return ForgetReport.from_json(text) if "known" in json.loads(text) else Report.from_json(text)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        cure = "give the report.json that `retcon eval --out` wrote"
        raise RetconError(f"{path} is no report ({error}); {cure}") from None


def write(patch: Patch, report: Report | ForgetReport, folder: str | Path, *, held: Held) -> Path:
    """Write the card as README.md of an exported folder, in place of the one without figures; its path."""
    path = Path(folder) / README
    with storage.new_file(path) as temporary:
        temporary.write_text(card(patch, report, held=held), encoding="utf-8")
    return path


def _measured(report: Report | ForgetReport) -> list[str]:
    """The headline, the warnings, the figures, and how they were taken."""
    forgetting = isinstance(report, ForgetReport)
    headline = words.of_forgetting(report) if isinstance(report, ForgetReport) else words.of_edits(report)
    lines = [f"**{escaped(headline.sentence)}**", "", *(f"- {escaped(rule)}" for rule in headline.rules), ""]
    if isinstance(report, ForgetReport):
        lines += [line for warning in report.warnings for line in (f"> **Warning:** {escaped(warning)}", "")]
    known, near_zero = (FORGET_METRICS, _NEAR_ZERO) if forgetting else (described(report), ())
    for kind, heading in _HEADINGS.items():
        shown = figures(report, kind, known, near_zero)
        if shown:
            lines += [f"## {heading}", "", *markdown_figures(shown)]
    model, seed = report.provenance.get("model", {}), report.provenance.get("seed")
    versions = ", ".join(f"{name} {version}" for name, version in report.provenance.get("versions", {}).items())
    of = words.counted(report.n, "question" if forgetting else "case")
    how = [of, *([str(model["dtype"])] if "dtype" in model else []), *([] if seed is None else [f"seed {seed}"])]
    told = ", ".join([*how, *([versions] if versions else [])])
    return [*lines, f"Measured on {told}; intervals are 95%, by bootstrap.", ""]
