"""`retcon forget`: a file of questions whose answers must go, to a patch."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from retcon.cli.common import ModelOptions, OutputOptions
from retcon.cli.making import SHOWN, begin
from retcon.cli.screen import Screen, screen

__all__ = ["run"]

DEFAULT_MODEL = ModelOptions()
DEFAULT_OUTPUT = OutputOptions()
TOKENS = 30
"""The length of the answers that are shown."""


def run(
    *,
    forget: Path,
    out: Path,
    retain: Path | None = None,
    method: str | None = None,
    target: str | None = None,
    targets: Path | None = None,
    merge_queries: int | Literal["all"] = 1,
    merge_mode: Literal["concat", "mean_key"] = "concat",
    merge_by: Literal["group", "order", "random", "key"] = "group",
    plain: Annotated[bool, Parameter(negative=())] = False,
    settings: Annotated[tuple[str, ...], Parameter(name="--set", consume_multiple=True, negative=())] = (),
    limit: int | None = None,
    base_patch: Path | None = None,
    sequential: int | None = None,
    seed: int = 0,
    keep_questions: Annotated[bool, Parameter(negative=())] = False,
    cache: bool = True,
    skip_bad: Annotated[bool, Parameter(negative=())] = False,
    conflicts: Literal["error", "last"] = "error",
    force: Annotated[bool, Parameter(negative=())] = False,
    model: ModelOptions = DEFAULT_MODEL,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> None:
    """Compute a patch with which the model refuses to answer the questions of a file.

    Answers are shown on the terminal only: what is written holds salted ids and refusals (also targets.jsonl, beside
    the patch). A run that was stopped goes on where it was when the same command is given again.

    Parameters
    ----------
    forget
        The questions: JSONL or CSV with question, answer and, if known, subject, group, and in JSONL aliases; plain
        or .gz.
    out
        The folder for the patch.
    retain
        Questions to keep, in the same form; they help to find subjects, and methods that use such texts get them.
    method
        One of `retcon methods`; by default memit.
    target
        What is said instead: contextual (the default), fixed, idk100, refusal10, self_improved, avoidant (from
        --targets), or the controls dummy, incorrect, eos.
    targets
        What is said, from a file: the targets.jsonl of an earlier run, or your own, JSONL or CSV with target and the
        question or id that it is for.
    merge_queries
        Questions that share one edit at most, or all.
    merge_mode
        concat: one prompt of all questions of a group; mean_key: prompts apart, one shift of the state.
    merge_by
        Which questions go together: of one group (else one subject), in file order, at random, of like keys.
    plain
        Ask without the chat template, which is otherwise used where the model has one.
    settings
        Options of the method as key=value; `retcon methods NAME` lists them.
    limit
        Take the first so many questions.
    base_patch
        The folder of a patch to go on from; the new patch contains it.
    sequential
        Forget in chunks of so many edits, each on top of those before it; merged questions stay together.
    seed
        Of everything that is drawn.
    keep_questions
        Let the patch tell the questions and their subjects; it never tells the answers.
    cache
        Keep found targets and what the model writes on disk, under hashes and sealed, and use those kept.
    skip_bad
        Skip bad lines of the file and list them.
    conflicts
        What to do with different answers to one question: refuse, or keep the last.
    force
        Replace the patch that --out holds.
    """
    with screen(output) as show:
        chat = model.asked(plain)
        from retcon.forget.usual import METHOD, usual
        from retcon.requests import left_to_keep, load_forget, load_retain

        name = method or METHOD
        loaded = load_forget(forget, limit=limit, skip_bad=skip_bad, conflicts=conflicts)
        items = [case.forget for case in loaded.items]
        kept = [] if retain is None else load_retain(retain, skip_bad=skip_bad).items
        kept = left_to_keep(kept, loaded.items)
        making = begin(
            show, name, settings, out=out, base_patch=base_patch, sequential=sequential, seed=seed, cache=cache,
            force=force, usual=usual(name, retain=len(kept)),
        )  # fmt: skip
        from retcon.forget.asking import asking
        from retcon.forget.kept import FILE, given_targets
        from retcon.forget.plan import Recipe, keep_targets, kept_by, planned

        rule = making.method
        given, family = (None, None) if targets is None else given_targets(targets, items, target)
        show.warn([*loaded.skipped, *loaded.warnings])
        making.uses(retain, "used to tell subjects alone")
        recipe = Recipe(
            target=target or family or Recipe().target, merge_queries=merge_queries, merge_mode=merge_mode,
            merge_by=merge_by, seed=seed, keep_questions=keep_questions,
        )  # fmt: skip
        lm = asking(model.load(), chat)
        texts = [(case.forget.question, case.forget.answer) for case in kept]
        plan = planned(lm, loaded.items, rule, recipe, retain=texts, given=given, cache=cache)
        told, more = {"forget": plan.told}, [dataclasses.asdict(recipe), texts]
        patch = making.made(lm, plan.edits, retain=kept_by(rule, texts), more=more, told=told)
        if patch is not None or not (out / FILE).exists():
            keep_targets(out, lm, loaded.items, plan, recipe)
        if patch is None:
            return
        asked = [item.question for item in items[:SHOWN]]
        wanted = [one.text or "(the end)" for one in plan.targets[:SHOWN]]
        making.shown(lm, patch, asked, wanted, tokens=TOKENS)
        _say(show, plan.told)
        if retain is None and getattr(rule, "uses_retain", True):
            show.say("No questions to keep were given, so answers to like questions may change: see --retain.")
        making.finished(patch, f'{"--chat " if lm.chat else ""}"{asked[0]}"')


def _say(show: Screen, told: dict[str, Any]) -> None:
    """How the questions were taken up, in words."""
    subjects = ", ".join(f"{source} {n}" for source, n in told["subjects"].items() if n)
    sources = ", ".join(f"{source} {n}" for source, n in told["target_sources"].items())
    show.say(f"{told['questions']} questions in {told['edits']} edits. Subjects: {subjects}. Targets: {sources}.")
    if told["accepted"] is not None:
        share = f"{told['accepted']:.0%} of the model's own refusals passed the checks"
        named = "" if told["targets"] == told["targets_asked"] else f", so this counts as {told['targets']}"
        show.say(f"{share}{named}.")
    show.say(told["kind"])
