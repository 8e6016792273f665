"""Small pictures as inline SVG: pure functions of numbers and names.

Colours, widths and dashes are classes of the page's style, so that one picture serves light, dark and print. Every
picture says in words what it shows (`aria-label`), and every mark in it has a title of its own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from retcon.report.svg import picture, short, tag

__all__ = ["COLOURS", "SIZE", "Point", "Scale", "Series", "front", "heat", "lines", "scatter", "span", "ticks"]

COLOURS = 8
"""How many colours the style has, `c0` to `c7`; dashes tell lines apart without them."""

SIZE = _WIDTH, _HEIGHT = 400.0, 270.0
"""Of scatters and lines, in units of the picture."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 14.0, 22.0, 38.0
_TEXT, _LETTER, _BOLD = 11.0, 6.1, 7.2
"""Height of a label, and the width of a letter of it, thin and bold, in units of the picture."""
_NAMED = 96.0
"""Room to the right of lines for their names."""

Bounds = tuple[float, float]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Point:
    """A method in a scatter."""

    name: str
    x: float
    y: float
    x_bounds: Bounds | None = None
    y_bounds: Bounds | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """A line: points with rising x."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to places: linear, or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value is drawn."""
        low, high, here = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = (here - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from low to high: 1, 2 or 5 times a power of ten apart, at most so many.

    >>> ticks(0.0, 1.0), ticks(0.87, 0.99, 4)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.9, 0.95])
    """
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def span(
    value: float,
    *,
    bounds: Bounds | None = None,
    before: float | None = None,
    low: float = 0.0,
    high: float = 1.0,
    filled: bool = True,
    label: str = "",
) -> Markup:
    """A figure as a dot on a track, with its interval, a tick where it was before, and a bar up to it if `filled`."""
    place = Scale(low, high, 0.0, 100.0)

    def at(number: float) -> str:
        return f"{short(place(number))}%"

    parts = [tag("rect", x=0, y=6, width="100%", height=2, class_="track")]
    if filled:
        parts.append(tag("rect", x=0, y=6, width=at(value), height=2, class_="fill"))
    if bounds is not None:
        parts.append(tag("line", x1=at(bounds[0]), x2=at(bounds[1]), y1=7, y2=7, class_="whisker"))
    if before is not None:
        parts.append(tag("line", x1=at(before), x2=at(before), y1=1, y2=13, class_="before"))
    parts.append(tag("circle", cx=at(value), cy=7, r=3.5, class_="dot"))
    return tag("svg", *parts, class_="span", role="img", aria_label=label, height=14, width="100%")


def lines(series: Sequence[Series], *, title: str, x: str, y: str) -> Markup:
    """Shares along a count, one line each, named at their ends; beyond `COLOURS` lines the lower ones stay grey."""
    ranked = sorted(series, key=lambda one: one.points[-1][1], reverse=True)
    xs = sorted({point[0] for one in series for point in one.points})
    across = Scale(xs[0] if len(xs) == 1 else min(xs), max(xs), _LEFT, _WIDTH - _NAMED)
    low, high = _room([point[1] for one in series for point in one.points])
    up = Scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    marks = xs if len(xs) <= 5 else [value for value in ticks(xs[0], xs[-1], 4) if xs[0] <= value <= xs[-1]]
    parts = _axes(across, up, [(v, f"{v:,g}") for v in marks], _percents(low, high), x, y, _WIDTH - _NAMED)
    named = ranked[:COLOURS]
    for one in reversed(ranked):
        kind = f"c{named.index(one)}" if one in named else "rest"
        told = ", ".join(f"{_percent(v)} at {n:g}" for n, v in one.points)
        path = " ".join(f"{short(across(n))},{short(up(v))}" for n, v in one.points)
        dots = [tag("circle", cx=across(n), cy=up(v), r=2.5) for n, v in one.points]
        line = tag("polyline", points=path, fill="none")
        parts.append(tag("g", tag("title", f"{one.name}: {told}"), line, *dots, class_=f"line {kind}"))
    heights = _spread([up(one.points[-1][1]) for one in named], _TEXT + 1, _TOP, _HEIGHT - _BOTTOM)
    for n, (one, height) in enumerate(zip(named, heights, strict=True)):
        place = {"x": _WIDTH - _NAMED + 7, "y": height + 3.5}
        parts.append(tag("text", _cut(one.name, _NAMED - 8), **place, class_=f"name c{n}"))
    ends = "; ".join(f"{one.name} {_percent(one.points[-1][1])}" for one in ranked)
    return picture(_WIDTH, _HEIGHT, f"{title}. At the end: {ends}.", parts)


def front(points: Sequence[Point], better_x: Literal["lower", "higher"] = "lower") -> list[Point]:
    """The points that no other one beats in both directions (y: higher is better), by falling quality of x."""
    sign = 1.0 if better_x == "lower" else -1.0

    def beaten(point: Point) -> bool:
        return any(
            sign * other.x <= sign * point.x and other.y >= point.y and (other.x, other.y) != (point.x, point.y)
            for other in points
        )

    return sorted((point for point in points if not beaten(point)), key=lambda point: (sign * point.x, point.y))


def scatter(
    points: Sequence[Point],
    *,
    title: str,
    x: str,
    y: str,
    marks: Sequence[float] = (),
    told: Callable[[float], str] | None = None,
) -> Markup:
    """Methods by what is better low (x) and better high (y, a share), with the line of those that none beats.

    Args:
        points: one a method.
        title: what it shows.
        x: name of the axis, of what is better the lower it is.
        y: name of the other one.
        marks: ticks of x to choose from, none of them 0; given, the scale is logarithmic.
        told: how a value of x is written; by default as a share.
    """
    written = told or _percent
    low, high = _room([v for p in points for v in (p.y, *(p.y_bounds or ()))])
    xs = [v for p in points for v in (p.x, *(p.x_bounds or ()))]
    left, right = (min(xs) / 1.4, max(xs) * 1.4) if marks else _room(xs)
    across = Scale(left, right, _LEFT, _WIDTH - _RIGHT, log=bool(marks))
    up = Scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    shown = [v for v in marks if left <= v <= right] if marks else ticks(left, right, 4)
    shown = shown if len(shown) > 1 else sorted({min(xs), max(xs)})
    x_marks = [(v, written(v)) for v in shown]
    parts = _axes(across, up, x_marks, _percents(low, high), x, y, _WIDTH - _RIGHT)
    best = front(points)
    parts.append(tag("polyline", points=_steps(best, across, up), class_="front", fill="none"))
    corner = {"x": _WIDTH - _RIGHT - 3, "y": _HEIGHT - _BOTTOM - 6, "text_anchor": "end"}
    parts.append(tag("text", "↖ better", **corner, class_="corner"))
    dots: list[Box] = [(across(p.x) - 5, up(p.y) - 5, across(p.x) + 5, up(p.y) + 5) for p in points]
    taken = [*dots, (_WIDTH - _RIGHT - 52, _HEIGHT - _BOTTOM - 19, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM)]
    thin = [box for point in points for box in _whiskers(point, across, up)]
    names: list[Markup] = []
    for point in (*best, *(point for point in points if point not in best)):
        kind, here = "best" if point in best else "other", (across(point.x), up(point.y))
        title_ = tag("title", f"{point.name}: {y} {_percent(point.y)}, {x} {written(point.x)}")
        parts.append(tag("g", title_, *_crossed(point, across, up), class_=f"point {kind}"))
        wide = len(point.name) * (_BOLD if point in best else _LETTER)
        tries = [[*taken, *thin], taken, *([taken[len(dots) :]] if point in best else [])]  # the best are named
        if (found := next(filter(None, (_free(wide, here, others) for others in tries)), None)) is not None:
            taken.append(found)
            names.append(tag("text", point.name, **_anchored(found, here[0]), class_=f"name {kind}"))
    unbeaten = ", ".join(point.name for point in best)
    return picture(_WIDTH, _HEIGHT, f"{title}. {len(points)} methods; none beats {unbeaten}.", [*parts, *names])


def heat(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[str, str], tuple[float | None, str]],
    *,
    title: str,
) -> Markup:
    """Values as depth of colour, by row and column; a cell of None is a ring: something is there that has no size.

    Args:
        rows: names, down.
        columns: names, across.
        cells: (row, column) to its value, none below 0, and its title.
        title: what it shows.
    """
    side, gap = 20.0, 2.0
    left = max((len(row) for row in rows), default=0) * _LETTER + 8
    width, height = left + len(columns) * side + 2, len(rows) * side + 20
    largest = max((value for value, _ in cells.values() if value is not None), default=0.0) or 1.0
    every = max(1, math.ceil(len(max(columns, key=len, default="")) * _LETTER / side))
    every = every if len(columns) <= 12 else max(every, 2 if len(columns) <= 24 else 4)
    parts = []
    for down, row in enumerate(rows):
        top = down * side
        parts.append(tag("text", row, x=left - 6, y=top + side / 2 + 4, text_anchor="end", class_="tick"))
        for across, column in enumerate(columns):
            place = {"x": left + across * side, "y": top, "width": side - gap, "height": side - gap, "rx": 2}
            value, told = cells.get((row, column), (0.0, ""))
            if (row, column) not in cells:
                parts.append(tag("rect", **place, class_="empty"))
            elif value is None:
                centre = {"cx": left + across * side + side / 2 - 1, "cy": top + side / 2 - 1}
                ring = tag("circle", **centre, r=5, class_="ring")
                parts.append(tag("g", tag("title", told), tag("rect", **place, class_="empty"), ring))
            else:
                depth = 0.12 + 0.88 * value / largest
                parts.append(tag("rect", tag("title", told), **place, class_="cell", fill_opacity=depth))
    for across, column in enumerate(columns):
        if across % every == 0:
            middle = left + across * side + side / 2 - 1
            parts.append(tag("text", column, x=middle, y=height - 7, text_anchor="middle", class_="tick"))
    return picture(width, height, title, parts, natural=True)


# ---- parts of pictures ----------------------------------------------------------------------------------------------


def _axes(
    across: Scale,
    up: Scale,
    x_marks: Sequence[tuple[float, str]],
    y_marks: Sequence[tuple[float, str]],
    x: str,
    y: str,
    right: float,
) -> list[Markup]:
    """Grid lines with their numbers, and what the axes are."""
    floor = _HEIGHT - _BOTTOM
    parts = []
    for value, told in y_marks:
        height = up(value)
        parts.append(tag("line", x1=_LEFT, x2=right, y1=height, y2=height, class_="grid"))
        parts.append(tag("text", told, x=_LEFT - 5, y=height + 3.5, text_anchor="end", class_="tick"))
    for value, told in x_marks:
        place = across(value)
        parts.append(tag("line", x1=place, x2=place, y1=floor, y2=floor + 4, class_="grid"))
        parts.append(tag("text", told, x=place, y=floor + 15, text_anchor="middle", class_="tick"))
    parts.append(tag("line", x1=_LEFT, x2=right, y1=floor, y2=floor, class_="axis"))
    parts.append(tag("text", x, x=right, y=_HEIGHT - 6, text_anchor="end", class_="axis-title"))
    turned = f"translate(11 {short(_TOP)}) rotate(-90)"
    return [*parts, tag("text", y, transform=turned, text_anchor="end", class_="axis-title")]


def _crossed(point: Point, across: Scale, up: Scale) -> list[Markup]:
    """A dot with the intervals of both its values."""
    lines_ = [
        tag("line", x1=left, x2=right, y1=top, y2=bottom, class_="whisker")
        for left, top, right, bottom in _whiskers(point, across, up)
    ]
    return [*lines_, tag("circle", cx=across(point.x), cy=up(point.y), r=4.5)]


def _whiskers(point: Point, across: Scale, up: Scale) -> list[Box]:
    """The lines of a point's intervals: left, top, right, bottom."""
    x, y, found = across(point.x), up(point.y), list[Box]()
    if point.x_bounds is not None:
        found.append((across(point.x_bounds[0]), y, across(point.x_bounds[1]), y))
    if point.y_bounds is not None:
        found.append((x, up(point.y_bounds[1]), x, up(point.y_bounds[0])))
    return found


