"""`retcon demo`: ten facts of the default model, edited, measured, and taken back."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from retcon.cli import making
from retcon.cli.answers import answers
from retcon.cli.common import ModelOptions, OutputOptions
from retcon.cli.screen import screen
from retcon.errors import RetconError

__all__ = ["run"]

DEFAULT_MODEL = ModelOptions()
DEFAULT_OUTPUT = OutputOptions()


def run(
    *,
    facts: Path = Path("examples/facts.jsonl"),
    out: Path = Path("out/demo"),
    method: str = "memit",
    cache: Annotated[bool, Parameter(negative="--no-cache")] = True,
    model: ModelOptions = DEFAULT_MODEL,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> None:
    """Edit ten facts of the default model and show what changed, what was harmed, and how to take it back.

    Parameters
    ----------
    facts
        The facts, with the prompts by which the change is judged.
    out
        The folder for the patch and the report.
    method
        One of `retcon methods`.
    cache
        Keep found targets on disk, and use those kept.
    """
    with screen(output) as show:
        if not facts.is_file():
            raise RetconError(
                f"there are no facts at {facts}; run the demo in the project's folder, or give --facts FILE"
            )
        from retcon import methods
        from retcon import report as reports
        from retcon.evaluate import evaluate
        from retcon.requests import load_cases

        cases = load_cases(facts).items
        edits = [case.edit for case in cases]
        prompts = [edit.text for edit in edits]
        show.say(f"1. Loading {model.model} ...")
        lm = model.load()
        before = answers(lm, prompts)
        show.say(f"2. Computing a patch that changes {len(edits)} facts, by {method} ...")
        kind = type(methods.method(method))
        config = kind.Config()
        key = making.run_key(lm, method, config, edits)
        patch = making.compute(lm, kind(config), edits, out / "patch", key, cache=cache)
        show.say("3. Measuring what it achieved and what it harmed ...")
        show.say()
        report = evaluate(lm, cases, patch=patch)
        show.print(reports.table(report, rows=len(cases)))
        undone = answers(lm, prompts) == before
        written = [out / "patch", *reports.write(report, out, patch=patch)]
        seconds = sum(patch.info["seconds"].values())
        show.say(f"The patch: {patch.summary}; {seconds:.0f} s to compute, {report.seconds:.0f} s to measure.")
        show.say("Written: " + ", ".join(str(path) for path in written))
        for line in _next(out, prompts[1], undone):
            show.say(line)
        said = [{"prompt": case["prompt"], "wanted": case["target"], **case["answers"]} for case in report.cases]
        figures = {"n": report.n, "metrics": report.metrics, "before": report.before, "seconds": report.seconds}
        show.result(figures | {"answers": said, "undone": undone, "written": [str(path) for path in written]})


def _next(out: Path, prompt: str, undone: bool) -> list[str]:
    checked = "as was checked just now" if undone else "but here they differ, which is a fault: please report it"
    return [
        "",
        "To undo: leave the patch out. It lives apart from the model, whose weights were never touched:",
        f"without it the old answers are back, {checked}. From Python: `with patch.on(model):`.",
        "",
        "To go on:",
        f'  .venv/bin/retcon ask --patch {out / "patch"} "{prompt}"',
        f"  .venv/bin/retcon patch show {out / 'patch'}",
        f"  .venv/bin/retcon patch merge {out / 'patch'} --out {out / 'model'}    # for plain transformers",
        f"  .venv/bin/retcon edit --edits examples/facts.jsonl --limit 1 --method rome --out {out / 'rome'}",
    ]
