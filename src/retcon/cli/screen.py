"""What a command shows: sentences, tables and progress for people, or one JSON object for programs."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from retcon import progress
from retcon.cli.common import OutputOptions

__all__ = ["Screen", "screen"]

_SECONDS_BETWEEN_LINES = 10.0


class Screen:
    """Where a command puts its words; `result` ends it."""

    def __init__(self, console: Console, errors: Console, as_json: bool) -> None:
        self.console = console
        self.errors = errors
        self.as_json = as_json
        self._stdout = sys.stdout

    def say(self, sentence: str = "") -> None:
        """A sentence for people: plain text, no markup."""
        self.console.print(Text(sentence), soft_wrap=True)

    def print(self, renderable: RenderableType) -> None:
        """Anything that rich can show."""
        self.console.print(renderable)

    def warn(self, sentences: Sequence[str], most: int = 5) -> None:
        """Warnings on stderr, the first few written out."""
        for sentence in sentences[:most]:
            self.errors.print(Text(f"warning: {sentence}"), soft_wrap=True)
        if len(sentences) > most:
            self.errors.print(Text(f"warning: ... and {len(sentences) - most} more like these"))

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
        """A table of texts; columns whose name ends with "#" hold numbers and stand right."""
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            table.add_column(column.rstrip("#"), justify="right" if column.endswith("#") else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self.print(table)

    def result(self, value: dict[str, Any]) -> None:
        """The machine-readable result: printed with --json only."""
        if self.as_json:
            self._stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def screen(options: OutputOptions) -> Iterator[Screen]:
    """A screen for a command: with --json all words, those of libraries too, go to stderr; progress always does."""
    errors = Console(stderr=True, highlight=False)
    shown = Screen(errors if options.json else Console(highlight=False), errors, options.json)
    with ExitStack() as stack:
        if options.json:
            stack.enter_context(redirect_stdout(sys.stderr))
        stack.enter_context(progress.listen(_bars(errors) if errors.is_terminal else _lines(errors)))
        yield shown


def _bars(console: Console) -> progress.Listener:
    """Bars with the time left; tasks inside tasks share one display."""
    display: list[Progress] = []

    @contextmanager
    def listener(description: str, total: float) -> Iterator[Callable[[float], None]]:
        outermost = not display
        if outermost:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            display.append(Progress(*columns, TimeRemainingColumn(), console=console, transient=True))
            display[0].start()
        bar = display[0].add_task(description, total=total)
        try:
            yield lambda done: display[0].advance(bar, done)
        finally:
            display[0].remove_task(bar)
            if outermost:
                display.pop().stop()

    return listener


def _lines(console: Console) -> progress.Listener:
    """Now and then a plain line, for logs."""

    @contextmanager
    def listener(description: str, total: float) -> Iterator[Callable[[float], None]]:
        started = last = time.monotonic()
        done = 0.0

        def advance(step: float) -> None:
            nonlocal done, last
            done += step
            now = time.monotonic()
            if 0 < done < total and now - last >= _SECONDS_BETWEEN_LINES:
                last = now
                left = (now - started) * (total - done) / done
                console.print(Text(f"{description}: {done:g} of {total:g}, about {left:.0f} s left"))

        yield advance

    return listener
