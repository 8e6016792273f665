"""What probes found, for people: a terminal table, and Markdown."""

from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from retcon import storage
from retcon.probes.record import Probed, ProbeResult
from retcon.probes.table import PROBES
from retcon.probes.verdict import over_twin

__all__ = ["markdown", "table", "write"]

_NONE = "–"
_NUMBERS = ("recovery", "unlearned", "attacked", "original", "attacked original", "attacked twin", "n", "seconds")
_MEANING = (
    "Shares of the known questions whose answer comes out. *unlearned*, *original*: when plainly asked; *attacked*: by "
    "the probe. Recovery is (attacked - unlearned) / (original - unlearned): 0 nothing came back, 1 all of it. The "
    "lens counts answers whose first token can be read in some layer, reverse queries count subjects."
)


def table(probed: Probed) -> RenderableType:
    """All rows for a terminal, and the verdict."""
    grid = Table(title=_title(probed), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    twin = probed.has_twin
    for name in ("probe", *_shown(twin), "note"):
        grid.add_column(name, justify="right" if name in _NUMBERS else "left", overflow="fold")
    for result in probed.results:
        cells = _cells(result, twin)
        back = result.recovery or 0.0
        style = "red" if back >= 0.5 else "yellow" if back >= 0.1 else "dim" if result.failed else ""
        grid.add_row(*(Text(cell, style=style if place < 2 else "") for place, cell in enumerate(cells)))
    return Group(grid, Text(_plain(probed)), Text(probed.verdict(), style="bold"))


def markdown(probed: Probed) -> str:
    """All rows as GitHub-flavoured Markdown, the verdict first."""
    names = ["probe", *_shown(probed.has_twin), "note", "what it is"]
    rows = [[*_cells(result, probed.has_twin), PROBES[result.name].about] for result in probed.results]
    lines = [f"# {_title(probed)}", "", f"**{probed.verdict()}**", "", _plain(probed), ""]
    lines += [f"| {' | '.join(map(_safe, cells))} |" for cells in (names, ["---"] * len(names), *rows)]
    lines += ["", _MEANING]
    curves = [result for result in probed.results if "curve" in result.detail]
    if curves:
        lines += ["", "## Relearning, step by step", ""]
        lines += [line for result in curves for line in _curve(result)]
    return "\n".join(lines).rstrip() + "\n"


def write(probed: Probed, folder: str | Path) -> list[Path]:
    """Write `probes.json` and `probes.md` into a folder, each whole or not at all; their paths."""
    paths = []
    for kind, text in {"json": probed.to_json() + "\n", "md": markdown(probed)}.items():
        path = Path(folder) / f"probes.{kind}"
        with storage.new_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def _title(probed: Probed) -> str:
    return f"Getting answers back from {probed.model} with patch {probed.patch} ({probed.method or 'by hand'})"


def _plain(probed: Probed) -> str:
    """What plain questions give, in a sentence."""
    start = f"{probed.known} of {probed.asked} answers were known."
    if not probed.known:
        return start
    twin = f", and {_share(probed.twin)} of them by the model that never saw them" if probed.has_twin else ""
    return f"{start} Plainly asked, {_share(probed.unlearned)} of these are still given{twin}."


def _shown(twin: bool) -> list[str]:
    """The columns after the probe's name."""
    return [
        "recovery", "unlearned", "attacked", *(["attacked twin"] if twin else []), "attacked original", "n", "seconds"
    ]  # fmt: skip


def _cells(result: ProbeResult, twin: bool) -> list[str]:
    settings = {key: value for key, value in result.setting.items() if key not in ("prompt", "version", "steps")}
    told = ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)
    values = [result.unlearned, result.attacked, *([result.attacked_twin] if twin else []), result.attacked_original]
    shown = [_share(value) for value in values] if not result.failed else [_NONE] * len(values)
    note = result.note
    gap = over_twin(result)
    if gap is not None and "area" in result.detail:
        note = "; ".join(part for part in (note, f"area under the curve {gap:+.2f} over the twin's") if part)
    return [
        result.name + (f" ({told})" if told else ""),
        _NONE if result.recovery is None else f"{result.recovery:.2f}",
        *shown,
        str(result.n) if result.n else _NONE,
        f"{result.seconds:.1f}",
        note,
    ]


def _curve(result: ProbeResult) -> list[str]:
    curves = result.detail["curve"]
    steps = list(next(iter(curves.values())))
    lines = [f"{result.name}, lr {result.setting['lr']:g}, trained on {result.setting['trained']}:", ""]
    lines.append(f"| steps | {' | '.join(steps)} | area |")
    lines.append(f"|{' --- |' * (len(steps) + 2)}")
    for arm, curve in curves.items():
        values = " | ".join(_share(curve[step]) for step in steps)
        lines.append(f"| {arm} | {values} | {_share(result.detail['area'][arm])} |")
    return [*lines, ""]


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}"


def _safe(text: str) -> str:
    """A cell that no table trips over."""
    return " ".join(text.split()).replace("|", "\\|")
