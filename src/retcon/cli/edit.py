"""`retcon edit`: a file of facts to a patch."""

import dataclasses
import glob
import shutil
from collections.abc import Mapping, Sequence
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

__all__ = ["compute", "configured", "held", "older_patch", "result", "run", "run_key", "show_answers", "show_written"]

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
        The facts: JSONL or CSV with prompt, subject, target_new and, if known, target_true; plain or .gz; or a name of
        `retcon sets`, such as builtin.
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
        from retcon import methods
        from retcon.sets import load_edits

        kind = type(methods.method(method))
        config = configured(kind.Config, settings, seed)
        if sequential is not None and sequential < 1:
            raise RetconError(f"--sequential {sequential} is no number of edits; take at least 1")
        older = older_patch(out, force)
        base = load_patch(base_patch)
        loaded = load_edits(edits, limit=limit, skip_bad=skip_bad, conflicts=conflicts)
        rule = kind(config)
        kept = _retained(show, retain, rule, skip_bad)
        show.warn([*loaded.skipped, *loaded.warnings])
        lm = model.load()
        key = run_key(lm, method, config, loaded.items, base=base, chunk=sequential, more=[kept] if kept else [])
        if held(show, older, out, key, force):
            return
        patch = compute(lm, rule, loaded.items, out, key, base=base, chunk=sequential, cache=cache, retain=kept)
        shown = loaded.items[:SHOWN]
        show_answers(show, lm, [edit.text for edit in shown], [edit.target for edit in shown], base, patch)
        show_written(show, patch, out)
        show.say(f'Try it:  retcon ask --patch {out} "{loaded.items[0].text}"')
        show.result(result(patch, out))


def _retained(show: Screen, file: Path | None, method: "Method", skip_bad: bool) -> list[str]:
    """The texts to keep; none, and a warning, where the method makes no use of them."""
    from retcon.requests.texts import load_texts

    if file is None:
        return []
    loaded = load_texts(file, skip_bad=skip_bad)
    show.warn(loaded.skipped)
    if getattr(method, "uses_retain", True):
        return loaded.items
    show.warn([f"{method.name} makes no use of texts to keep; {file.name} is left aside"])
    return []


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
    retain: Sequence[Any] = (),
    told: "Mapping[str, Any] | None" = None,
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
        retain: what is to stay, for methods that use it.
        told: what else the patch's info is to tell, in JSON types.
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
            made = method.edit(lm, part, retain=retain, state=patch, stores=stores)
            patch = dataclasses.replace(made, info=_added(None if start == 0 else patch, made, key) | dict(told or {}))
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


def older_patch(out: Path, force: bool) -> "Patch | None":
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


def held(show: Screen, older: "Patch | None", out: Path, key: str, force: bool) -> bool:
    """Whether `out` holds the patch of this very run already; then it is shown.

    Raises:
        RetconError: it holds the patch of another run, and is not to be replaced.
    """
    if older is not None and older.info.get("run") == key:
        show.say(f"{out} holds the patch of this very run already; nothing is left to do.")
        show.result(result(older, out))
        return True
    if older is not None and not force:
        raise RetconError(f"{out} holds the patch of another run, {older.id}; name another --out, or add --force")
    return False


def run_key(
    lm: "LM",
    method: str,
    config: Any,
    edits: "Sequence[Edit]",
    *,
    base: "Patch | None" = None,
    chunk: int | None = None,
    more: Sequence[Any] = (),
) -> str:
    """Hash of all that decides the patch of a run; `more`, in JSON types, is whatever else does."""
    from retcon.requests import to_dict

    asked = [to_dict(edit) for edit in edits]
    state = [lm.fingerprint(), lm.chat, None if base is None else base.id]
    return digest(retcon.__version__, *state, method, dataclasses.asdict(config), asked, chunk, *more)


def show_answers(
    show: Screen,
    lm: "LM",
    prompts: Sequence[str],
    wanted: Sequence[str],
    base: "Patch | None",
    patch: "Patch",
    tokens: int = 12,
) -> None:
    """What the model says to some prompts, before and after; for people only."""
    with ExitStack() as stack:
        if base is not None:
            stack.enter_context(base.on(lm.model))
        before = answers(lm, prompts, tokens=tokens)
    with patch.on(lm.model):
        after = answers(lm, prompts, tokens=tokens)
    show.table(["prompt", "wanted", "before", "after"], zip(prompts, wanted, before, after, strict=True))


def show_written(show: Screen, patch: "Patch", out: Path) -> None:
    """Where the patch is, and what it took."""
    show.say(f"Written: {out}, patch {patch.id}: {patch.summary}.")
    show.say("Seconds: " + ", ".join(f"{phase} {value:.1f}" for phase, value in patch.info["seconds"].items()) + ".")


def result(patch: "Patch", out: Path) -> dict[str, Any]:
    """What --json prints; the seconds an edit are those of targets and solve, statistics being kept for later runs."""
    info, seconds = patch.info, patch.info["seconds"]
    more = {"forget": info["forget"]} if "forget" in info else {}
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
        **more,
    }
