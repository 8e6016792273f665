"""What changed between two answers."""

from retcon.report.differences import marked


def test_words_that_went_and_came_are_marked() -> None:
    before, after = marked("It stands in Paris since 1889.", "It stands in Rome since 1889.")
    assert before == "It stands in <del>Paris</del> since 1889."
    assert after == "It stands in <ins>Rome</ins> since 1889."


def test_answers_that_are_alike_have_no_marks() -> None:
    assert marked("the same <b>", "the same <b>") == ("the same &lt;b&gt;", "the same &lt;b&gt;")


def test_answers_with_nothing_in_common_are_marked_whole() -> None:
    assert marked("a football player of note", "I do not know.") == (
        "<del>a football player of note</del>",
        "<ins>I do not know.</ins>",
    )


def test_markup_is_text_and_nothing_is_no_mark() -> None:
    assert marked("x <i>y", "x <i>z")[1] == "x <ins>&lt;i&gt;z</ins>"
    assert marked("only that", "only") == ("only <del>that</del>", "only")
    assert marked("", "word") == ("", "<ins>word</ins>")
