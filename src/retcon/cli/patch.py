"""`retcon patch`: look into patches, compose them, fold them into a model, export them."""

import functools
import operator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from retcon.cli.common import ModelOptions, OutputOptions, load_patch
from retcon.cli.screen import Screen, screen
from retcon.errors import RetconError

if TYPE_CHECKING:
    from retcon.evaluate import ForgetReport, Report
    from retcon.patch import Patch

__all__ = ["compose", "explain", "export", "merge", "scale", "show", "verify", "without"]

DEFAULT_MODEL = ModelOptions()
DEFAULT_OUTPUT = OutputOptions()
SHOWN = 10


def show(patch: Path, /, *, output: OutputOptions = DEFAULT_OUTPUT) -> None:
    """Say what a patch holds: its edits, how they were made, what it was made for.

    Parameters
    ----------
    patch
        The folder of the patch.
    """
    with screen(output) as shown:
        from retcon.methods.memories import name_of

        loaded = _load(patch)
        shown.table(["what", "value"], _facts(loaded))
        edits = loaded.edits
        rows = (
            (name_of(edit), _text(edit), edit.get("target_true") or "–", edit["target_new"]) for edit in edits[:SHOWN]
        )
        shown.table(["id", "prompt", "old", "new"], rows)
        if len(edits) > SHOWN:
            shown.say(f"... and {len(edits) - SHOWN} more edits; --json lists them all")
        shown.result(_summary(loaded) | {"history": [step.to_dict() for step in loaded.history], "info": loaded.info})


def verify(patch: Path, /, *, against: str | None = None, output: OutputOptions = DEFAULT_OUTPUT) -> None:
    """Check a patch's files, and that it fits a model.

    Parameters
    ----------
    patch
        The folder of the patch.
    against
        The model to check it against; without one only the files are checked.
    """
    with screen(output) as shown:
        loaded = _load(patch)
        if against is not None:
            lm = ModelOptions(model=against).load()
            with loaded.on(lm.model):
                pass
        shown.say(f"Patch {loaded.id} is whole" + ("." if against is None else f" and fits {against}."))
        shown.result({"patch": loaded.id, "whole": True, "fits": None if against is None else True})


def explain(
    patch: Path, /, *prompts: str, model: ModelOptions = DEFAULT_MODEL, output: OutputOptions = DEFAULT_OUTPUT
) -> None:
    """Say what each part of a patch makes of a prompt: which entry answers it, and how near it came to answering.

    Parameters
    ----------
    patch
        The folder of the patch.
    prompts
        The prompts, each in quotes.
    """
    if not prompts:
        raise RetconError(
            'there is no prompt; write one in quotes: retcon patch explain DIR "The capital of France is"'
        )
    with screen(output) as shown:
        from retcon import tokens
        from retcon.methods.memories import name_of
        from retcon.patch.explain import sentence
        from retcon.requests import text_of

        loaded = _load(patch)
        lm = model.load()
        texts = {name_of(edit): text for edit in loaded.edits if (text := text_of(edit)) is not None}
        explained = []
        for prompt in prompts:
            parts = loaded.explain(lm.model, tokens.encode(lm, lm.render(prompt)))
            words = [sentence(part, texts) for part in parts]
            shown.say(prompt)
            for part, said in zip(parts, words, strict=True):
                shown.say(f"  {part['path'] or 'before the prompt'}: {said}")
            explained.append({"prompt": prompt, "parts": parts, "words": words})
        shown.result({"patch": loaded.id, "explained": explained})


def merge(
    patch: Path, /, *, out: Path, model: ModelOptions = DEFAULT_MODEL, output: OutputOptions = DEFAULT_OUTPUT
) -> None:
    """Fold a patch into a model's weights and write the model to a folder that plain transformers loads.

    Parameters
    ----------
    patch
        The folder of the patch.
    out
        The folder for the edited model.
    """
    with screen(output) as shown:
        _export_model(shown, _load(patch), model, out)


def compose(*patches: Path, out: Path, output: OutputOptions = DEFAULT_OUTPUT) -> None:
    """Join patches into one, in the order given: each made on top of those before it, or independent of them.

    Parameters
    ----------
    patches
        The folders of two or more patches.
    out
        The folder for the joined patch.
    """
    if len(patches) < 2:
        raise RetconError("compose joins two or more patches; name their folders in order")
    with screen(output) as shown:
        _save(shown, functools.reduce(operator.add, [_load(folder) for folder in patches]), out)


def scale(patch: Path, factor: float, /, *, out: Path, output: OutputOptions = DEFAULT_OUTPUT) -> None:
    """Make a patch's effect stronger (above 1) or weaker (below 1).

    Parameters
    ----------
    patch
        The folder of the patch.
    factor
        What to multiply the change of the weights by.
    out
        The folder for the scaled patch.
    """
    with screen(output) as shown:
        _save(shown, _load(patch).scale(factor), out)


