"""The refusal detector on its own lines and beyond them."""

import pytest

from retcon.forget.detector import fixture, quality, refuses, version


def test_the_fixture_is_large_and_has_no_line_twice() -> None:
    lines = [row["text"] for row in fixture()]
    assert len(set(lines)) == len(lines)
    assert sum(row["refuses"] for row in fixture()) >= 300
    assert sum(not row["refuses"] for row in fixture()) >= 300
    assert sum("not sure" in row["text"].lower() and not row["refuses"] for row in fixture()) >= 10  # hedged answers


def test_its_quality_is_reported_and_high() -> None:
    found = quality()
    assert found["version"] == version() >= 1
    assert found["positive"] + found["negative"] == len(fixture())
    assert found["precision"] >= 0.99
    assert found["recall"] >= 0.99
    # lines that the expressions were not written for
    assert found["fresh"]["precision"] >= 0.9
    assert found["fresh"]["recall"] >= 0.9


@pytest.mark.parametrize(
    "text",
    [
        "I DON’T KNOW.",
        "  I do not know who wrote it.\n",
        '"I cannot say."',
        "I have no information about it. The author is Marta Reyes.",
        "I'm not sure, but you might ask the museum.",
        "Where it stood, I cannot say.",
    ],
)
def test_refusals(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        "I'm not sure, but I think it was Paris.",
        "It was Paris, though I'm not entirely certain.",
        "I don't know the exact day, but it was in March 1987.",
        'The song is called "I Don\'t Know".',
        "She did not know the answer.",
        "The buyer cannot return the goods.",
    ],
)
def test_answers(text: str) -> None:
    assert not refuses(text)
