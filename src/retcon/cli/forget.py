"""`retcon forget`: a file of questions whose answers must go, to a patch."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from retcon.cli import edit as editing
from retcon.cli.common import ModelOptions, OutputOptions, load_patch
from retcon.cli.screen import Screen, screen
from retcon.errors import RetconError

if TYPE_CHECKING:
    from retcon.lm import LM

__all__ = ["run"]

DEFAULT_MODEL = ModelOptions()
DEFAULT_OUTPUT = OutputOptions()
SHOWN, TOKENS = 5, 30


def run(
    *,
    forget: Path,
    out: Path,
    retain: Path | None = None,
    method: str = "memit",
    target: str = "contextual",
    targets: Path | None = None,
    merge_queries: int | Literal["all"] = 1,
    merge_mode: Literal["concat", "mean_key"] = "concat",
    merge_by: Literal["group", "order", "random", "key"] = "group",
    plain: Annotated[bool, Parameter(negative=())] = False,
    settings: Annotated[tuple[str, ...], Parameter(name="--set", consume_multiple=True, negative=())] = (),
    limit: int | None = None,
    base_patch: Path | None = None,
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

    Answers are shown on the terminal only: what is written holds salted ids and refusals. A run that was stopped goes
    on where it was when the same command is given again.

    Parameters
    ----------
    forget
        The questions: JSONL or CSV with question, answer and, if known, subject, aliases, group; plain or .gz.
    out
        The folder for the patch.
    retain
        Questions to keep, in the same form; they help to find subjects, and methods that use such texts get them.
    method
        One of `retcon methods`.
    target
        What is said instead: contextual, fixed, idk100, refusal10, self_improved, avoidant (from --targets), or the
        controls dummy, incorrect, eos.
    targets
        Your own targets: JSONL or CSV with target and the question or id that it is for.
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
    seed
        Of everything that is drawn.
    keep_questions
        Let the patch tell the questions and their subjects; it never tells the answers.
    cache
        Keep found targets on disk under hashes, and use those kept.
    skip_bad
        Skip bad lines of the file and list them.
    conflicts
        What to do with different answers to one question: refuse, or keep the last.
    force
        Replace the patch that --out holds.
    """
    with screen(output) as show:
        from retcon import methods
        from retcon.forget.plan import Recipe, kept_by, planned
        from retcon.requests import load_forget, load_retain

        if plain and model.chat:
            raise RetconError("--plain and --chat contradict each other; give one of them")
        kind = type(methods.method(method))
        rule = kind(editing.configured(kind.Config, settings, seed))
        older = editing.older_patch(out, force)
        base = load_patch(base_patch)
        loaded = load_forget(forget, limit=limit, skip_bad=skip_bad, conflicts=conflicts)
        kept = [] if retain is None else load_retain(retain, skip_bad=skip_bad).items
        given = _given(targets)
        show.warn([*loaded.skipped, *loaded.warnings])
        recipe = Recipe(
            target=target, merge_queries=merge_queries, merge_mode=merge_mode, merge_by=merge_by, seed=seed,
            keep_questions=keep_questions,
        )  # fmt: skip
        lm = _rendering(model.load(), plain)
        texts = [(case.forget.question, case.forget.answer) for case in kept]
        plan = planned(lm, loaded.items, rule, recipe, retain=texts, given=given)
        more = [dataclasses.asdict(recipe), texts]
        key = editing.run_key(lm, method, rule.config, plan.edits, base=base, more=more)
        if editing.held(show, older, out, key, force):
            return
        told = {"forget": plan.told}
        stay = kept_by(rule, texts)
        patch = editing.compute(lm, rule, plan.edits, out, key, base=base, cache=cache, retain=stay, told=told)
        asked = [case.forget.question for case in loaded.items[:SHOWN]]
        wanted = [one.text or "(the end)" for one in plan.targets[:SHOWN]]
        editing.show_answers(show, lm, asked, wanted, base, patch, TOKENS)
        _say(show, plan.told)
        editing.show_written(show, patch, out)
        show.say(f'Try it:  retcon ask --patch {out} {"--chat " if lm.chat else ""}"{asked[0]}"')
        show.result(editing.result(patch, out))


def _given(targets: Path | None) -> dict[str, str]:
    """The user's own targets, by question and by id."""
    if targets is None:
        return {}
    from retcon.requests import load_targets

    items = load_targets(targets).items
    return {name: one.target for one in items for name in (one.question, one.id) if name is not None}


def _rendering(lm: "LM", plain: bool) -> "LM":
    """The model asked through its chat template, where it has one and nothing else is wanted."""
    return dataclasses.replace(lm, chat=not plain and bool(getattr(lm.tokenizer, "chat_template", None)))


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
