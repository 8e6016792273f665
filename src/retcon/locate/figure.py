"""Figures of what was located, as SVG and PNG; they need matplotlib."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retcon import storage
from retcon.errors import RetconError
from retcon.locate.attribution import Attributions
from retcon.locate.choose import Suggestion
from retcon.locate.tracing import Kind, Trace
from retcon.locate.view import KINDS, label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["heat_map", "layer_bars", "neuron_bars", "require", "save"]

_MAPS: dict[Kind, tuple[str, str]] = {
    "hidden": ("Purples", "#54278f"),
    "mlp": ("Greens", "#006d2c"),
    "attn": ("Reds", "#a50f15"),
}
"""Colour map, and the dark colour that goes with it; as in the paper."""
_WIDTH, _DPI = 10.0, 100
"""Inches and dots: figures are a thousand pixels wide."""


def require() -> None:
    """Refuse, with the cure, where matplotlib is missing.

    Raises:
        RetconError: it is.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise RetconError("figures need matplotlib: run `pip install 'retcon-lm[explain]'`") from None


def heat_map(trace: Trace) -> "Figure":
    """A trace: the prompt's tokens down, the subject's marked, layers across, the answer's probability as colour."""
    n_layers, n = trace.restored.shape
    name, dark = _MAPS[trace.config.kind]
    height = 1.9 + 0.34 * n
    figure = _figure(height)
    axes = figure.add_axes((0.17, 0.75 / height, 0.70, 0.34 * n / height))
    bar = figure.add_axes((0.89, 0.75 / height, 0.018, 0.34 * n / height))
    top = max(trace.high, float(trace.restored.max()))
    mesh = axes.pcolormesh(
        trace.restored.T.numpy(), cmap=name, vmin=trace.low, vmax=top, edgecolors="white", linewidth=0.4
    )
    axes.invert_yaxis()
    axes.set_yticks([row + 0.5 for row in range(n)], [label(trace.tokens[column]) for column in trace.columns])
    axes.set_xticks([layer + 0.5 for layer in _ticks(n_layers)], [str(layer) for layer in _ticks(n_layers)])
    axes.tick_params(length=0, labelsize=11)
    axes.tick_params(axis="y", pad=12)
    for side in axes.spines.values():
        side.set_visible(False)
    rows = [row for row, column in enumerate(trace.columns) if trace.subject[0] <= column <= trace.subject[1]]
    for row, tick in enumerate(axes.get_yticklabels()):
        _plain(tick)
        if row in rows:
            tick.set_fontweight("bold")
            tick.set_color(dark)
    _mark_subject(axes, rows, dark)
    what = f"layer whose {KINDS['hidden']} is restored"
    if trace.config.kind != "hidden":
        what = f"centre of the {trace.config.window} layers whose {KINDS[trace.config.kind]}s are restored"
    axes.set_xlabel(what, fontsize=11)
    scale = figure.colorbar(mesh, cax=bar)
    scale.outline.set_visible(False)
    scale.ax.tick_params(length=0, labelsize=10)
    _plain(scale.ax.set_ylabel(f"probability of “{label(trace.token)}”", fontsize=11))
    said = "" if trace.known else ", not what the model says"
    clean = f"probability of “{label(trace.token)}”{said}: {trace.high:.3f} clean"
    lines = f"{clean}, {trace.low:.3f} with the subject (bold) corrupted"
    _titled(figure, f"{trace.prompt} → {trace.answer}", lines, height)
    return figure


def _mark_subject(axes: Any, rows: Sequence[int], colour: str) -> None:
    """A bar along the rows of the subject."""
    if rows:
        ends, place = [rows[0] + 0.08, rows[-1] + 0.92], axes.get_yaxis_transform()
        axes.plot([-0.008, -0.008], ends, color=colour, linewidth=3, transform=place, clip_on=False)


