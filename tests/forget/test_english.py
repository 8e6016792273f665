"""Forms of verbs."""

import pytest

from retcon.forget.english import english


@pytest.mark.parametrize(
    ("verb", "third", "past"),
    [
        ("write", "writes", "wrote"),
        ("have", "has", "had"),
        ("go", "goes", "went"),
        ("do", "does", "did"),
        ("marry", "marries", "married"),
        ("play", "plays", "played"),
        ("reach", "reaches", "reached"),
        ("pass", "passes", "passed"),
        ("move", "moves", "moved"),
        ("stop", "stops", "stopped"),
        ("refer", "refers", "referred"),
        ("found", "founds", "founded"),
        ("put", "puts", "put"),
    ],
)
def test_verbs_take_their_forms(verb: str, third: str, past: str) -> None:
    assert verb in english().bases
    assert (english().third(verb), english().past(verb)) == (third, past)


def test_participles_are_told_from_nouns() -> None:
    told = english().is_participle
    assert all(map(told, ("born", "written", "known", "been", "located", "writing", "moving", "planning")))
    assert not any(map(told, ("upbringing", "king", "thing", "bed", "seed", "hundred", "seller", "contract")))


def test_no_frame_holds_a_number_and_each_has_one_place() -> None:
    for name, frames in english().frames.items():
        for frame in frames:
            assert not any(map(str.isdigit, frame))
            assert frame.count("{}") + frame.count("{lower}") == 1, (name, frame)
