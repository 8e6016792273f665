"""`retcon sets`: the sets of facts and questions, examples of one, one as JSONL of our own schema."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from retcon.cli.common import OutputOptions
from retcon.cli.screen import Screen, screen
from retcon.errors import RequestError, RetconError

if TYPE_CHECKING:
    from retcon.requests import Case, ForgetCase
    from retcon.sets import SetInfo

__all__ = ["app", "export", "run", "show"]

DEFAULT_OUTPUT = OutputOptions()

app = App(
    name="sets",
    help="List the sets of facts and questions that Retcon knows, show examples, write one as JSONL.",
    help_format="plaintext",
)


@app.default
def run(*, output: OutputOptions = DEFAULT_OUTPUT) -> None:
    """List the sets of facts and questions that Retcon knows."""
    from retcon.sets import SETS

    with screen(output) as shown:
        rows = ((info.name, info.kind, _count(info), info.licence, info.about) for info in SETS.values())
        shown.table(["set", "kind", "records#", "licence", "what it holds"], rows)
        shown.say("edit: facts with new answers; forget: questions with answers; facts: the seed draws new answers.")
        shown.say("`retcon sets show NAME` tells more; all but builtin are read from files (--root or $RETCON_DATA).")
        shown.result({"sets": [_told(info) for info in SETS.values()]})


@app.command
def show(
    name: str,
    *,
    root: Path | None = None,
    split: str | None = None,
    limit: int = 3,
    seed: int = 0,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> None:
    """Say what a set or a file holds, with its licence and citation, and show its first records.

    Parameters
    ----------
    name
        A name of `retcon sets`, or a file or folder in any format that Retcon reads.
    root
        The folder below which the files of named sets are; by default the one that RETCON_DATA names.
    split
        The part of a named set.
    limit
        How many records to show.
    seed
        Of what is drawn.
    """
    with screen(output) as shown:
        from retcon.sets import SETS, load

        info = SETS.get(name)
        if info is not None:
            _describe(shown, info)
        try:
            found = load(name, root=root, split=split, limit=limit, seed=seed)
        except RequestError as error:
            if info is None or split is not None or root is not None:
                raise
            shown.say(f"No examples: {error}.")
            shown.result(_told(info) | {"examples": []})
            return
        shown.warn([*found.skipped, *found.warnings])
        for item in found.items:
            shown.say()
            for sentence in _example(item):
                shown.say(sentence)
        told = _told(info) if info else {}
        shown.result(told | {"provenance": found.provenance, "examples": [_record(item) for item in found.items]})


@app.command
def export(
    name: str,
    *,
    out: Path,
    root: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    force: Annotated[bool, Parameter(negative=())] = False,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> None:
    """Write a set as JSONL of our own schema, which `retcon edit`, `retcon eval` and `retcon forget` read.

    Parameters
    ----------
    name
        A name of `retcon sets`, or a file or folder in any format that Retcon reads.
    out
        The file to write.
    root
        The folder below which the files of named sets are; by default the one that RETCON_DATA names.
    split
        The part of a named set.
    limit
        Take the first so many records; of facts a seeded sample.
    seed
        Of what is drawn.
    force
        Replace the file that --out names.
    """
    with screen(output) as shown:
        from retcon import sets

        if out.exists() and not force:
            raise RetconError(f"{out} is there already; name another --out, or add --force")
        found = sets.load(name, root=root, split=split, limit=limit, seed=seed)
        shown.warn([*found.skipped, *found.warnings])
        sha256 = sets.export(found.items, out)
        shown.say(f"written: {out}, {len(found.items)} records, SHA-256 {sha256}")
        if found.info is not None:
            shown.say(f"Licence: {found.info.licence}. Please cite:\n{found.info.citation}")
        shown.result({"out": str(out), "n": len(found.items), "sha256": sha256, "provenance": found.provenance})


def _count(info: "SetInfo") -> str:
    """Of the default split, as published, where that is known."""
    if info.name == "builtin":
        from retcon.sets.builtin import compose

        return f"{len(compose()):,}"
    count = info.records.get(next(iter(info.files)))
    return "–" if count is None else f"{count:,}"


def _told(info: "SetInfo") -> dict[str, Any]:
    return {
        "name": info.name,
        "about": info.about,
        "kind": info.kind,
        "licence": info.licence,
        "citation": info.citation,
        "url": info.url,
        "splits": list(info.files),
        "records": dict(info.records),
        "neighbour": info.neighbour,
        "hub": info.hub.repo if info.hub else None,
    }


def _describe(shown: Screen, info: "SetInfo") -> None:
    rows = [
        ("what it holds", info.about),
        ("kind", info.kind),
        ("licence", info.licence),
        ("from", info.url + (f", on the hub as {info.hub.repo}" if info.hub else "")),
        ("files", "; ".join(f"{split}: {' or '.join(names)}" for split, names in info.files.items())),
        ("a neighbour is", info.neighbour),
        ("cite", info.citation),
    ]
    shown.table([info.name, ""], [row for row in rows if row[1]])


def _example(item: "Case | ForgetCase") -> list[str]:
    from retcon.requests import Case

    if not isinstance(item, Case):
        forget = item.forget
        return [forget.question, f"  answer: {forget.answer}"] + ([f"  group: {forget.group}"] if forget.group else [])
    edit = item.edit
    lines = [f"{edit.text} -> {edit.target}" + (f" (was {edit.old})" if edit.old else "")]
    lines += [f"  paraphrase: {prompt}" for prompt in item.paraphrases[:2]]
    lines += [f"  neighbour: {probe.prompt} -> {probe.answers[0]}" for probe in item.neighbours[:2]]
    lines += [f"  {probe.kind or 'follows'}: {probe.prompt} -> {probe.answers[0]}" for probe in item.portability[:2]]
    return lines


def _record(item: "Case | ForgetCase") -> dict[str, Any]:
    from retcon.sets.export import record

    return record(item)
