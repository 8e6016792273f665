"""Pictures: what they draw for which numbers."""

import itertools
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retcon.report.plots import COLOURS, Point, Scale, Series, front, heat, lines, scatter, span, ticks


def marks(picture: str, tag: str, kind: str = "") -> list[ElementTree.Element]:
    """Elements of a tag, and of a class."""
    return [one for one in ElementTree.fromstring(picture).iter(tag) if kind in one.get("class", "")]


def test_a_span_shows_value_interval_and_what_was_before() -> None:
    picture = span(0.5, bounds=(0.25, 0.75), before=0.1, label="efficacy 0.5")
    (dot,), (whisker,) = marks(picture, "circle", "dot"), marks(picture, "line", "whisker")
    (before,) = marks(picture, "line", "before")
    assert (dot.get("cx"), whisker.get("x1"), whisker.get("x2"), before.get("x1")) == ("50%", "25%", "75%", "10%")
    assert ElementTree.fromstring(picture).get("aria-label") == "efficacy 0.5"
    assert marks(span(5.0, low=0, high=10, filled=False), "rect", "fill") == []


def test_names_are_text_never_markup() -> None:
    evil = '<script>"&'
    pictures = [
        span(0.5, label=evil),
        scatter([Point(evil, 0.1, 0.5), Point("b", 0.9, 0.1)], title=evil, x=evil, y=evil),
        lines([Series(evil, ((1, 0.5), (2, 0.4)))], title=evil, x=evil, y=evil),
        heat([evil], [evil], {(evil, evil): (1.0, evil)}, title=evil),
    ]
    for picture in pictures:
        assert "<script" not in picture
        assert ElementTree.fromstring(picture).get("role") == "img"


def test_the_front_is_what_none_beats() -> None:
    a, b, beaten, twin = Point("a", 0.1, 0.5), Point("b", 0.4, 0.9), Point("c", 0.4, 0.6), Point("d", 0.1, 0.5)
    assert [point.name for point in front([b, beaten, a, twin])] == ["a", "d", "b"]
    assert [point.name for point in front([a, b], "higher")] == ["b"]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_each_point_off_the_front_is_beaten_by_one_on_it(values: list[tuple[float, float]]) -> None:
    points = [Point(str(n), x, y) for n, (x, y) in enumerate(values)]
    best = front(points)
    assert best
    for point in points:
        beaten = any(other.x <= point.x and other.y >= point.y for other in best)
        assert beaten or point in best


def test_a_scatter_draws_every_point_and_names_those_of_the_front_first() -> None:
    crowd = [Point(f"method-{n}", 0.5 + n / 1000, 0.5 - n / 1000) for n in range(30)]
    picture = scatter([*crowd, Point("winner", 0.0, 1.0)], title="t", x="harm", y="gain")
    assert len(marks(picture, "g", "point")) == 31
    names = [one.text for one in marks(picture, "text", "name")]
    assert names[0] == "winner"
    assert len(names) < 31  # the others have a title only
    assert "none beats winner" in ElementTree.fromstring(picture).get("aria-label", "")
    boxes = [(float(one.get("x", 0)), float(one.get("y", 0))) for one in marks(picture, "text", "name")]
    assert len(set(boxes)) == len(boxes)


def test_a_logarithmic_axis_has_ticks_of_times() -> None:
    points = [Point("a", 2.0, 0.5), Point("b", 700.0, 0.9)]
    picture = scatter(points, title="t", x="s", y="q", marks=(1, 10, 100, 1e3), told=lambda v: f"{v:g} s")
    told = [one.text for one in marks(picture, "text", "tick")]
    assert [one for one in told if one and one.endswith("s")] == ["10 s", "100 s"]
    x = [float(one.get("cx", 0)) for one in marks(picture, "circle")]
    assert x[0] != x[1]


def test_lines_beyond_the_colours_stay_grey_and_the_best_are_named() -> None:
    many = [Series(f"m{n}", ((1, 1.0), (10, n / 20))) for n in range(12)]
    picture = lines(many, title="t", x="edits", y="held")
    assert len(marks(picture, "g", "rest")) == 12 - COLOURS
    names = [one.text for one in marks(picture, "text", "name")]
    assert names == [f"m{n}" for n in range(11, 11 - COLOURS, -1)]
    heights = [float(one.get("y", 0)) for one in marks(picture, "text", "name")]
    assert all(b - a >= 11 for a, b in itertools.pairwise(heights))


def test_one_point_alone_is_drawn() -> None:
    assert marks(lines([Series("a", ((5, 0.5),))], title="t", x="x", y="y"), "circle")
    assert marks(scatter([Point("a", 0.5, 0.5)], title="t", x="x", y="y"), "circle")


def test_a_heat_map_is_deepest_where_the_value_is_largest() -> None:
    cells: dict[tuple[str, str], tuple[float | None, str]] = {
        ("m", "0"): (1.0, "a"), ("m", "2"): (2.0, "b"), ("n", "1"): (None, "memory"),
    }  # fmt: skip
    picture = heat(["m", "n"], ["0", "1", "2"], cells, title="t")
    depths = [float(one.get("fill-opacity", 0)) for one in marks(picture, "rect", "cell")]
    assert depths == [pytest.approx(0.56), pytest.approx(1.0)]
    assert len(marks(picture, "circle", "ring")) == 1
    assert len(marks(picture, "rect", "empty")) == 4
    assert marks(heat([], [], {}, title="t"), "rect") == []


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(1, 8))
def test_ticks_are_few_round_and_inside(low: float, wide: float, most: int) -> None:
    found = ticks(low, low + wide, most)
    assert len(found) <= most + 1
    assert all(low - 1e-6 * wide - 1e-9 <= value <= low + wide + 1e-6 * wide + 1e-9 for value in found)
    assert found == sorted(found)


def test_a_scale_stays_within_its_ends() -> None:
    scale = Scale(0.0, 1.0, 10.0, 20.0)
    assert [scale(value) for value in (-1, 0, 0.5, 1, 2)] == [10, 10, 15, 20, 20]
    assert Scale(1.0, 100.0, 0.0, 2.0, log=True)(10.0) == pytest.approx(1.0)
    assert Scale(3.0, 3.0, 0.0, 2.0)(3.0) == 1.0


def test_numbers_in_a_picture_are_short_and_finite() -> None:
    picture = scatter([Point("a", 1 / 3, 2 / 3), Point("b", 0.1, 1 / 7)], title="t", x="x", y="y")
    assert not re.search(r"\d\.\d{3}", re.sub(r'aria-label="[^"]*"|<title>.*?</title>', "", picture))
    assert str(math.nan) not in picture.replace("domin", "")
