"""What `retcon edit`, `retcon forget` and the demo share: from a method and edits to a patch on disk, once."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import retcon
from retcon.cli.answers import answers
from retcon.cli.common import load_patch
from retcon.cli.screen import Screen
from retcon.cli.settings import parse_settings
from retcon.errors import RetconError
from retcon.storage import digest, salted

if TYPE_CHECKING:
    from retcon.lm import LM
    from retcon.methods import Method
    from retcon.patch import Patch
    from retcon.requests import Edit

__all__ = ["SHOWN", "Making", "begin", "compute", "configured", "run_key"]

SHOWN = 5
"""Answers that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """A run that ends in a patch; `begin` makes it, after all that can be checked without the model."""

    show: Screen
    method: "Method"
    out: Path
    older: "Patch | None"
    """What `out` holds."""
    base: "Patch | None"
    chunk: int | None
    """Edits of one step of a fold; None for all at once."""
    cache: bool
    force: bool

    def uses(self, retain: Path | None, else_for: str = "") -> bool:
        """Whether the method makes use of what is to stay; where it does not, a file of it is warned of.

        Args:
            retain: the file, None where there is none.
            else_for: what it is of use for all the same.
        """
        if retain is None or getattr(self.method, "uses_retain", True):
            return True
        self.show.warn(
            [f"{self.method.name} makes no use of texts to keep; {retain.name} is {else_for or 'left aside'}"]
        )
        return False

    def made(
        self,
        lm: "LM",
        edits: "Sequence[Edit]",
        *,
        retain: Sequence[Any] = (),
        more: Sequence[Any] = (),
        told: "Mapping[str, Any] | None" = None,
    ) -> "Patch | None":
        """The patch, saved to `out`; None where `out` holds that of this very run, which is then shown.

        Args:
            lm: the model.
            edits: the facts.
            retain: what is to stay, as the method takes it.
            more: what else decides the patch, in JSON types.
            told: what else the patch's info is to tell, in JSON types.

        Raises:
            RetconError: `out` holds the patch of another run, and is not to be replaced.
        """
        key = run_key(
            lm, self.method.name, self.method.config, edits, base=self.base, chunk=self.chunk, more=more
        )  # fmt: skip
        if self.older is not None and self.older.info.get("run") == key:
            self.show.say(f"{self.out} holds the patch of this very run already; nothing is left to do.")
            self.show.result(_result(self.older, self.out))
            return None
        if self.older is not None and not self.force:
            raise RetconError(
                f"{self.out} holds the patch of another run, {self.older.id}; name another --out, or add --force"
            )
        return compute(
            lm, self.method, edits, self.out, key, base=self.base, chunk=self.chunk, cache=self.cache, retain=retain,
            told=told,
        )  # fmt: skip

    def shown(
        self, lm: "LM", patch: "Patch", prompts: Sequence[str], wanted: Sequence[str], *, tokens: int = 12
    ) -> None:
        """What the model says to some prompts, before and after; for people only."""
        with ExitStack() as stack:
            if self.base is not None:
                stack.enter_context(self.base.on(lm.model))
            before = answers(lm, prompts, tokens=tokens)
        with patch.on(lm.model):
            after = answers(lm, prompts, tokens=tokens)
        self.show.table(["prompt", "wanted", "before", "after"], zip(prompts, wanted, before, after, strict=True))

    def finished(self, patch: "Patch", ask: str) -> None:
        """Where the patch is, what it took, how it is tried (`ask`: the end of that command), and the JSON."""
        seconds = ", ".join(f"{phase} {value:.1f}" for phase, value in patch.info["seconds"].items())
        self.show.say(f"Written: {self.out}, patch {patch.id}: {patch.summary}.")
        self.show.say(f"Seconds: {seconds}.")
        self.show.say(f"Try it:  retcon ask --patch {self.out} {ask}")
        self.show.result(_result(patch, self.out))


def begin(
    show: Screen,
    method: str,
    settings: Sequence[str],
    *,
    out: Path,
    base_patch: Path | None = None,
    sequential: int | None = None,
    seed: int = 0,
    cache: bool = True,
    force: bool = False,
    usual: Mapping[str, Any] = MappingProxyType({}),
) -> Making:
    """Check all that can be checked before a file of edits is read and a model loaded; `--set` goes before `usual`.

    Raises:
        RetconError: there is no such method or option, `sequential` is no number of edits, `out` holds something else
            than a patch, or `base_patch` none.
    """
    from retcon import methods

    kind = type(methods.method(method))
    rule = kind(configured(kind.Config, settings, seed, usual))
    if sequential is not None and sequential < 1:
        raise RetconError(f"--sequential {sequential} is no number of edits; take at least 1")
    older = _older_patch(out, force)
    base = load_patch(base_patch)
    return Making(
        show=show, method=rule, out=out, older=older, base=base, chunk=sequential, cache=cache, force=force
    )  # fmt: skip


def configured(kind: type, settings: Sequence[str], seed: int, usual: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """A config of the dataclass `kind` from `--set`, `--seed`, and what the command itself gives a method."""
    values = {**usual, **parse_settings(kind, settings)}
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
    from retcon.bench.folding import folded

    where = out.expanduser().absolute()
    after = None if told is None else lambda *_: told
    return folded(lm, method, edits, where, key, base=base, chunk=chunk, cache=cache, retain=retain, after=after)


def _older_patch(out: Path, force: bool) -> "Patch | None":
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
    more: Sequence[Any] = (),
) -> str:
    """Hash of all that decides the patch of a run; `more`, in JSON types, is whatever else does."""
    from retcon.requests import to_dict

    asked = [{**to_dict(edit), **_withheld(edit)} for edit in edits]
    state = [lm.fingerprint(), lm.chat, None if base is None else base.id]
    return digest(retcon.__version__, *state, method, dataclasses.asdict(config), asked, chunk, *more)


def _withheld(edit: "Edit") -> dict[str, str]:
    """What a record leaves out of an edit, salted: the key stands in the patch, where texts could be tried on it."""
    if not edit.hidden and edit.tie is None:
        return {}
    return {"withheld": salted(edit.prompt, edit.subject or "", edit.target, edit.old or "", edit.tie or "")}


def _result(patch: "Patch", out: Path) -> dict[str, Any]:
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
