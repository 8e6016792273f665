"""`retcon eval`: what a patch achieves and what it harms, of edits and of forgetting."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from retcon.cli import eval_forgetting as forgetting
from retcon.cli.common import ModelOptions, OutputOptions, command_line, load_patch
from retcon.cli.eval_forgetting import Common, ForgetOptions
from retcon.cli.screen import screen
from retcon.errors import RetconError

__all__ = ["run"]

DEFAULT_MODEL = ModelOptions()
DEFAULT_OUTPUT = OutputOptions()
DEFAULT_FORGET = ForgetOptions()


def run(
    *,
    cases: Path | None = None,
    patch: Path | None = None,
    limit: int | None = None,
    sample: int | None = None,
    metrics: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())] = (),
    text: Path | None = None,
    out: Path | None = None,
    seed: int = 0,
    skip_bad: Annotated[bool, Parameter(negative=())] = False,
    conflicts: Literal["error", "last"] = "error",
    cache: bool = True,
    forgetting_options: ForgetOptions = DEFAULT_FORGET,
    model: ModelOptions = DEFAULT_MODEL,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> None:
    """Measure what a patch achieves and what it harms, before and after: with --cases of edits, with --forget of
    forgetting.

    All figures are those of the final model, with the whole patch on.

    Parameters
    ----------
    cases
        The cases to judge edits by: JSONL, plain or .gz; or a name of `retcon sets`, such as builtin.
    patch
        The folder of the patch; without one the model itself is measured.
    limit
        Take the first so many records of each file.
    sample
        Judge a seeded sample of so many; figures carry their interval.
    metrics
        The figures wanted, with spaces or commas between them; by default all of edits, and those of forgetting that
        need nothing more than questions. Of forgetting also: all, rouge, membership.
    text
        With --cases: the text for perplexity; by default a small one that comes with Retcon.
    out
        A folder for report.html, report.md and report.json.
    seed
        Of the sample, the prefixes, the rephrased questions and the intervals.
    skip_bad
        Skip bad lines of the files and list them.
    conflicts
        What to do with different targets for one prompt, or answers to one question: refuse, or keep the last.
    cache
        Keep the unedited model's answers on disk, and use those kept.
    """
    with screen(output) as show:
        _check(cases, text, forgetting_options)
        names = [name for group in metrics for name in group.split(",") if name]
        if forgetting_options.forget is not None:
            common = Common(
                patch=patch, limit=limit, sample=sample, metrics=names, out=out, seed=seed, skip_bad=skip_bad,
                conflicts=conflicts, cache=cache,
            )  # fmt: skip
            forgetting.run(show, forgetting_options, common, model)
            return
        from retcon import report as reports
        from retcon.evaluate import evaluate
        from retcon.sets import load_cases

        assert cases is not None
        loaded = load_cases(cases, limit=limit, skip_bad=skip_bad, conflicts=conflicts)
        show.warn([*loaded.skipped, *loaded.warnings])
        change = load_patch(patch)
        report = evaluate(
            model.load(),
            loaded.items,
            patch=change,
            metrics=names or None,
            seed=seed,
            text=text,
            sample=sample,
            cache=cache,
            provenance={
                "command": command_line(),
                "file": {"name": cases.name, "sha256": loaded.sha256, "skipped": len(loaded.skipped)},
            },
        )
        show.print(reports.table(report))
        written = [] if out is None else reports.write(report, out, patch=change)
        for path in written:
            show.say(f"written: {path}")
        show.result(report.to_dict() | {"report": [str(path) for path in written]})


def _check(cases: Path | None, text: Path | None, options: ForgetOptions) -> None:
    """Refuse what does not go together."""
    if (cases is None) == (options.forget is None):
        given = "both are given" if cases is not None else "neither is given"
        raise RetconError(f"give --cases FILE to judge edits or --forget FILE to judge forgetting; {given}")
    if cases is not None and (foreign := options.given()):
        raise RetconError(f"{foreign[0]} belongs to --forget; leave it out, or give --forget FILE instead of --cases")
    if options.forget is not None and text is not None:
        raise RetconError("--text belongs to --cases; leave it out, or give --cases FILE instead of --forget")
