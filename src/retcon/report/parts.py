"""What every report is shown with: figures beside each other, tables, the page, numbers in words."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Protocol

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape
from rich import box
from rich.table import Table
from rich.text import Text

from retcon import __version__, storage
from retcon.metrics import Metric
from retcon.metrics import described as described_by
from retcon.report import plots
from retcon.report.differences import marked
from retcon.report.svg import tag

__all__ = [
    "NONE",
    "Answer",
    "Figure",
    "Kind",
    "Shown",
    "alone",
    "answer_table",
    "described",
    "escaped",
    "figure_table",
    "figures",
    "flat",
    "markdown_figures",
    "markdown_table",
    "number",
    "page",
    "written",
]

Kind = Literal["gain", "harm"]

NONE = "–"
_STEADY = 5e-4  # a change that three decimals do not show is none


class Shown(Protocol):
    """What a report has, to have its figures shown."""

    @property
    def metrics(self) -> dict[str, float | None]:
        """Of the edited model."""

    @property
    def before(self) -> dict[str, float | None]:
        """Of the unedited one."""

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Of `metrics`."""

    @property
    def edited(self) -> bool:
        """Whether a patch was on."""


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
    picture: Markup
    """The figure as a dot with its interval and where it was before; empty where nothing can be drawn."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt, what was wanted there, and what the model said before and after."""

    prompt: str
    wanted: str
    before: str
    after: str
    good: bool
    note: str = ""

    @property
    def marked(self) -> tuple[Markup, Markup]:
        """Before and after as HTML, with what changed between them."""
        if NONE in (self.before, self.after):
            return escape(self.before), escape(self.after)
        return marked(self.before, self.after)


def described(report: Shown) -> Mapping[str, Metric]:
    """How to read the figures of a report on edits."""
    return described_by(report.metrics)


def figures(report: Shown, kind: Kind, metrics: Mapping[str, Metric], near_zero: Collection[str] = ()) -> list[Figure]:
    """The figures of one kind, in the order of `metrics`; those of `near_zero` are better the nearer they are to 0."""
    return [
        _figure(report, name, metric, name in near_zero)
        for name, metric in metrics.items()
        if name in report.metrics and metric.kind == kind
    ]


def _figure(report: Shown, name: str, metric: Metric, near_zero: bool) -> Figure:
    after, before = report.metrics[name], report.before.get(name)
    change, verdict = "", ""
    if report.edited and after is not None and before is not None and math.isfinite(after - before):
        difference = after - before
        better = abs(after) < abs(before) if near_zero else (difference > 0) == (metric.better == "higher")
        verdict = "same" if abs(difference) < _STEADY else "better" if better else "worse"
        change = "0.000" if verdict == "same" else f"{difference:+.3f}"
    bounds = report.intervals.get(name)
    return Figure(
        name=name,
        meaning=metric.meaning,
        before=number(before) if report.edited else "",
        after=number(after),
        change=change,
        interval="" if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}",
        verdict=verdict,  # type: ignore[arg-type]
        picture=_picture(name, before if report.edited else None, after, bounds, metric.share),
    )


def _picture(
    name: str, before: float | None, after: float | None, bounds: tuple[float, float] | None, share: bool
) -> Markup:
    """A share on a track from 0 to 1; another figure on one that just holds what is known of it."""
    known = [value for value in (before, after, *(bounds or ())) if value is not None and math.isfinite(value)]
    if after is None or not math.isfinite(after) or (len(set(known)) < 2 and not share):
        return Markup("")
    low, high = (0.0, 1.0) if share else (min(known), max(known))
    pad = 0.0 if share else 0.08 * (high - low)
    drawn = bounds if bounds is not None and all(map(math.isfinite, bounds)) else None
    then = before if before is not None and math.isfinite(before) else None
    told = f"{name} {number(after)}" + (f", before {number(then)}" if then is not None else "")
    told += f", interval {number(drawn[0])} to {number(drawn[1])}" if drawn else ""
    return plots.span(after, bounds=drawn, before=then, low=low - pad, high=high + pad, filled=share, label=told)


