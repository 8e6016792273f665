"""A benchmark for people: who does best at what price, as a terminal table, Markdown, and one HTML page.

The rows are those of `retcon bench`, or whatever has the form of `Row`. Methods are compared on boards: one model, one
dataset, one number of edits. Failures stand first, harms beside gains.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from retcon.evaluate.record import noted, plain
from retcon.metrics import METRICS
from retcon.report import plots, words
from retcon.report.parts import NONE, escaped, flat, markdown_table, number, page, written
from retcon.report.rows import Board, Entry, Retained, Row, boards, failures, options, taken

__all__ = ["Retained", "Row", "headline", "html", "markdown", "pictures", "table", "write"]

Rows = Sequence[Mapping[str, Any]]

_GAINS, _HARM = ("efficacy", "generalization"), "specificity"
_NAMES = ["method", "held", "rewordings", "neighbours kept", "surprise", "score", "time"]


@dataclass(frozen=True, slots=True)
class _Cell:
    """A figure of a board: its words, and a dot with its interval where it is a share."""

    text: str
    picture: Markup


def headline(rows: Rows) -> words.Headline:
    """Who does best, in a sentence, and what best means."""
    found, failed = boards(rows), failures(rows)
    if not found:
        return words.Headline(f"None of {words.counted(len(failed), 'cell')} of the benchmark has figures.")
    firsts = [board.entries[0] for board in found]
    wins = Counter(first.method for first in firsts)
    most = max(wins.values())
    leaders = [name for name, count in wins.items() if count == most]
    board = next(board for board in found if board.entries[0].method == leaders[0])
    first = board.entries[0]
    title = board.title if len({one.model for one in found}) > 1 else board.facts
    if len(found) == 1:
        lead = f"Of {words.counted(len(board.entries), 'method')}, {first.method} does best with {title}: "
    elif len(leaders) == 1:
        lead = f"In {most} of {len(found)} comparisons {first.method} does best; with {title}, "
    else:
        each = f"{_listed(leaders)} do best in {most} of {len(found)} comparisons each"
        lead = f"No method does best throughout: {each}; {first.method} with {title}: "
    said = [lead + _said(first)]
    if close := [entry.method for entry in board.entries[1:] if _close(first, entry)]:
        said.append(f"{_listed(close)} {'is' if len(close) == 1 else 'are'} too close to call")
    if failed:
        said.append(f"{words.counted(len(failed), 'cell')} {'has' if len(failed) == 1 else 'have'} no figures")
    sentence = "; ".join(said)
    meaning = f" {METRICS[first.ranked_by].meaning}" if first.ranked_by in METRICS else ""
    rules = [
        f"Best: the highest {first.ranked_by}.{meaning}",
        "Too close to call: the 95% intervals of that figure overlap; a paired test on the same cases can tell more.",
    ]
    if any(entry.seeds > 1 for one in found for entry in one.entries):
        rules.append("Of several seeds: means; intervals run from the lowest end of a seed's to the highest.")
    return words.Headline(f"{sentence}.", tuple(rules))


def table(rows: Rows) -> RenderableType:
    """The boards for a terminal."""
    told = headline(rows)
    parts: list[RenderableType] = [Text(told.sentence, style="bold"), *(Text(rule, style="dim") for rule in told.rules)]
    parts += [Text(f"no figures: {_failed(row)}", style="red") for row in failures(rows)]
    for board in boards(rows):
        grid = Table(title=board.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for name in _NAMES:
            grid.add_column(name, justify="left" if name == "method" else "right")
        for entry in board.entries:
            method, *cells = _texts(entry)
            grid.add_row(Text(method if entry.seeds == 1 else f"{method} ({entry.seeds} seeds)"), *map(Text, cells))
        parts += [Text(), grid]
    return Group(*parts)


def markdown(rows: Rows, *, title: str = "Benchmark") -> str:
    """The boards as GitHub-flavoured Markdown."""
    told = headline(rows)
    lines = [f"# {escaped(title)}", "", f"**{escaped(told.sentence)}**", ""]
    lines += [*(f"- {escaped(rule)}" for rule in told.rules), ""]
    if failed := failures(rows):
        lines += ["## Without figures", "", *(f"- {escaped(_failed(row))}" for row in failed), ""]
    for board in boards(rows):
        lines += [f"## {escaped(board.title)}", "", *markdown_table(_NAMES, [_texts(e) for e in board.entries])]
    return "\n".join(lines).rstrip() + "\n"


def html(rows: Rows, *, title: str = "Benchmark", provenance: Mapping[str, Any] | None = None) -> str:
    """The boards with their plots as one page without scripts or outside files.

    Args:
        rows: what was run.
        title: what the page is called.
        provenance: what it takes to run it again: command, seeds, versions, hashes; None takes what the rows tell.
    """
    found = boards(rows)
    return page(
        "report_bench.html.jinja",
        title=title,
        headline=headline(rows),
        subtitle=f"{words.counted(len(taken(rows)), 'cell')}, {words.counted(len(found), 'comparison')}",
        failed=[_failed(row) for row in failures(rows)],
        boards=[_board(number, board) for number, board in enumerate(found, 1)],
        names=_NAMES,
        provenance=flat(dict(_origin(rows) if provenance is None else provenance)),
    )


def write(
    rows: Rows,
    folder: str | Path,
    *,
    title: str = "Benchmark",
    provenance: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write `report.json`, `report.md` and `report.html` into a folder, each whole or not at all; their paths."""
    told = {
        "headline": headline(rows).sentence,
        "rows": [{**row, **noted(row)} for row in rows],
        "provenance": _origin(rows) if provenance is None else provenance,
    }
    text = json.dumps(plain(told), indent=2, ensure_ascii=False, allow_nan=False)
    page_ = html(rows, title=title, provenance=provenance)
    return written(folder, {"report.json": text + "\n", "report.md": markdown(rows, title=title), "report.html": page_})