def without(patch: Path, /, *ids: str, out: Path, output: OutputOptions = DEFAULT_OUTPUT) -> None:
    """Take edits out of a patch again, where grace, wise, ike or scr hold them; the others answer as before.

    Parameters
    ----------
    patch
        The folder of the patch.
    ids
        The ids of the edits, as `retcon patch show` lists them.
    out
        The folder for the patch without them.
    """
    if not ids:
        raise RetconError("no edit is named; give the ids that `retcon patch show` lists")
    with screen(output) as shown:
        from retcon.methods.removal import without as taken_out

        _save(shown, taken_out(_load(patch), ids), out)


def export(
    patch: Path,
    /,
    *,
    format: Literal["peft", "model"],
    out: Path,
    rank: int | None = None,
    report: Path | None = None,
    model: ModelOptions = DEFAULT_MODEL,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> None:
    """Write a patch as a PEFT adapter (exact; no model is loaded) or as a whole edited model, with a model card.

    Parameters
    ----------
    patch
        The folder of the patch.
    format
        peft: a LoRA adapter that PEFT, transformers and vLLM load. model: a folder that plain transformers loads.
    out
        The folder to write.
    rank
        For peft and changes that are not low-rank: the rank to cut them to; the error is stated.
    report
        The report.json of `retcon eval --patch`: its figures go into the card, README.md.
    """
    with screen(output) as shown:
        from retcon.patch.card import Held
        from retcon.report import cards

        loaded = _load(patch)
        measured = None if report is None else cards.read(report)
        cards.card(loaded, measured)  # a report on another patch is refused before anything is written
        if format == "model":
            _export_model(shown, loaded, model, out, measured)
            return
        made = loaded.to_lora(out, rank=rank)
        if measured is not None:
            held = Held(kind="adapter", rank=made.rank, lost=max(made.errors.values()))
            cards.write(loaded, measured, out, held=held)
        needed = made.max_lora_rank
        serve = "which is more than vLLM serves" if needed is None else f"vLLM needs --max-lora-rank {needed}"
        worst = max(made.errors.values(), default=0.0)
        lost = f", {worst:.1%} of the change lost in the worst module" if worst else ", exact"
        shown.say(f"Written: {out}, a PEFT adapter of rank {made.rank}{lost}; {serve}.")
        facts = {"patch": loaded.id, "out": str(out), "format": "peft", "rank": made.rank}
        shown.result(facts | {"max_lora_rank": needed, "errors": made.errors})


def _load(folder: Path) -> "Patch":
    loaded = load_patch(folder)
    assert loaded is not None  # only a folder of None is no patch
    return loaded


def _save(shown: Screen, made: "Patch", out: Path) -> None:
    made.save(out)
    shown.say(f"Written: {out}, patch {made.id} with {len(made.edits)} edits.")
    shown.result(_summary(made) | {"out": str(out)})


def _export_model(
    shown: Screen,
    loaded: "Patch",
    model: ModelOptions,
    out: Path,
    measured: "Report | ForgetReport | None" = None,
) -> None:
    lm = model.load()
    lost = loaded.export_model(lm.model, lm.tokenizer, out)
    if measured is not None:
        from retcon.patch.card import Held
        from retcon.report import cards

        cards.write(loaded, measured, out, held=Held(kind="model", lost=max(lost.values(), default=0.0)))
    shown.say(f"Written: {out}, the edited model; AutoModelForCausalLM.from_pretrained({str(out)!r}) loads it.")
    shown.result({"patch": loaded.id, "out": str(out), "format": "model", "lost": lost})


def _summary(loaded: "Patch") -> dict[str, Any]:
    return {
        "patch": loaded.id,
        "method": loaded.method,
        "n": len(loaded.edits),
        "parent": loaded.parent,
        "base": loaded.base.to_dict(),
        "modules": {path: {"shape": list(entry.shape), "rank": entry.rank} for path, entry in loaded.entries.items()},
    }


def _facts(loaded: "Patch") -> list[tuple[str, str]]:
    steps = [f"{step.method}: {len(step.edits)} edits, seed {step.seed}" for step in loaded.history]
    modules = [f"{path or 'the prompt'} rank {entry.rank}" for path, entry in loaded.entries.items()]
    return [
        ("patch", loaded.id),
        ("made for", loaded.base.title),
        ("on top of", loaded.parent or "nothing"),
        ("steps", "\n".join(steps)),
        ("changes", "\n".join(modules)),
    ]


def _text(edit: dict[str, Any]) -> str:
    from retcon.requests import text_of

    return text_of(edit) or f"(withheld, {edit['id']})"