def number(value: float | None) -> str:
    """A figure with three decimals, or, where it is large, with three digits.

    >>> number(0.5), number(None), number(123456.0), number(float("inf"))
    ('0.500', '–', '1.23e+05', '∞')
    """
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "∞" if value == math.inf else "not a number"
    return f"{value:.3f}" if abs(value) < 10_000 else f"{value:.3g}"


def figure_table(report: Shown, kind: Kind, heading: str, shown: Iterable[Figure]) -> Table:
    """Figures for a terminal, under a heading that holds where a patch was on."""
    heading = heading if report.edited else "What it knows" if kind == "gain" else "How it stands"
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


def answer_table(heading: str, shown: list[Answer], total: int, *, edited: bool, wanted: str = "wanted") -> Table:
    """Answers for a terminal, of so many in all; `wanted` heads what they are held against."""
    caption = f"{total - len(shown)} more in the full report" if total > len(shown) else None
    grid = Table(title=heading, title_justify="left", caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)
    told = any(answer.wanted for answer in shown)
    said = ("before", "after") if edited else ("answer",)
    for name in ("prompt", *((wanted,) if told else ()), *said):
        grid.add_column(name, overflow="fold", ratio=2 if name == "prompt" else 1)
    for answer in shown:
        cells = [Text(answer.prompt), *([Text(answer.wanted)] if told else []), Text(answer.before)]
        if edited:
            cells.append(Text(answer.after, style="green" if answer.good else "red"))
        grid.add_row(*cells)
    return grid


def markdown_figures(shown: Iterable[Figure]) -> list[str]:
    """Figures as a table in Markdown."""
    cells = [[f.name, f.before, f.after, f.change, f.interval, f.meaning] for f in shown]
    return markdown_table(["figure", "before", "after", "change", "95% interval", "meaning"], cells)


def markdown_table(names: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table in Markdown, without columns that hold nothing."""
    filled = [n for n, _ in enumerate(names) if any(row[n] not in ("", NONE) for row in rows)]
    picked = [[names[n] for n in filled], ["---"] * len(filled), *([escaped(row[n]) for n in filled] for row in rows)]
    return [*(f"| {' | '.join(row)} |" for row in picked), ""]


def escaped(text: str) -> str:
    """Text that no Markdown table or tag can trip over.

    >>> escaped("a|b <i> *c*")
    'a\\\\|b &lt;i&gt; \\\\*c\\\\*'
    """
    flat = " ".join(text.split()).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "|*_`[]":
        flat = flat.replace(mark, f"\\{mark}")
    return flat


def page(name: str, **content: Any) -> str:
    """A page of the package filled in; whatever it does not get is an error."""
    return _pages().get_template(name).render(version=__version__, **content)


def alone(plot: Markup, *, width: int = 760) -> str:
    """A scatter or a plot of lines as a file of its own: SVG with the page's colours, for light and for dark.

    Args:
        plot: of `retcon.report.plots`.
        width: in pixels, where nothing else decides it.
    """
    style = _pages().get_template("report_style.css.jinja")
    rules = "".join(line for name in ("colours", "plots") for line in style.blocks[name](style.new_context()))
    across, down = plots.SIZE
    ground = tag("rect", width="100%", height="100%", style="fill: var(--card)")
    box = {"viewBox": f"0 0 {across:g} {down:g}", "width": width, "height": round(width * down / across)}
    return f"{tag('svg', tag('style', rules), ground, plot, xmlns='http://www.w3.org/2000/svg', **box)}\n"


@cache
def _pages() -> Environment:
    """The pages by name; all text is escaped."""
    folder = resources.files("retcon").joinpath("data")
    return Environment(
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def written(folder: str | Path, texts: Mapping[str, str]) -> list[Path]:
    """Write texts into a folder under their names, each whole or not at all; their paths."""
    paths = []
    for name, text in texts.items():
        path = Path(folder) / name
        with storage.new_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested data as (name, value) lines."""
    lines: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, dict):
            lines += flat(item, f"{prefix}{key} ")
        elif isinstance(item, list | tuple):
            lines.append((prefix + key, " · ".join(map(str, item)) or NONE))
        else:
            lines.append((prefix + key, NONE if item is None else str(item)))
    return lines