def _origin(rows: Rows) -> dict[str, Any]:
    """Commands, data, seeds, versions and machines that the rows tell."""
    told = [row["provenance"] for row in rows if row.get("provenance")]
    data = {
        str(row["dataset"]): row["provenance"]["data"].get("sha256")
        for row in rows
        if (row.get("provenance") or {}).get("data")
    }
    found: dict[str, Any] = {
        "command": list(dict.fromkeys(one["command"] for one in told if one.get("command"))),
        "data sha256": data,
        "options": {option: ", ".join(having) for option, having in options(rows).items()},
        "seed": sorted({row["seed"] for row in rows if row.get("seed") is not None}),
    }
    for name in ("versions", "hardware"):
        kinds = list({json.dumps(one[name], sort_keys=True): one[name] for one in told if one.get(name)}.values())
        found |= {name if n == 0 else f"{name} {n + 1}": kind for n, kind in enumerate(kinds)}
    return {name: value for name, value in found.items() if value}


# ---- boards ---------------------------------------------------------------------------------------------------------


def _board(number: int, board: Board) -> dict[str, Any]:
    """What the page shows of a board."""
    every = list(dict.fromkeys(name for entry in board.entries for name in entry.figures))
    return {
        "id": f"board-{number}",
        "title": board.title,
        "rows": [(entry.method, entry.seeds, _cells(entry)) for entry in board.entries],
        "ranked_by": board.entries[0].ranked_by,
        "plots": list(pictures(board).values()),
        "every": every,
        "all": [(entry.method, [_with_interval(entry, name) for name in every]) for entry in board.entries],
    }


def pictures(board: Board) -> dict[str, tuple[str, Markup]]:
    """Captions and plots, of what enough methods have figures for: `harm`, `time`, `retention`."""
    held = words.preferred(board.entries[0].figures, "efficacy")
    ranked = board.entries[0].ranked_by
    harm = [
        plots.Point(e.method, 1 - lost, gained, _less(e.intervals.get(_HARM)), e.intervals.get(held))
        for e in board.entries
        if (lost := _finite(e.figures.get(_HARM))) is not None and (gained := _finite(e.figures.get(held))) is not None
    ]
    price = [
        plots.Point(e.method, max(e.seconds, 1e-3), quality, None, e.intervals.get(ranked))
        for e in board.entries
        if e.seconds is not None and (quality := _finite(e.figures.get(ranked))) is not None
    ]
    followed, kept = _retained(board, held)
    drawn: dict[str, tuple[str, Markup]] = {}
    if len(harm) > 1:
        picture = plots.scatter(harm, title="Efficacy against harm", x="neighbour answers changed", y=held)
        drawn["harm"] = f"Efficacy against harm: {held} over neighbour answers that changed (1 - {_HARM})", picture
    if len(price) > 1:
        name = "seconds of editing, logarithmic"
        picture = plots.scatter(
            price, title="Time against quality", x=name, y=ranked, marks=words.TIMES, told=words.seconds
        )
        drawn["time"] = f"Time against quality: {ranked} over the seconds that the edits took", picture
    if kept:
        picture = plots.lines(kept, title="Retention", x="edits so far", y=followed)
        drawn["retention"] = f"Retention: {followed} over all edits so far", picture
    return drawn


