"""Figures say what they show, are a thousand pixels wide, and are the same bytes each time."""

import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from retcon.errors import RetconError
from retcon.locate import Attributions, Suggestion, Trace, Tracing, figure


def test_the_heat_map_names_tokens_layers_the_unit_and_both_ends(made_trace: Trace) -> None:
    drawn = figure.heat_map(made_trace)
    axes, bar = drawn.axes
    ticks = axes.get_yticklabels()
    assert [tick.get_text() for tick in ticks] == ["A$", "bLue", "tower", "⏎"]
    assert [tick.get_fontweight() for tick in ticks] == ["normal", "bold", "bold", "normal"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [str(layer) for layer in range(10)]
    assert axes.get_xlabel() == "centre of the 10 layers whose MLP outputs are restored"
    assert bar.get_ylabel() == "probability of “tall”"
    title, lines = (text.get_text() for text in drawn.texts)
    assert title == "A$ bLue tower is $ → tall $x$ indeed"
    ends = "0.900 clean, 0.100 with the subject (bold) corrupted"
    assert lines == f"probability of “tall”, not what the model says: {ends}"
    hidden = figure.heat_map(replace(made_trace, config=Tracing()))
    assert hidden.axes[0].get_xlabel() == "layer whose block output is restored"


def test_cells_hold_the_probabilities(made_trace: Trace) -> None:
    (mesh,) = figure.heat_map(made_trace).axes[0].collections
    values = mesh.get_array()
    assert values is not None
    assert values.reshape(4, 10).T.tolist() == made_trace.restored.tolist()
    assert mesh.get_clim() == (0.1, 0.9)


@pytest.mark.parametrize("what", ["trace", "neurons", "layers"])
def test_files_are_whole_wide_enough_and_reproducible(
    what: str, made_trace: Trace, made_scores: Attributions, made_suggestion: Suggestion, tmp_path: Path
) -> None:
    def drawn() -> object:
        if what == "trace":
            return figure.heat_map(made_trace)
        if what == "neurons":
            return figure.neuron_bars(made_scores, 1, "A $ prompt")
        return figure.layer_bars(made_suggestion, "tiny")

    first, again = (figure.save(drawn(), tmp_path / name / "f.v1") for name in ("a", "b"))  # type: ignore[arg-type]
    assert [path.name for path in first] == ["f.v1.svg", "f.v1.png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert first[0].read_text().startswith("<?xml")
    assert struct.unpack(">II", first[1].read_bytes()[16:24])[0] == 1000
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["f.v1.png", "f.v1.svg"]


def test_a_script_without_glyphs_is_drawn_without_a_warning(made_trace: Trace, tmp_path: Path) -> None:
    figure.save(
        figure.heat_map(replace(made_trace, prompt="東京は", tokens=("東", "京", "は", "\ufffd"))), tmp_path / "f"
    )


def test_neurons_are_ranked_and_layers_split_by_sign(made_scores: Attributions) -> None:
    left, right = figure.neuron_bars(made_scores, 0, "x").axes
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["1", "4", "5"]
    assert [tick.get_text() for tick in right.get_yticklabels()] == ["4 · 2", "4 · 5", "5 · 1"]
    heights = [patch.get_height() for patch in left.patches]  # type: ignore[attr-defined]
    assert heights == [0.0, 2.0, 0.25, 0.0, -0.5, 0.0]


def test_the_suggested_layers_are_named(made_suggestion: Suggestion) -> None:
    drawn = figure.layer_bars(made_suggestion, "tiny")
    assert len(drawn.axes) == 2
    assert drawn.texts[0].get_text() == "tiny: layers 2 to 3 are suggested"


def test_a_missing_extra_is_named(made_trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RetconError, match=r"pip install 'retcon-lm\[explain\]'"):
        figure.heat_map(made_trace)
