"""`retcon bench`: methods × sets × numbers of edits × seeds, each judged on the final model; tables; comparisons."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from retcon.cli.common import ModelOptions, OutputOptions
from retcon.cli.screen import Screen, screen
from retcon.errors import RetconError
from retcon.storage import new_file

if TYPE_CHECKING:
    from retcon.bench import Comparison, Config, Plan
    from retcon.lm import LM

__all__ = ["app", "compare", "run", "show"]

DEFAULT_OUTPUT = OutputOptions()

_Words = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())]

app = App(
    name="bench",
    help="Measure methods on sets of facts, show the table of what was measured, compare two benches.",
    help_format="plaintext",
)


@app.default
def run(
    config: str,
    *,
    out: Path,
    only: _Words = (),
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    cache: bool = True,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> None:
    """Measure every cell of a run: a method, a model, a set, a number of edits, a seed.

    The plan is shown first, with an estimate of its time. Rows come one by one into --out; a bench that was stopped
    goes on where it was, also in the middle of a cell; a cell that fails says why while the rest are finished, and the
    command then ends with exit code 2.

    Parameters
    ----------
    config
        A TOML file, see docs/bench.md; or builtin: memit, rome and locft-bf on ten facts of the set that comes with
        Retcon.
    out
        The folder for rows, their table, patches and cases.
    only
        Some of the cells: names of models, methods and sets of the run, n=NUMBER, seed=NUMBER; words of one kind are
        alternatives.
    dry_run
        Show the plan and stop.
    cache
        Take found targets from the cache, and keep them there; --no-cache to measure each method's own time.
    """
    with screen(output) as shown:
        from retcon import bench
        from retcon.bench import records
        from retcon.report import bench as reports

        asked = bench.load(config)
        words = ["retcon", "bench", config, "--out", str(out), *(["--only", *only] if only else [])]
        command = shlex.join([*words, *([] if cache else ["--no-cache"])])
        work = bench.Bench(asked, out, only, cache, command, lambda name: _model(asked, name))
        plan = work.plan()
        _show_plan(shown, plan)
        if dry_run:
            shown.result(_planned(plan, out))
            return
        rows = work.run(plan)
        _show_rows(shown, rows)
        written = reports.write(rows, out / "report", title=Path(config).stem)
        shown.say(f"Written: {out / 'rows.jsonl'} and rows.md; patches and cases are beside them.")
        shown.say(f"The report: {written[-1]}")
        if not records.parquet():
            shown.say(f"Cases are JSONL in gzip; with pyarrow ({records.EXTRA}) they are Parquet.")
        failed = [row for row in rows if "failed" in row]
        shown.result({
            "out": str(out), "cells": len(rows), "failed": len(failed), "rows": rows,
            "report": [str(path) for path in written],
        })  # fmt: skip
        if failed:
            raise RetconError(
                f"{len(failed)} of {len(rows)} cells failed, and the same command tries them again; the first is "
                f"{failed[0]['row']}: {failed[0]['failed']}"
            )


@app.command
def show(folder: Path, *, markdown: Path | None = None, output: OutputOptions = DEFAULT_OUTPUT) -> None:
    """Show what a bench has measured so far.

    Parameters
    ----------
    folder
        The --out of a bench, or its rows.jsonl.
    markdown
        Write the tables, with intervals and provenance, as a page in Markdown.
    """
    with screen(output) as shown:
        from retcon import bench

        rows = bench.rows_of(folder)
        _show_rows(shown, rows)
        shown.say("All figures, their intervals and where they come from: --markdown FILE, or --json.")
        if markdown is not None:
            command = shlex.join(["retcon", "bench", "show", str(folder), "--markdown", str(markdown)])
            with new_file(markdown) as path:
                path.write_text(bench.page(rows, command=command), encoding="utf-8")
            shown.say(f"Written: {markdown}")
        shown.result({"rows": bench.latest(rows)})


@app.command
def compare(
    first: Path,
    second: Path,
    *,
    methods: _Words = (),
    seed: int = 0,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> None:
    """Compare two benches cell by cell, with a paired bootstrap over the cases that both were judged on.

    Parameters
    ----------
    first
        The --out of a bench, or its rows.jsonl.
    second
        The other one; with --methods it may be the same.
    methods
        Two methods: the first of FIRST is held against the second of SECOND, in place of each against itself.
    seed
        Of the bootstrap.
    """
    with screen(output) as shown:
        from retcon import bench

        if methods and len(methods) != 2:
            raise RetconError(f"--methods takes two methods to hold against each other, not {len(methods)}")
        found = bench.compared(first, second, methods=(methods[0], methods[1]) if methods else None, seed=seed)
        _show_comparison(shown, found)
        shown.result({"first": str(first), "second": str(second), **found.to_dict()})


def _model(config: "Config", name: str) -> "LM":
    """A model, without the noise of the libraries."""
    return ModelOptions(model=name, device=config.device, dtype=config.dtype, chat=config.chat).load()


def _show_plan(shown: Screen, plan: "Plan") -> None:
    """What will be done, what is there already, and about how long the rest takes."""
    from retcon.bench.words import duration

    shown.warn(list(plan.notes))
    lines = [
        (item.cell.name, "is there" if item.done else "to do", duration(item.seconds), item.source)
        for item in plan.cells
    ]
    shown.table(["cell", "state", "time#", "taken from"], lines)
    left = sum(not item.done for item in plan.cells)
    told = f"about {duration(plan.left)} of {duration(plan.seconds)}" if left else f"it took {duration(plan.seconds)}"
    shown.say(f"{len(plan.cells)} cell{'' if len(plan.cells) == 1 else 's'}, {left} to do: {told}.")


def _planned(plan: "Plan", out: Path) -> dict[str, object]:
    cells = [
        {"row": item.cell.name, "key": item.key, "done": item.done, "seconds": round(item.seconds, 1)}
        | {"estimate": item.source}
        for item in plan.cells
    ]
    left = sum(not item.done for item in plan.cells)
    seconds = {"seconds": round(plan.seconds, 1), "seconds_left": round(plan.left, 1)}
    return {"out": str(out), "cells": cells, "left": left, **seconds}


def _show_rows(shown: Screen, rows: Sequence[dict[str, object]]) -> None:
    from retcon.report import bench as reports
    from retcon.report.rows import options

    shown.print(reports.table(rows))
    for option, methods in options(rows).items():
        shown.say(f"with {option}: {', '.join(methods)}")


def _show_comparison(shown: Screen, found: "Comparison") -> None:
    from retcon.bench.words import number

    for pair in found.pairs:
        title = pair.first if pair.first == pair.second else f"{pair.first}   against   {pair.second}"
        lines = []
        for name, one in pair.figures.items():
            bounds = "–" if one.low is None else f"{number(one.low)} to {number(one.high)}"
            values = (number(one.first), number(one.second), number(one.difference))
            lines.append((name, *values, bounds, "–" if one.p is None else f"{one.p:.4f}"))
        shown.table(["figure", "first#", "second#", "difference#", "95%#", "p#"], lines, f"{title}, {pair.n} cases")
    for which, names in (("first", found.only_first), ("second", found.only_second)):
        if names:
            shown.say(f"Only in the {which}: {'; '.join(names)}.")
    ruined = [f"{pair.first}: {name}: {why}" for pair in found.pairs for name, why in pair.not_compared.items()]
    shown.warn([f"not compared: {sentence}" for sentence in (*found.refused, *ruined)])