def neuron_bars(found: Attributions, fact: int, prompt: str, *, most: int = 15) -> "Figure":
    """One fact's attributions: what speaks for and against the answer in each layer, and its strongest neurons."""
    figure = _figure(5.2)
    left, right = figure.add_axes((0.08, 0.13, 0.50, 0.66)), figure.add_axes((0.72, 0.13, 0.25, 0.66))
    pro = [float(scores[fact].clamp_min(0).sum()) for scores in found.scores.values()]
    con = [float(scores[fact].clamp_max(0).sum()) for scores in found.scores.values()]
    places = range(len(found.layers))
    left.bar(places, pro, color="#2c7a4b", label="for the answer")
    left.bar(places, con, color="#b5443c", label="against it")
    left.axhline(0, color="black", linewidth=0.8)
    ticks = _ticks(len(found.layers))
    left.set_xticks(ticks, [str(found.layers[tick]) for tick in ticks])
    left.set_xlabel("layer", fontsize=11)
    left.set_ylabel("sum of the neurons' scores, nats", fontsize=11)
    left.legend(frameon=False, fontsize=10)
    ranked = _strongest(found, fact, most)
    values = [value for *_, value in ranked]
    right.barh(range(len(ranked)), values, color=["#2c7a4b" if value > 0 else "#b5443c" for value in values])
    right.set_yticks(range(len(ranked)), [f"{layer} · {neuron}" for layer, neuron, _ in ranked], fontsize=9)
    right.invert_yaxis()
    right.axvline(0, color="black", linewidth=0.8)
    right.set_xlabel("score, nats", fontsize=11)
    right.set_title("strongest: layer · neuron", fontsize=11)
    for axes in (left, right):
        _bare(axes)
    against = f", against {found.against[fact]}" if found.against[fact] else ""
    form = {"gradient": "gradient × activation", "integrated": "integrated gradients"}[found.how]
    value = "difference of log-probabilities" if against else "log-probability"
    lines = f"{form} at the subject's last token     {value} {float(found.logprob[fact]):.3f}"
    _titled(figure, f"{prompt} → {found.answers[fact]}{against}", lines, 5.2)
    return figure


def _strongest(found: Attributions, fact: int, most: int) -> list[tuple[int, int, float]]:
    """(layer, neuron, score) of the largest scores of a fact."""
    every = []
    for layer, scores in found.scores.items():
        for neuron in scores[fact].abs().argsort(descending=True)[:most].tolist():
            every.append((layer, int(neuron), float(scores[fact, neuron])))
    return sorted((row for row in every if row[2]), key=lambda row: -abs(row[2]))[:most]


def layer_bars(found: Suggestion, name: str) -> "Figure":
    """The evidence behind a suggestion: one row of bars a kind, the suggested window shaded."""
    n = len(found.evidence)
    height = 1.5 + 2.1 * n
    figure = _figure(height)
    colours = {"tracing": "#238b45"}
    names = {"tracing": f"indirect effect of {len(found.layers)}\nlayers centred there"}
    for row, (kind, values) in enumerate(found.evidence.items()):
        axes = figure.add_axes((0.12, (0.7 + 2.1 * (n - 1 - row)) / height, 0.85, 1.75 / height))
        axes.axvspan(found.layers[0] - 0.5, found.layers[-1] + 0.5, color="#fde9b8", zorder=0)
        axes.bar(range(len(values)), values, color=colours.get(kind, "#4a6fa5"), zorder=2)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_ylabel(names.get(kind, f"{kind} attribution\nmass, nats"), fontsize=10)
        ticks = _ticks(len(values))
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xlim(-0.6, len(values) - 0.4)
        _bare(axes)
    axes.set_xlabel("layer", fontsize=11)
    facts = f"mean over {found.used} {'fact' if found.used == 1 else 'facts'}, at the subject's last token"
    lines = f"{facts}; shaded: the {len(found.layers)} neighbouring layers with the most by {found.by}"
    _titled(figure, f"{name}: layers {found.layers[0]} to {found.layers[-1]} are suggested", lines, height)
    return figure


def save(figure: "Figure", stem: str | Path) -> list[Path]:
    """Write `stem`.svg and `stem`.png, each whole or not at all; the same figure gives the same bytes."""
    import matplotlib

    stem = Path(stem)
    paths = []
    for kind in ("svg", "png"):
        path = stem.with_name(f"{stem.name}.{kind}")
        with (
            storage.new_file(path) as temporary,
            matplotlib.rc_context({"svg.hashsalt": "retcon", "svg.fonttype": "path"}),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # a script the font does not have: a box
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            figure.savefig(temporary, format=kind, dpi=_DPI, metadata=metadata)
        paths.append(path)
    return paths


def _figure(height: float) -> "Figure":
    require()
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), facecolor="white")


def _titled(figure: "Figure", title: str, lines: str, height: float) -> None:
    """A title as large as the figure's width lets it be, and a line below it."""
    title = " ".join(title.split())
    size = max(9.0, min(14.0, 1040 / max(len(title), 1)))
    _plain(figure.text(0.02, 1 - 0.36 / height, title, fontsize=size, fontweight="bold", va="center"))
    _plain(figure.text(0.02, 1 - 0.72 / height, lines, fontsize=11, color="#444444", va="center"))


def _plain(text: Any) -> None:
    """A dollar sign in a prompt is a dollar sign."""
    text.set_parse_math(False)


def _bare(axes: Any) -> None:
    axes.spines["top"].set_visible(False)
    axes.spines["right"].set_visible(False)
    axes.tick_params(labelsize=10)


def _ticks(n: int) -> list[int]:
    """At most sixteen evenly spaced indices below n.

    >>> _ticks(4), _ticks(30)[:4]
    ([0, 1, 2, 3], [0, 2, 4, 6])
    """
    return list(range(0, n, -(-n // 16)))