def _retained(board: Board, held: str) -> tuple[str, list[plots.Series]]:
    """The figure that the most methods were followed by, of equals the one that is preferred, and their lines."""
    found = {
        name: [plots.Series(e.method, line) for e in board.entries if len(line := _line(e, name)) > 1]
        for name in dict.fromkeys((held, "efficacy_gen", "efficacy"))
    }
    name = max(found, key=lambda name: len(found[name]))
    return name, found[name]


def _line(entry: Entry, name: str) -> tuple[tuple[float, float], ...]:
    return tuple((float(n), value) for n, found in entry.retention if (value := _finite(found.get(name))) is not None)


def _cells(entry: Entry) -> list[_Cell]:
    """A line of a board for the page, by `_NAMES` without the method."""
    gains = [words.preferred(entry.figures, name) for name in _GAINS]
    names = [*gains, _HARM, None, words.preferred(entry.figures, "score"), None]
    drawn = [Markup("") if name is None else _span(entry, name) for name in names]
    return [_Cell(text, picture) for text, picture in zip(_texts(entry)[1:], drawn, strict=True)]


def _texts(entry: Entry) -> list[str]:
    """A line of a board in words, by `_NAMES`."""
    shares = [entry.figures.get(words.preferred(entry.figures, name)) for name in _GAINS]
    shares.append(entry.figures.get(_HARM))
    told = [number(value) if value is None or not math.isfinite(value) else words.percent(value) for value in shares]
    score = entry.figures.get(words.preferred(entry.figures, "score"))
    time = NONE if entry.seconds is None else words.seconds(entry.seconds)
    return [entry.method, *told, _surprise(entry.surprise), number(score), time]


def _surprise(value: float | None) -> str:
    if value is None:
        return NONE
    if not math.isfinite(value):
        return number(value)
    return f"{100 * value:+.0f}%" if value < 1 else f"×{1 + value:.3g}"


def _span(entry: Entry, name: str) -> Markup:
    value = _finite(entry.figures.get(name))
    if value is None:
        return Markup("")
    return plots.span(value, bounds=entry.intervals.get(name), label=f"{entry.method}: {name} {number(value)}")


def _with_interval(entry: Entry, name: str) -> tuple[str, str]:
    bounds = entry.intervals.get(name)
    told = "" if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}"
    return number(entry.figures.get(name)), told


def _said(entry: Entry) -> str:
    """The best method's figures for the headline."""
    parts = []
    if (held := entry.figures.get(words.preferred(entry.figures, "efficacy"))) is not None:
        parts.append(f"{words.percent(held)} are held")
    if (kept := entry.figures.get(_HARM)) is not None:
        parts.append(f"{words.percent(kept)} of neighbour answers stay the same")
    if (more := words.surprise(entry.before, entry.figures)) is not None:
        parts.append(more)
    if entry.seconds is not None:
        parts.append(f"it takes {words.seconds(entry.seconds)}")
    return _listed(parts)


def _close(first: Entry, other: Entry) -> bool:
    """Whether the intervals of the figure that ranks them overlap."""
    mine, yours = first.intervals.get(first.ranked_by), other.intervals.get(first.ranked_by)
    return mine is not None and yours is not None and yours[1] >= mine[0]


def _failed(row: Row) -> str:
    parts = [row["method"], f"{row['n']:,} of {row['dataset']}", row.get("model", ""), row.get("mode", "")]
    seed = f"seed {row['seed']}" if "seed" in row else ""
    return f"{', '.join(part for part in (*parts, seed) if part)}: {row.get('error') or 'no figures'}"


def _less(bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if bounds is None else (1 - bounds[1], 1 - bounds[0])


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
