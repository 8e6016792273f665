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
    prefix_tokens: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative=())] = (),
    tasks: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())] = (),
    task_files: Path | None = None,
    harness: Annotated[bool, Parameter(negative=())] = False,
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
        The cases to judge edits by: JSONL, plain or .gz; a published file, such as counterfact.json; or a name of
        `retcon sets`, such as builtin.
    patch
        The folder of the patch; without one the model itself is measured.
    limit
        Take the first so many records of each file.
    sample
        Judge a seeded sample of so many; figures carry their interval.
    metrics
        The figures wanted, with spaces or commas between them; by default all of edits, and those of forgetting that
        need nothing more than questions. Of edits: efficacy_gen, efficacy, efficacy_prob, efficacy_prefixed,
        generalization_gen, generalization, generalization_prob, portability_gen, two_hop_gen, specificity_gen,
        specificity, specificity_prob, neighbourhood_kl, score_gen, score, fluency, perplexity, log_perplexity,
        log_perplexity_change. Names with _gen let the model write by itself; docs/evaluate.md has the rule of each. Of
        forgetting also: all, rouge, membership; with --holdout the first and the last take mia_grad_norm in, a backward
        a question.
    text
        With --cases: the text for perplexity, and for --prefix-tokens; by default a small one that comes with Retcon.
    prefix_tokens
        With --cases: put running text of so many tokens before the edit prompts, such as 0 5 50 100 200; the figures
        stand in the details of --json and of report.json.
    tasks
        With --cases: tasks of general ability, before and after: arithmetic, word_order, common_sense, which come with
        Retcon; and any of lm-evaluation-harness, with `pip install 'retcon-lm[lm-eval]'`.
    task_files
        With --tasks: a folder with tasks of your own for lm-evaluation-harness, as YAML.
    harness
        With --tasks: score our own tasks through lm-evaluation-harness too.
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
        named = {"--text": text, "--prefix-tokens": prefix_tokens, "--tasks": tasks, "--task-files": task_files}
        _check(cases, [name for name, value in named.items() if value], forgetting_options)
        names = _split(metrics)
        if forgetting_options.forget is not None:
            common = Common(
                patch=patch, limit=limit, sample=sample, metrics=names, out=out, seed=seed, skip_bad=skip_bad,
                conflicts=conflicts, cache=cache,
            )  # fmt: skip
            forgetting.run(show, forgetting_options, common, model)
            return
        from retcon import report as reports
        from retcon.evaluate import evaluate
        from retcon.sets import LoadedSet, load_cases

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
            prefix_tokens=prefix_tokens,
            tasks=_split(tasks),
            task_files=task_files,
            harness=harness,
            cache=cache,
            provenance={
                "command": command_line(),
                "file": {"name": cases.name, "sha256": loaded.sha256, "skipped": len(loaded.skipped)},
                **({"data": loaded.provenance} if isinstance(loaded, LoadedSet) else {}),
            },
        )
        show.print(reports.table(report))
        written = [] if out is None else reports.write(report, out, patch=change)
        for path in written:
            show.say(f"written: {path}")
        show.result(report.to_dict() | {"report": [str(path) for path in written]})


def _split(words: tuple[str, ...]) -> list[str]:
    """Names with spaces or commas between them."""
    return [name for group in words for name in group.split(",") if name]


def _check(cases: Path | None, of_edits: list[str], options: ForgetOptions) -> None:
    """Refuse what does not go together; `of_edits` are options given that only --cases knows."""
    if (cases is None) == (options.forget is None):
        given = "both are given" if cases is not None else "neither is given"
        raise RetconError(f"give --cases FILE to judge edits or --forget FILE to judge forgetting; {given}")
    if cases is not None and (foreign := options.given()):
        raise RetconError(f"{foreign[0]} belongs to --forget; leave it out, or give --forget FILE instead of --cases")
    if options.forget is not None and of_edits:
        raise RetconError(f"{of_edits[0]} belongs to --cases; leave it out, or give --cases FILE instead of --forget")
