"""`retcon edit`: a file of facts to a patch."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from retcon.cli.common import ModelOptions, OutputOptions
from retcon.cli.making import SHOWN, Making, begin
from retcon.cli.screen import screen

__all__ = ["run"]

DEFAULT_MODEL = ModelOptions()
DEFAULT_OUTPUT = OutputOptions()


def run(
    *,
    edits: Path,
    out: Path,
    method: str = "memit",
    settings: Annotated[tuple[str, ...], Parameter(name="--set", consume_multiple=True, negative=())] = (),
    limit: int | None = None,
    retain: Path | None = None,
    base_patch: Path | None = None,
    sequential: int | None = None,
    seed: int = 0,
    cache: bool = True,
    skip_bad: Annotated[bool, Parameter(negative=())] = False,
    conflicts: Literal["error", "last"] = "error",
    force: Annotated[bool, Parameter(negative=())] = False,
    model: ModelOptions = DEFAULT_MODEL,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> None:
    """Compute a patch that changes the facts of a file.

    The model itself is not touched. A run that was stopped goes on where it was when the same command is given again.

    Parameters
    ----------
    edits
        The facts: JSONL or CSV with prompt, subject, target_new and, if known, target_true; plain or .gz; a
        published file, such as counterfact.json; or a name of `retcon sets`, such as builtin.
    out
        The folder for the patch.
    method
        One of `retcon methods`.
    settings
        Options of the method as key=value; `retcon methods NAME` lists them.
    limit
        Take the first so many edits.
    retain
        Texts or prompts to keep, one a line, or JSONL with text, prompt or question; for methods that use them.
    base_patch
        The folder of a patch to go on from; the new patch contains it.
    sequential
        Edit in chunks of so many, each on top of those before it.
    seed
        Of everything that is drawn.
    cache
        Keep found targets on disk, and use those kept; --no-cache to measure.
    skip_bad
        Skip bad lines of the file and list them.
    conflicts
        What to do with different targets for one prompt: refuse, or keep the last.
    force
        Replace the patch that --out holds.
    """
    with screen(output) as show:
        making = begin(
            show, method, settings, out=out, base_patch=base_patch, sequential=sequential, seed=seed, cache=cache,
            force=force,
        )  # fmt: skip
        from retcon.sets import LoadedSet, load_edits

        loaded = load_edits(edits, limit=limit, skip_bad=skip_bad, conflicts=conflicts)
        kept = _retained(making, retain, skip_bad)
        show.warn([*loaded.skipped, *loaded.warnings])
        lm = model.load()
        told = {"data": loaded.provenance} if isinstance(loaded, LoadedSet) else None
        patch = making.made(lm, loaded.items, retain=kept, more=[kept] if kept else [], told=told)
        if patch is None:
            return
        shown = loaded.items[:SHOWN]
        making.shown(lm, patch, [edit.text for edit in shown], [edit.target for edit in shown])
        making.finished(patch, f'"{loaded.items[0].text}"')


def _retained(making: Making, file: Path | None, skip_bad: bool) -> list[str]:
    """The texts to keep; none, and a warning, where the method makes no use of them."""
    from retcon.requests.texts import load_texts

    if file is None:
        return []
    loaded = load_texts(file, skip_bad=skip_bad)
    making.show.warn(loaded.skipped)
    return loaded.items if making.uses(file) else []
