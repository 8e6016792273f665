"""`retcon eval`: what a patch achieves and what it harms."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from retcon.cli.common import ModelOptions, OutputOptions, load_patch
from retcon.cli.screen import screen

__all__ = ["run"]

DEFAULT_MODEL = ModelOptions()
DEFAULT_OUTPUT = OutputOptions()


def run(
    *,
    cases: Path,
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
    model: ModelOptions = DEFAULT_MODEL,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> None:
    """Measure what a patch achieves and what it harms, before and after.

    All figures are those of the final model, with the whole patch on.

    Parameters
    ----------
    cases
        The cases to judge by: JSONL, plain or .gz; or a name of `retcon sets`, such as builtin.
    patch
        The folder of the patch; without one the model itself is measured.
    limit
        Take the first so many cases.
    sample
        Judge a seeded sample of so many cases; figures carry their interval.
    metrics
        The figures wanted, with spaces or commas between them; all by default.
    text
        The text for perplexity; by default a small one that comes with Retcon.
    out
        A folder for report.html, report.md and report.json.
    seed
        Of the sample, the prefixes and the intervals.
    skip_bad
        Skip bad lines of the file and list them.
    conflicts
        What to do with different targets for one prompt: refuse, or keep the last.
    cache
        Keep the unedited model's answers on disk, and use those kept.
    """
    with screen(output) as show:
        from retcon import report as reports
        from retcon.evaluate import evaluate
        from retcon.sets import load_cases

        loaded = load_cases(cases, limit=limit, skip_bad=skip_bad, conflicts=conflicts)
        show.warn([*loaded.skipped, *loaded.warnings])
        names = [name for group in metrics for name in group.split(",") if name]
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
            provenance={"file": {"name": cases.name, "sha256": loaded.sha256, "skipped": len(loaded.skipped)}},
        )
        show.print(reports.table(report))
        written = [] if out is None else reports.write(report, out)
        for path in written:
            show.say(f"written: {path}")
        show.result(report.to_dict() | {"report": [str(path) for path in written]})
