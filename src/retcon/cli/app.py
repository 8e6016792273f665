"""All commands by name, loaded when they are called, and what happens to their errors.

Exit codes: 0 done, 2 something for the user to mend (one sentence says what), 130 stopped by Ctrl-C.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

from cyclopts import App, CycloptsError

import retcon
from retcon.errors import RetconError, RetconWarning

__all__ = ["app", "main", "run"]

app = App(
    name="retcon",
    help="Edit what a language model knows: compute a patch, see what it changes and harms, take it back or ship it.",
    version=retcon.__version__,
    result_action="return_value",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
patch = App(name="patch", sort_key=99, help="Look into a patch, compose it, fold it into a model, export it.")

# Import strings: `retcon --help` must not wait for torch.
_COMMANDS = {
    "edit": "Compute a patch that changes the facts of a file.",
    "forget": "Compute a patch with which the model refuses to answer the questions of a file.",
    "probe": "Try to get forgotten answers back, and say what kind of forgetting it was.",
    "forget-bench": "Teach a model a corpus, make it forget a part in many ways, and judge each against a twin.",
    "eval": "Measure what a patch achieves and what it harms, before and after.",
    "ask": "Ask the model, without and with a patch, side by side.",
    "locate": "Find which layers, tokens and neurons hold a fact, or suggest layers to edit.",
    "stats": "Collect the statistics of a model's keys that methods need, ahead of time.",
    "models": "List the model families that can be edited, or say what was found in one model.",
    "methods": "List the methods and their options.",
    "demo": "Edit ten facts of the default model and show what changed.",
}
_GROUPS = {
    "bench": "Measure methods on sets of facts, show the table of what was measured, compare two benches.",
    "sets": "List the sets of facts and questions that Retcon knows, show examples, write one as JSONL.",
}
_PATCH_COMMANDS = {
    "show": "Say what a patch holds: its edits, how they were made, what it was made for.",
    "verify": "Check a patch's files, and that it fits a model.",
    "explain": "Say which memory of a patch answers a prompt, and how near it came.",
    "merge": "Fold a patch into a model's weights and write the model to a folder.",
    "compose": "Join patches, each made on top of those before it or independent of them.",
    "scale": "Make a patch's effect stronger or weaker.",
    "without": "Take edits out of a patch again, where memories hold them.",
    "export": "Write a patch as a PEFT adapter or as a whole edited model.",
}
for _rank, (_name, _help) in enumerate(_COMMANDS.items()):
    app.command(f"retcon.cli.{_name.replace('-', '_')}:run", name=_name, help=_help, sort_key=_rank)
for _rank, (_name, _help) in enumerate(_PATCH_COMMANDS.items()):
    patch.command(f"retcon.cli.patch:{_name}", name=_name, help=_help, sort_key=_rank)
app.command(patch)
for _name, _help in _GROUPS.items():  # an app of its own, loaded when it is called
    app.command(f"retcon.cli.{_name}:app", name=_name, help=_help, sort_key=99)


def main() -> None:
    """The entry point of the console script."""
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the exit code."""
    debug = "--debug" in arguments
    with warnings.catch_warnings():
        if not debug:
            _hear_only_our_warnings()
        try:
            app(list(arguments), exit_on_error=False, print_error=False)
        except CycloptsError as error:
            return _say(f"error: {str(error).strip()} (--help after the command lists what it takes)", 2)
        except RetconError as error:
            if debug:
                raise
            return _say(f"error: {error}", 2)
        except KeyboardInterrupt:
            if debug:
                raise
            return _say("\nStopped; the same command goes on where this one was, or starts again.", 130)
    return 0


def _say(sentence: str, code: int) -> int:
    sys.stderr.write(sentence + "\n")
    return code


def _hear_only_our_warnings() -> None:
    """Libraries warn of what a user of the command cannot change; Retcon's own warnings are sentences for the user."""
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", category=RetconWarning)

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        _say(f"warning: {message}", 0)

    warnings.showwarning = show
