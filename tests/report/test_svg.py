"""Elements of SVG."""

from retcon.report.svg import picture, short, tag


def test_attributes_and_text_are_escaped_and_numbers_short() -> None:
    assert tag("text", "<&>", class_='a"b', stroke_width=1 / 3) == (
        '<text class="a&#34;b" stroke-width="0.33">&lt;&amp;&gt;</text>'
    )


def test_elements_within_elements_are_not_escaped_again() -> None:
    assert tag("g", tag("title", "a < b")) == "<g><title>a &lt; b</title></g>"


def test_numbers_lose_what_nobody_sees() -> None:
    assert [short(value) for value in (1.0, 0.5, 1.234, 3, "x")] == ["1", "0.5", "1.23", 3, "x"]


def test_a_picture_says_what_it_shows_and_has_its_size_only_where_asked() -> None:
    wide, own = picture(4.0, 2.0, "what", []), picture(4.0, 2.0, "what", [], natural=True)
    assert 'viewBox="0 0 4 2"' in wide
    assert 'aria-label="what"' in wide
    assert "width=" not in wide
    assert 'width="4" height="2"' in own
