"""The command as a whole: speed of --help, errors in one sentence, exit codes."""

import os
import subprocess
import sys
import warnings

import pytest
from tests.cli.conftest import Retcon

from retcon import __version__
from retcon.cli import ask
from retcon.errors import RetconWarning

COMMANDS = [
    "edit",
    "forget",
    "probe",
    "forget-bench",
    "bench",
    "eval",
    "ask",
    "locate",
    "stats",
    "patch",
    "models",
    "methods",
    "demo",
    "sets",
]


def test_help_imports_nothing_heavy_and_answers_at_once() -> None:
    program = (
        "import sys; from retcon.cli.app import run; run(['--help']); "
        "sys.exit(bool({'torch', 'transformers', 'pydantic', 'numpy'} & set(sys.modules)))"
    )
    seconds = []
    for _ in range(3):
        before = os.times()
        answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
        after = os.times()  # time on the processor, for the wall clock is shared with other tests
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert all(command in answer.stdout for command in COMMANDS)
    assert min(seconds) < 0.5


@pytest.mark.parametrize(
    "command",
    [
        *COMMANDS,
        *(f"patch {name}" for name in ("show", "merge", "export", "scale")),
        "sets show",
        "sets export",
        "bench show",
        "bench compare",
    ],
)
def test_each_command_explains_itself(retcon: Retcon, command: str) -> None:
    said = retcon(*command.split(), "--help")
    assert said.code == 0
    assert said.out.startswith(f"Usage: retcon {command}")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ask"], "error: there is nothing to ask"),
        (["ask", "x", "--tokens", "0"], "error: --tokens 0 leaves no room"),
        (["ask", "x", "--patch", "nowhere"], "error: there is no patch folder nowhere"),
        (["ask", "x", "--dtype", "int8"], 'error: Invalid value "int8" for --dtype'),
        (["edit", "--edits", "nowhere.jsonl", "--out", "p"], "error: there is no file nowhere.jsonl; check the name"),
        (["edit", "--out", "p"], "--edits"),
        (["ask", "x", "--tokns", "3"], "Unknown option: --tokns. Did you mean --tokens?"),
        (["rewrite"], 'Unknown command "rewrite"'),
    ],
)
def test_an_error_is_one_sentence_on_stderr_and_exit_code_2(
    retcon: Retcon, arguments: list[str], sentence: str
) -> None:
    said = retcon(*arguments)
    assert said.code == 2
    assert said.out == ""
    assert sentence in said.err
    assert "Traceback" not in said.err
    assert said.err.count("\n") == 1


def test_a_stop_by_the_user_says_how_to_go_on(retcon: Retcon, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ask, "load_patch", stop)
    said = retcon("ask", "x")
    assert said.code == 130
    assert "the same command goes on" in said.err


def test_debug_shows_the_traceback(retcon: Retcon) -> None:
    with pytest.raises(Exception, match="there is no patch folder"):
        retcon("ask", "x", "--patch", "nowhere", "--debug")


def test_warnings_of_libraries_are_silent_and_ours_are_sentences(
    retcon: Retcon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warn(*_: object) -> None:
        warnings.warn("not for the user", UserWarning, stacklevel=2)
        warnings.warn("half of it is lost", RetconWarning, stacklevel=2)
        raise KeyboardInterrupt

    monkeypatch.setattr(ask, "load_patch", warn)
    assert retcon("ask", "x").err.splitlines()[0] == "warning: half of it is lost"


def test_a_closed_pipe_is_no_traceback() -> None:
    program = f"{sys.executable} -c 'from retcon.cli import main; main()' --help | head -c 0"
    said = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in said.stderr


def test_the_version_is_that_of_the_package(retcon: Retcon) -> None:
    assert retcon("--version").out.strip() == __version__
