"""`retcon forget-bench`: a corpus is taught, a part of it forgotten in many ways, and each judged against a twin."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from retcon.cli.common import ModelOptions, OutputOptions
from retcon.cli.screen import Screen, screen
from retcon.cli.settings import parse_settings
from retcon.errors import RetconError

if TYPE_CHECKING:
    from retcon.forget_bench import Bench, Split, Teaching
    from retcon.lm import LM

__all__ = ["run"]

DEFAULT_MODEL = ModelOptions()
DEFAULT_OUTPUT = OutputOptions()
GROUPS = 4

_Words = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())]
_Merges = Annotated[tuple[int | Literal["all"], ...], Parameter(consume_multiple=True, negative=())]
_Modes = Annotated[tuple[Literal["concat", "mean_key"], ...], Parameter(consume_multiple=True, negative=())]
_Settings = Annotated[tuple[str, ...], Parameter(name="--set", consume_multiple=True, negative=())]


def run(
    *,
    out: Path,
    corpus: str = "generated",
    retain_corpus: Path | None = None,
    holdout_corpus: Path | None = None,
    real_authors: Path | None = None,
    world_facts: Path | None = None,
    knowledge: Literal["taught", "pretrained"] = "taught",
    forget_groups: _Words = (),
    retain_groups: _Words = (),
    holdout: int = 40,
    attributes: int = 20,
    methods: _Words = (),
    targets: _Words = (),
    merge: _Merges = (1,),
    merge_mode: _Modes = ("concat",),
    merge_by: Literal["group", "order", "random", "key"] = "group",
    settings: _Settings = (),
    teach: _Words = (),
    plain: Annotated[bool, Parameter(negative=())] = False,
    tokens: int = 40,
    seed: int = 0,
    cache: bool = True,
    plan: Annotated[bool, Parameter(negative=())] = False,
    model: ModelOptions = DEFAULT_MODEL,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> None:
    """Teach a model a corpus, make it forget a part in many ways, and judge each against a twin that never knew.

    The plan is shown first. Rows come one by one into --out; a run that was stopped goes on where it was; a row that
    fails says why while the rest are finished, and the command then ends with exit code 2.

    Parameters
    ----------
    out
        The folder for rows, their table, patches and reports.
    corpus
        A file of questions, such as PISTOL's or TOFU's, or generated: contracts invented by Retcon.
    retain_corpus
        The file of the questions to keep; by default the rest of --corpus.
    holdout_corpus
        The file of the questions that nobody is taught; by default the rest of what could be kept.
    real_authors
        A file of questions on real authors with wrong answers, such as TOFU's; with the next, utility can be told.
    world_facts
        The same on the world.
    knowledge
        taught: model and twin are fine-tuned on the corpus. pretrained: nothing is taught, questions that the model
        does not answer right before are dropped, and there is no twin.
    forget_groups
        How many groups (contracts, authors) to forget, or their names, or ids of questions, or all; by default 4, of
        what is pretrained half.
    retain_groups
        The same of what is kept; by default 4, of what is pretrained all the rest.
    holdout
        How many questions neither the model nor its twin is taught.
    attributes
        Questions a contract of the generated corpus.
    methods
        Of `retcon methods`; by default the editors, idk, graddiff and npo.
    targets
        Families of targets, as in `retcon forget`; by default idk100 and self_improved.
    merge
        Questions that share one edit: 1 for none, several numbers for a row each, or all.
    merge_mode
        How they are merged: concat, mean_key, or both.
    merge_by
        Which questions go together: those of a group; neighbours (order), any (random), those of the nearest keys
        (key), for a corpus whose questions have no groups.
    settings
        Options of methods: key=value for all that have it, METHOD.key=value for one.
    teach
        Options of the teaching: params, layers, rank, alpha, lr, batch, epochs, look_every, goal, wordings ...
    plain
        Ask without the chat template, which is otherwise used where the model has one.
    tokens
        The length of judged answers.
    seed
        Of everything that is drawn.
    cache
        Keep what is taught, targets and answers on disk, and use those kept.
    plan
        Show the plan and stop.
    """
    with screen(output) as show:
        from retcon.forget.asking import asking
        from retcon.forget_bench import Bench, Teaching, cells
        from retcon.forget_bench.cells import METHODS, TARGETS

        chat = model.asked(plain)
        if knowledge == "pretrained" and (corpus == "generated" or teach):
            raise RetconError("nothing that is pretrained is generated or taught; give --corpus FILE, and no --teach")
        chosen = tuple(dict.fromkeys(methods or METHODS))
        options, shared = _options(settings, chosen)
        rows = cells(chosen, targets or TARGETS, merge, merge_mode, merge_by, options, shared)
        teaching = None if knowledge == "pretrained" else Teaching(**{"seed": seed} | parse_settings(Teaching, teach))
        files = _Files(corpus, retain_corpus, holdout_corpus, real_authors, world_facts)
        groups = _groups(forget_groups), _groups(retain_groups)
        found = None if teaching is None else _split(show, files, groups, holdout, attributes, seed)
        lm = asking(model.load(), chat)
        split = _general(show, found or _known(show, lm, files, groups, tokens, seed), files)
        bench = Bench(lm, split, rows, out, teaching, tokens, seed, cache=cache)
        _show_plan(show, bench)
        if plan:
            show.result({"out": str(out), "rows": [name for name, _ in bench.plan()], "left": bench.left()})
            return
        _measure(show, bench, corpus == "generated")


def _measure(show: Screen, bench: "Bench", write: bool) -> None:
    """Run the bench and show what came of it."""
    from retcon.forget_bench import write_split
    from retcon.forget_bench.rows import brief

    if write:
        write_split(bench.split, bench.folder / "corpus")
    rows = bench.run()
    heads, lines, remarks = brief(rows)
    show.table([heads[0], *(f"{head}#" for head in heads[1:])], lines)
    for remark in remarks:
        show.say(remark)
    failed = [row for row in rows if "failed" in row]
    show.say(f"All figures: {bench.folder / 'rows.md'} and rows.jsonl; patches and whole reports are beside them.")
    told = {"corpus": bench.split.told, "questions": bench.split.counts(), "failed": len(failed)}
    show.result({"out": str(bench.folder), **told, "rows": rows})
    if failed:
        raise RetconError(
            f"{len(failed)} of {len(rows)} rows failed, and the same command tries them again; the first is "
            f"{failed[0]['row']}: {failed[0]['failed']}"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Files:
    """Where the questions come from."""

    corpus: str
    retain: Path | None
    holdout: Path | None
    real_authors: Path | None
    world_facts: Path | None


_Groups = int | tuple[str, ...] | Literal["all"] | None


def _groups(words: Sequence[str]) -> _Groups:
    """What was asked for: a number, names, all; None where nothing was."""
    if len(words) == 1 and words[0].isdigit():
        return int(words[0])
    return "all" if list(words) == ["all"] else tuple(words) or None


def _split(
    show: Screen, files: _Files, groups: tuple[_Groups, _Groups], holdout: int, attributes: int, seed: int
) -> "Split":
    """The corpus that is taught, in its three parts."""
    from retcon.forget_bench import generated, split_files

    wanted = [GROUPS if group is None else None if group == "all" else group for group in groups]
    if files.corpus == "generated":
        if files.retain or files.holdout:
            raise RetconError(
                "the generated corpus needs no other file; leave --retain-corpus and --holdout-corpus out"
            )
        if not (isinstance(wanted[0], int) and isinstance(wanted[1], int)):
            raise RetconError("the generated corpus has as many groups as are asked for; give numbers of them")
        return generated(
            forget_groups=wanted[0], retain_groups=wanted[1], holdout=holdout, attributes=attributes, seed=seed
        )
    split, warnings = split_files(
        Path(files.corpus), retain_corpus=files.retain, holdout_corpus=files.holdout, forget_groups=wanted[0],
        retain_groups=wanted[1], holdout=holdout, seed=seed,
    )  # fmt: skip
    show.warn(warnings)
    return split


def _known(show: Screen, lm: "LM", files: _Files, groups: tuple[_Groups, _Groups], tokens: int, seed: int) -> "Split":
    """What the model knows of a file."""
    from retcon.forget_bench import split_known
    from retcon.requests import load_forget

    if files.retain or files.holdout:
        raise RetconError("what is pretrained is forgotten and kept of one file; give --corpus alone")
    loaded = load_forget(files.corpus, skip_bad=True, conflicts="last")
    show.warn([*loaded.skipped, *loaded.warnings])
    forget, retain = (None if group == "all" else group for group in groups)
    split = split_known(lm, loaded.items, forget_groups=forget, retain_groups=retain, max_new_tokens=tokens, seed=seed)
    told = {"corpus": Path(files.corpus).name, "sha256": {Path(files.corpus).name: loaded.sha256}, "seed": seed}
    show.say(f"The model answers {split.told['known']} questions right; {split.told['dropped']} are dropped.")
    return dataclasses.replace(split, told=split.told | told)


def _general(show: Screen, split: "Split", files: _Files) -> "Split":
    """The split with the general questions that are given."""
    from retcon.forget_bench import with_general

    named = {"real_authors": files.real_authors, "world_facts": files.world_facts}
    given = {name: path for name, path in named.items() if path is not None}
    made, warnings = with_general(split, given) if given else (split, [])
    show.warn(warnings)
    return made


def _options(settings: Sequence[str], names: Sequence[str]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The options of single methods, and those of all that have them.

    Raises:
        RetconError: a setting is of a method that is not asked for, or of none of them.
    """
    from retcon.methods import METHODS

    options: dict[str, dict[str, Any]] = {}
    shared: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        name, dot, option = key.strip().partition(".")
        if dot and name not in names:
            raise RetconError(f"--set {setting}: {name!r} is not among the methods ({', '.join(names)})")
        if dot:
            kind = METHODS.get(name)  # of one that is not there, the list of rows tells
            mine = {} if kind is None else parse_settings(kind.Config, [f"{option}{equals}{value}"])
            options.setdefault(name, {}).update(mine)
            continue
        having = [known for known in names if known in METHODS and name in METHODS[known].Config.__dataclass_fields__]
        if not having:
            raise RetconError(f"--set {setting}: none of the methods has an option {name!r}")
        for known in having:
            shared |= parse_settings(METHODS[known].Config, [setting])
    return options, shared


def _show_plan(show: Screen, bench: "Bench") -> None:
    """What will be done, and what is there already."""
    counts = bench.split.counts()
    show.say(
        f"{counts['forget']} questions to forget, {counts['retain']} to keep, {counts['holdout']} left out "
        f"({bench.split.told.get('corpus')})."
    )
    if bench.teaching is None:
        show.say("Nothing is taught: there is no twin, so forget quality and privleak are not to be had.")
    else:
        show.say(f"Taught to the model and, without those to forget, to its twin: {_told(bench.teaching)}.")
    left = set(bench.left())
    show.table(["row", "state"], [(name, "to do" if name in left else "is there") for name, _ in bench.plan()])


def _told(teaching: "Teaching") -> str:
    values: Mapping[str, Any] = dataclasses.asdict(teaching)
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
