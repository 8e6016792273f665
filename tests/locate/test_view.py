"""What a terminal shows can be read without colours."""

from dataclasses import replace
from io import StringIO

import torch
from rich.console import Console, RenderableType

from retcon.locate import Attributions, Suggestion, Trace, view


def shown(what: RenderableType, width: int = 80) -> list[str]:
    stream = StringIO()
    Console(file=stream, width=width, color_system=None).print(what)
    return stream.getvalue().splitlines()


def test_a_cell_is_the_darker_the_more_comes_back(made_trace: Trace) -> None:
    lines = shown(view.heat(made_trace))
    rows = {line[2:18].strip(): line[19:] for line in lines if line[:2] in ("* ", "  ") and len(line) > 19}
    assert rows["tower"] == " " * 6 + "▓▓" + " " * 12
    assert rows["⏎"] == " " * 18 + "██"
    assert rows["A$"].strip() == rows["bLue"].strip() == ""
    assert [line[2:].split()[0] for line in lines if line.startswith("* ")] == ["bLue", "tower"]


def test_it_says_what_the_ends_of_the_scale_are_and_where_the_peak_is(made_trace: Trace) -> None:
    text = " ".join(" ".join(shown(view.heat(made_trace))).split())
    assert "A$ bLue tower is $ → tall $x$ indeed" in text
    assert "p(tall) is 0.900, with the subject corrupted 0.100; it is not what the model says" in text
    assert "of the way from 0.100 to 0.900; * subject" in text
    assert "within the subject by the MLP output of “tower” at layer 3: 0.700" in text
    made_trace.restored[0, 1] = 0.8
    text = " ".join(" ".join(shown(view.heat(made_trace))).split())
    assert "“bLue” at layer 0: 0.800; the subject's last token: “tower” at layer 3: 0.700" in text


def test_a_deep_model_fits_the_screen_and_shows_its_strongest_layers(made_trace: Trace) -> None:
    for n_layers, place in ((30, 56), (48, 28), (120, 14)):
        restored = torch.full((n_layers, 4), 0.1, dtype=torch.float64)
        restored[28, 2] = 0.9
        lines = shown(view.heat(replace(made_trace, restored=restored)))
        assert max(map(len, lines)) <= 80
        (row,) = (line for line in lines if line.startswith("* tower"))
        assert row[19:].index("█") == place
        (ruler,) = (line for line in lines if line.startswith("layer"))
        assert ruler[19] == "0"


def test_neurons_are_listed_by_strength_with_their_sign(made_scores: Attributions) -> None:
    lines = shown(view.neurons(made_scores, 0, "The tower is in", most=2), 100)
    assert lines[0].startswith("The tower is in → Paris")
    assert "log-probability -1.500; gradient scores in nats" in lines[1]
    (row,) = (line for line in lines if line.split()[:1] == ["4"])
    assert row.split() == ["4", "2.500", "█" * 6, "1", "2", "+2.000", "5", "-0.500"]
    (empty,) = (line for line in lines if line.split()[:1] == ["1"])
    assert empty.split() == ["1", "0.000", "0"]
    assert "→ Rome, against Lima" in shown(view.neurons(made_scores, 1, "x"))[0]


def test_a_suggestion_comes_with_its_rule_and_its_evidence(made_suggestion: Suggestion) -> None:
    lines = shown(view.reasons(made_suggestion), 100)
    text = " ".join(" ".join(lines).split())
    assert lines[0] == "Suggested layers: 2 3"
    assert "of all 2 neighbouring layers above layer 0, those with the largest mean MLP indirect effect" in text
    assert "at the subject's last token, 88% of the lost probability; 3 of 4 facts" in text
    assert "gradient mass alone would choose 4 5" in text
    assert "measure" in text
    assert [line.split()[0] for line in lines if "← suggested" in line] == ["2", "3"]