def _steps(best: Sequence[Point], across: Scale, up: Scale) -> str:
    """The front as stairs: what is reached at an x, up to the next better one."""
    corners: list[tuple[float, float]] = []
    for point in best:
        if corners:
            corners.append((across(point.x), corners[-1][1]))
        corners.append((across(point.x), up(point.y)))
    if corners:
        corners.append((_WIDTH - _RIGHT, corners[-1][1]))
    return " ".join(f"{short(a)},{short(b)}" for a, b in corners)


def _free(wide: float, dot: tuple[float, float], taken: Sequence[Box]) -> Box | None:
    """A place for a name beside its dot that covers nothing and stays inside; None where there is none."""
    x, y = dot
    right, left = ((8, 4), (7, -6), (7, 15)), ((-8 - wide, 4), (-7 - wide, -6), (-7 - wide, 15))
    middle = ((-wide / 2, -8), (-wide / 2, 18))
    for dx, dy in (right[0], left[0], *middle, *right[1:], *left[1:]):
        box = (x + dx, y + dy - _TEXT, x + dx + wide, y + dy + 2)
        inside = box[0] >= _LEFT and box[2] <= _WIDTH and box[1] >= 0 and box[3] <= _HEIGHT - _BOTTOM
        if inside and not any(_overlap(box, other) for other in taken):
            return box
    return None


