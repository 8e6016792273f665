"""The side of `retcon eval` that judges forgetting: --forget FILE and its options."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from retcon.cli.common import ModelOptions, command_line, load_patch
from retcon.cli.screen import Screen
from retcon.errors import RetconError

if TYPE_CHECKING:
    from retcon.evaluate import Reference
    from retcon.lm import LM
    from retcon.patch import Patch
    from retcon.requests import ForgetCase

__all__ = ["Common", "ForgetOptions", "run"]

_FLAG = Parameter(negative=())


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetOptions:
    """How forgetting is judged."""

    forget: Path | None = None
    """The questions that are to be forgotten: JSONL or CSV with question and answer; plain or .gz."""
    retain: Path | None = None
    """With --forget: questions whose answers are to stay."""
    near: Path | None = None
    """With --forget: questions close to those to forget whose answers are to stay; judged apart, by locality_near."""
    holdout: Path | None = None
    """With --forget: questions that no model was trained on, for membership attacks."""
    real_authors: Path | None = None
    """With --forget: questions with perturbed_answers, for model_utility."""
    world_facts: Path | None = None
    """With --forget: the same on the world, for model_utility."""
    reference: Path | None = None
    """With --forget: a model trained without those questions: the reference.json of a run with --role retain-only, the
    folder of a patch that makes it, or the folder of a model."""
    train_reference: str | None = None
    """With --retain: make the reference here, of a model that was taught neither set: it is taught the questions to
    keep, which takes minutes to hours, and kept for later runs."""
    force_reference: Annotated[bool, _FLAG] = False
    """With a reference: take it even if its figures are not those of such a model."""
    role: Literal["retain-only"] | None = None
    """With --forget and --out: the model is one that was trained without those questions; write reference.json."""
    plain: Annotated[bool, _FLAG] = False
    """With --forget: ask without the chat template, which is otherwise used where the model has one."""
    max_new_tokens: int | None = None
    """With --forget: tokens of an answer; 40 by default."""
    reveal: Annotated[bool, _FLAG] = False
    """With --forget: tell questions, true answers and the model's own, on the terminal and in what is written."""

    def given(self) -> list[str]:
        """The options that are not as by default, as they are written."""
        fields = dataclasses.fields(self)
        return [f"--{field.name.replace('_', '-')}" for field in fields if getattr(self, field.name) != field.default]


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """Options that both sides share."""

    patch: Path | None
    limit: int | None
    sample: int | None
    metrics: Sequence[str]
    out: Path | None
    seed: int
    skip_bad: bool
    conflicts: Literal["error", "last"]
    cache: bool


def run(show: Screen, options: ForgetOptions, common: Common, model: ModelOptions) -> None:
    """Judge, show, and write."""
    chat = model.asked(options.plain)
    if options.role is not None and (common.out is None or options.retain is None):
        raise RetconError("--role needs --retain FILE, which the model was trained on, and --out DIR for its record")
    if options.reference is not None and options.train_reference is not None:
        raise RetconError("--reference and --train-reference both name a reference; give one of them")
    if options.train_reference is not None and options.retain is None:
        raise RetconError("--train-reference teaches a model the questions to keep; give them as --retain FILE")
    if options.force_reference and options.reference is None and options.train_reference is None:
        raise RetconError("--force-reference takes a reference by force; give --reference, or leave it out")
    from retcon.evaluate import evaluate_forgetting, reference_record
    from retcon.report import forgetting as reports
    from retcon.requests import left_to_keep

    sets, files = _loaded(show, options, common)
    sets["retain"] = left_to_keep(sets["retain"], sets["forget"])
    change = load_patch(common.patch)
    twin = _twin(options.reference, model)
    if options.train_reference is not None:
        twin = _trained(options.train_reference, sets["retain"], model, chat, common)
    lm = model.load()
    report = evaluate_forgetting(
        lm,
        **sets,
        patch=change,
        metrics=common.metrics or None,
        twin=twin,
        chat=chat,
        max_new_tokens=40 if options.max_new_tokens is None else options.max_new_tokens,
        seed=common.seed,
        sample=common.sample,
        force_reference=options.force_reference,
        cache=common.cache,
        reveal=options.reveal,
        provenance={"command": command_line(), "files": files},
    )
    show.print(reports.table(report))
    written = [] if common.out is None else reports.write(report, common.out, patch=change)
    if options.role is not None and common.out is not None:
        named = {name: sets[name] for name in ("forget", "retain", "holdout")}
        record = reference_record(
            lm, **named, patch=change, chat=chat, sample=common.sample, seed=common.seed, cache=common.cache
        )
        written.append(record.save(common.out / "reference.json"))
    for path in written:
        show.say(f"written: {path}")
    show.result(report.to_dict() | {"report": [str(path) for path in written]})


def _loaded(
    show: Screen, options: ForgetOptions, common: Common
) -> tuple[dict[str, "list[ForgetCase]"], dict[str, dict[str, Any]]]:
    """The questions of each file, and which files those are; of the one to forget only a salted hash is told."""
    from retcon.requests import load_forget, load_retain
    from retcon.storage import salted

    sets: dict[str, list[ForgetCase]] = {}
    files: dict[str, dict[str, Any]] = {}
    for name in ("forget", "retain", "near", "holdout", "real_authors", "world_facts"):
        path: Path | None = getattr(options, name)
        sets[name] = []
        if path is None:
            continue
        if name == "forget":
            loaded = load_forget(path, limit=common.limit, skip_bad=common.skip_bad, conflicts=common.conflicts)
        else:
            loaded = load_retain(path, limit=common.limit, skip_bad=common.skip_bad)
        show.warn([*loaded.skipped, *loaded.warnings])
        sets[name] = loaded.items
        secret = name == "forget" and not options.reveal
        told = {"salted_sha256": salted(loaded.sha256)} if secret else {"sha256": loaded.sha256}
        files[name] = {"name": path.name, **told, "skipped": len(loaded.skipped)}
    return sets, files


def _twin(path: Path | None, model: ModelOptions) -> "Reference | Patch | LM | None":
    """A record, a patch or a model, by what stands at the path."""
    if path is None:
        return None
    if not path.is_dir():
        from retcon.evaluate import Reference

        return Reference.load(path)
    if (path / "config.json").is_file():
        return dataclasses.replace(model, model=str(path), revision=None, chat=False).load()
    return load_patch(path)


def _trained(base: str, retain: "Sequence[ForgetCase]", model: ModelOptions, chat: bool | None, common: Common) -> "LM":
    """A model that was taught the questions to keep alone.

    Raises:
        RetconError: nothing was learned.
    """
    from retcon.forget.asking import asking
    from retcon.forget_bench import Teaching, teach

    lm = asking(dataclasses.replace(model, model=base, revision=None, chat=False).load(), chat)
    teach(lm, retain, Teaching(seed=common.seed), cache=common.cache).merge(lm.model)
    return lm
