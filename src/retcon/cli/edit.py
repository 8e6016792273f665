"""`retcon edit`: a file of facts to a patch."""

import dataclasses
import glob
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

import retcon
from retcon.cli.answers import answers
from retcon.cli.common import ModelOptions, OutputOptions, load_patch
from retcon.cli.screen import Screen, screen
from retcon.cli.settings import parse_settings
from retcon.errors import RetconError
from retcon.memory import peak_memory_mb
from retcon.storage import digest

if TYPE_CHECKING:
    from retcon.lm import LM
    from retcon.methods import Method
    from retcon.patch import Patch
    from retcon.requests import Edit

__all__ = ["compute", "configured", "run", "run_key"]

DEFAULT_MODEL = ModelOptions()
DEFAULT_OUTPUT = OutputOptions()
SHOWN = 5


def run(
    *,
    edits: Path,
    out: Path,
    method: str = "memit",
    settings: Annotated[tuple[str, ...], Parameter(name="--set", consume_multiple=True, negative=())] = (),
    limit: int | None = None,
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
        The facts: JSONL or CSV with prompt, subject, target_new and, if known, target_true; plain or .gz.
    out
        The folder for the patch.
    method
        One of `retcon methods`.
    settings
        Options of the method as key=value; `retcon methods NAME` lists them.
    limit
        Take the first so many edits.
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
        from retcon import methods
        from retcon.requests import load_edits

        kind = type(methods.method(method))
        config = configured(kind.Config, settings, seed)
        if sequential is not None and sequential < 1:
            raise RetconError(f"--sequential {sequential} is no number of edits; take at least 1")
        older = _older(out, force)
        base = load_patch(base_patch)
        loaded = load_edits(edits, limit=limit, skip_bad=skip_bad, conflicts=conflicts)
        show.warn([*loaded.skipped, *loaded.warnings])
        lm = model.load()
        key = run_key(lm, method, config, loaded.items, base=base, chunk=sequential)
        if older is not None and older.info.get("run") == key:
            show.say(f"{out} holds the patch of this very run already; nothing is left to do.")
            show.result(_result(older, out))
            return
        if older is not None and not force:
            raise RetconError(f"{out} holds the patch of another run, {older.id}; name another --out, or add --force")
        patch = compute(lm, kind(config), loaded.items, out, key, base=base, chunk=sequential, cache=cache)
        _show_answers(show, lm, loaded.items[:SHOWN], base, patch)
        seconds = patch.info["seconds"]
        show.say(f"Written: {out}, patch {patch.id}: {patch.summary}.")
        show.say("Seconds: " + ", ".join(f"{phase} {value:.1f}" for phase, value in seconds.items()) + ".")
        show.say(f'Try it:  retcon ask --patch {out} "{loaded.items[0].text}"')
        show.result(_result(patch, out))


def configured(kind: type, settings: Sequence[str], seed: int) -> Any:
    """A config of the dataclass `kind` from `--set` and `--seed`."""
    values = parse_settings(kind, settings)
    if "seed" in {field.name for field in dataclasses.fields(kind)}:
        values.setdefault("seed", seed)
    return kind(**values)


def compute(
    lm: "LM",
    method: "Method",
    edits: "Sequence[Edit]",
    out: Path,
    key: str,
    *,
    base: "Patch | None" = None,
    chunk: int | None = None,
    cache: bool = True,
) -> "Patch":
    """Run a method, in one go or as a fold over chunks, and save the patch.

    What is done is kept beside `out` until then, so that a run that is stopped loses one batch or one chunk at most.

    Args:
        lm: the model.
        method: a method with its config.
        edits: the facts.
        out: the folder of the patch.
        key: names the run; only the same run goes on from what was kept.
        base: the patch to go on from.
        chunk: edits of one step of the fold; None takes all at once.
        cache: whether targets are looked up and kept in the shared store.
    """
    from retcon import progress
    from retcon.targets import Store

    out = out.expanduser().absolute()
    kept = out.with_name(f".{out.name}.partial-{key[:12]}")
    stores = [Store.shared() if cache else Store(kept / "targets.sqlite")]
    patch = _resumed(kept / "patch") or base
    done = 0 if patch is None else len(patch.edits) - (0 if base is None else len(base.edits))
    size = chunk or len(edits)
    with progress.task("edits", len(edits)) as advance:
        advance(done)
        for start in range(done, len(edits), size):
            part = edits[start : start + size]
            made = method.edit(lm, part, state=patch, stores=stores)
            patch = dataclasses.replace(made, info=_added(None if start == 0 else patch, made, key))
            patch.save(kept / "patch" if start + len(part) < len(edits) else out)
            advance(len(part))
    assert patch is not None  # there is at least one edit
    for rest in out.parent.glob(f".{glob.escape(out.name)}.partial-*"):
        shutil.rmtree(rest, ignore_errors=True)
    return patch


def _resumed(folder: Path) -> "Patch | None":
    """The patch of the chunks that an earlier, stopped run had done."""
    from retcon.patch import Patch

    return Patch.load(folder) if folder.exists() else None


def _added(before: "Patch | None", made: "Patch", key: str) -> dict[str, Any]:
    """The info of a fold's patch: seconds, counts and facts of all its chunks."""
    old = {} if before is None else before.info
    info = dict(made.info)
    info["seconds"] = {phase: old.get("seconds", {}).get(phase, 0) + value for phase, value in info["seconds"].items()}
    for name in ("n", "targets_cached"):
        info[name] = old.get(name, 0) + info[name]
    info["facts"] = [*old.get("facts", []), *info["facts"]]
    return info | {"run": key, "peak_memory_mb": peak_memory_mb()}


def _older(out: Path, force: bool) -> "Patch | None":
    """The patch that `out` holds, None where it is free.

    Raises:
        RetconError: it holds something else than a patch.
    """
    from retcon.patch import Patch

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        return Patch.load(out)
    except RetconError as error:
        if force and (out / "patch.safetensors").is_file():  # a damaged patch may be replaced
            return None
        raise RetconError(f"{out} is there and holds no patch that can be read ({error}); name another --out") from None


def run_key(
    lm: "LM",
    method: str,
    config: Any,
    edits: "Sequence[Edit]",
    *,
    base: "Patch | None" = None,
    chunk: int | None = None,
) -> str:
    """Hash of all that decides the patch of a run."""
    from retcon.requests import to_dict

    asked = [to_dict(edit) for edit in edits]
    state = [lm.fingerprint(), lm.chat, None if base is None else base.id]
    return digest(retcon.__version__, *state, method, dataclasses.asdict(config), asked, chunk)


def _show_answers(show: Screen, lm: "LM", edits: "Sequence[Edit]", base: "Patch | None", patch: "Patch") -> None:
    prompts = [edit.text for edit in edits]
    with ExitStack() as stack:
        if base is not None:
            stack.enter_context(base.on(lm.model))
        before = answers(lm, prompts, tokens=12)
    with patch.on(lm.model):
        after = answers(lm, prompts, tokens=12)
    wanted = [edit.target for edit in edits]
    show.table(["prompt", "wanted", "before", "after"], zip(prompts, wanted, before, after, strict=True))


def _result(patch: "Patch", out: Path) -> dict[str, Any]:
    """What --json prints; the seconds an edit are those of targets and solve, statistics being kept for later runs."""
    info, seconds = patch.info, patch.info["seconds"]
    return {
        "patch": str(out),
        "n": info["n"],
        "method": patch.history[-1].method,
        "seconds": seconds,
        "seconds_per_edit": round((seconds["targets"] + seconds["solve"]) / info["n"], 4),
        "targets_cached": info["targets_cached"],
        "peak_memory_mb": info["peak_memory_mb"],
        "id": patch.id,
        "facts": info["facts"],
    }