def _anchored(box: Box, x: float) -> dict[str, float | str]:
    """Where a name begins that stands to the right of its dot, or ends to the left of it, or has its middle: what is
    next to the dot stays there however wide the letters of a reader's font are."""
    left, _, right, low = box
    place, anchor = (left, "start") if left > x else (right, "end") if right < x else ((left + right) / 2, "middle")
    return {"x": place, "y": low - 2.5, "text_anchor": anchor}


def _overlap(first: Box, second: Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _spread(heights: Sequence[float], apart: float, top: float, bottom: float) -> list[float]:
    """Heights (falling quality: from the top down) moved as little as needed to be so far apart."""
    found: list[float] = []
    for height in heights:
        found.append(max(height, found[-1] + apart) if found else max(height, top))
    for n in reversed(range(len(found))):
        found[n] = min(found[n], bottom - (len(found) - 1 - n) * apart)
    return found


def _room(values: Sequence[float]) -> Bounds:
    """What an axis of shares spans: the values with some room around them, never beyond 0 and 1."""
    low, high = min(values), max(values)
    pad = max(0.08 * (high - low), 0.02)
    return max(0.0, low - pad) if low >= 0 else low - pad, min(1.0, high + pad) if high <= 1 else high + pad


def _percents(low: float, high: float) -> list[tuple[float, str]]:
    return [(value, _percent(value)) for value in ticks(low, high, 4)]


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _cut(name: str, width: float) -> str:
    most = int(width / _LETTER)
    return name if len(name) <= most else f"{name[: most - 1]}…"
