"""What was located, for a terminal: shaded cells that read in plain text too."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from retcon.locate.attribution import Attributions
from retcon.locate.choose import Suggestion
from retcon.locate.tracing import Kind, Trace

__all__ = ["KINDS", "heat", "label", "neurons", "reasons"]

KINDS: dict[Kind, str] = {"hidden": "block output", "mlp": "MLP output", "attn": "attention output"}
"""What a kind of restore puts back."""

_SHADES = " ·░▒▓█"
_BOUNDS = (0.05, 0.2, 0.4, 0.6, 0.8)
_COLOURS: dict[Kind, str] = {"hidden": "magenta", "mlp": "green", "attn": "red"}
_MOST_COLUMNS, _LABEL = 60, 16


def label(token: str) -> str:
    """A token on one line, without the space it may begin with.

    >>> label(" Tower"), label("\\n"), label(" ")
    ('Tower', '⏎', '␠')
    """
    return token.strip() or "".join({"\n": "⏎", "\t": "⇥"}.get(letter, "␠") for letter in token)


def heat(trace: Trace) -> RenderableType:
    """The grid of a trace: tokens down, layers across, a cell the darker the more of the answer comes back."""
    n_layers, scale = trace.restored.shape[0], max(trace.high - trace.low, float(trace.effects.max()), 1e-12)
    step = -(-n_layers // _MOST_COLUMNS)  # a column shows the strongest of so many layers
    cell = 2 if -(-n_layers // step) <= _MOST_COLUMNS // 2 else 1
    lines = [Text(f"{_short(trace.prompt, 60)} → {trace.answer}", style="bold"), Text(_sentence(trace)), Text()]
    ruler = Text(f"{'layer':<{_LABEL + 3}}", style="dim")
    for start in range(0, n_layers, 5 * step):
        shown = len(range(start, min(start + 5 * step, n_layers), step))
        ruler.append(f"{start:<{shown * cell}}"[: shown * cell] if shown > 1 else str(start))
    lines.append(ruler)
    for row, column in enumerate(trace.columns):
        inside = trace.subject[0] <= column <= trace.subject[1]
        name = _short(label(trace.tokens[column]), _LABEL)
        line = Text(f"{'*' if inside else ' '} {name:<{_LABEL}} ", style="bold" if inside else "")
        shares = [max(trace.effects[i : i + step, row].tolist()) / scale for i in range(0, n_layers, step)]
        line.append("".join(_shade(share) * cell for share in shares), style=_COLOURS[trace.config.kind])
        lines.append(line)
    low, high = trace.low, trace.low + scale
    shades = "  ".join(f"{mark} from {bound:.0%}" for mark, bound in zip(_SHADES[1:], _BOUNDS, strict=True))
    lines += [Text(), Text(f"{shades} of the way from {low:.3f} to {high:.3f}; * subject", style="dim"), _peak(trace)]
    return Group(*lines)


def _sentence(trace: Trace) -> str:
    said = "" if trace.known else "; it is not what the model says"
    return f"p({label(trace.token)}) is {trace.high:.3f}, with the subject corrupted {trace.low:.3f}{said}"


def _peak(trace: Trace) -> Text:
    """Where most comes back within the subject, and at its last token, the site that edits write to."""
    inside = [place for place, c in enumerate(trace.columns) if trace.subject[0] <= c <= trace.subject[1]]
    values = trace.restored[:, inside]
    layer, place = divmod(int(values.argmax()), len(inside))
    said = [_most(trace, inside[place], layer)]
    if place < len(inside) - 1:
        said.append(f"the subject's last token: {_most(trace, inside[-1], int(values[:, -1].argmax()))}")
    return Text(f"most comes back within the subject by the {KINDS[trace.config.kind]} of {'; '.join(said)}")


def _most(trace: Trace, place: int, layer: int) -> str:
    return f"“{label(trace.tokens[trace.columns[place]])}” at layer {layer}: {float(trace.restored[layer, place]):.3f}"


def _shade(share: float) -> str:
    """
    >>> [_shade(share) for share in (-1, 0.1, 0.5, 1)]
    [' ', '·', '▒', '█']
    """
    return _SHADES[sum(share >= bound for bound in _BOUNDS)]


def _short(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def neurons(found: Attributions, fact: int, prompt: str, *, most: int = 4) -> RenderableType:
    """How much of one fact hangs on each layer, and its `most` strongest neurons with their scores."""
    against = f", against {found.against[fact]}" if found.against[fact] else ""
    mass = found.mass()[fact]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("layer", "mass"):
        table.add_column(name, justify="right")
    table.add_column("", no_wrap=True)
    table.add_column("80%", justify="right")
    table.add_column("strongest neurons, with their scores")
    for place, layer in enumerate(found.layers):
        scores = found.scores[layer][fact]
        order = scores.abs().argsort(descending=True)[:most].tolist()
        said = "  ".join(f"{n} {float(scores[n]):+.3f}" for n in order if float(scores[n]))
        held = int(found.top(layer, 0.8)[fact].sum()) if float(mass[place]) else 0
        bar = "█" * round(6 * float(mass[place] / mass.max().clamp_min(1e-30)))
        table.add_row(str(layer), f"{float(mass[place]):.3f}", Text(bar, style="green"), str(held), said)
    head = Text(f"{_short(prompt, 60)} → {found.answers[fact]}{against}", style="bold")
    value = "difference of log-probabilities" if against else "log-probability"
    said = (
        f"{value} {float(found.logprob[fact]):.3f}; {found.how} scores in nats; 80%: neurons that hold it of the mass"
    )
    return Group(head, Text(said), table)


def reasons(found: Suggestion) -> RenderableType:
    """The evidence behind a suggestion, layer by layer."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", justify="right")
    for name in found.evidence:
        table.add_column({"tracing": "indirect effect"}.get(name, f"{name} mass, nats"), justify="right")
        table.add_column("", no_wrap=True)
    table.add_column("")
    for layer in range(len(found.evidence[found.by])):
        cells: list[str | Text] = [str(layer)]
        for values in found.evidence.values():
            share = max(values[layer], 0.0) / (max(values) or 1.0)
            cells += [f"{values[layer]:.4f}", Text("█" * round(12 * max(share, 0.0)), style="green")]
        table.add_row(*cells, "← suggested" if layer in found.layers else "")
    return Group(*(Text(line) for line in _rule(found)), table)


def _rule(found: Suggestion) -> list[str]:
    width = len(found.layers)
    what = "MLP indirect effect" if found.by == "tracing" else f"{found.by} attribution mass"
    if found.tracing is not None and found.tracing.kind != "mlp":
        what = f"indirect effect of the {KINDS[found.tracing.kind]}"
    facts = f"{found.used} of {found.given} facts" if found.used < found.given else f"{found.given} facts"
    named = " ".join(map(str, found.layers))
    whole = "the lost probability" if found.by == "tracing" else "all mass"
    known = ", those whose answer the model gives" if found.used < found.given else ""
    lines = [
        f"Suggested layers: {named}",
        f"of all {width} neighbouring layers above layer 0, those with the largest mean {what}"
        f" at the subject's last token, {found.share:.0%} of {whole}; {facts}{known}",
    ]
    others = {name: window for name, window in found.windows.items() if window != found.layers}
    lines += [f"{name} mass alone would choose {' '.join(map(str, window))}" for name, window in others.items()]
    return [*lines, "A first guess: where a fact is read out is not always where it is best edited; measure both."]
