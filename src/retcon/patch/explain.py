"""What the memories of a patch make of one prompt."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from retcon.patch.asking import Embedder, answers
from retcon.patch.chain import parts_of
from retcon.patch.codebook import Codebook
from retcon.patch.context import EVERY, ROOT, Context
from retcon.patch.entries import Entry
from retcon.patch.forward_record import ForwardRecord
from retcon.patch.gated import Gated
from retcon.patch.live import applied

if TYPE_CHECKING:
    from retcon.patch.patch import Patch

__all__ = ["explained", "sentence"]

_NAMED = 3
"""Edits of a memory that a sentence names."""


def explained(patch: "Patch", model: nn.Module, ids: Sequence[int]) -> list[dict[str, Any]]:
    """One record for each part of the patch's entries; see `Patch.explain`."""
    from retcon.arch import frozen  # here, so that patches can be looked into without transformers

    found: dict[str, list[dict[str, Any]]] = {path: [] for path in patch.entries}
    with ExitStack() as stack:
        for path, entry in patch.entries.items():
            if not entry.folds and path != ROOT:  # hooked before the patch is, so that it sees what the patch sees
                watch = partial(_watch, model, entry, found[path])
                handle = model.get_submodule(path).register_forward_hook(watch, with_kwargs=True)
                stack.callback(handle.remove)
        stack.enter_context(patch.on(model))
        stack.enter_context(frozen(model))
        stack.enter_context(torch.no_grad())
        device = next(model.parameters()).device
        for part in parts_of(patch.entries[ROOT]) if ROOT in patch.entries else ():
            assert isinstance(part, Context)
            found[ROOT].append(_of_context(part.to(device, torch.float32), model, ids))
        model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False)
    for path, entry in patch.entries.items():
        if entry.folds:
            found[path].append(_told(entry, "it is a change of the weight, whatever the prompt"))
    return [{"path": path, **told} for path, parts in found.items() for told in parts]


def _watch(
    model: nn.Module,
    entry: Entry,
    found: list[dict[str, Any]],
    _module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    y: Tensor,
) -> None:
    """Ask the parts of an entry, each on the output that those before it leave.

    The prompt's own forward is the last; those before it are questions that a context asks.
    """
    recorder = applied(model)[-1].recorder
    if recorder is None or recorder.now is None:
        return
    x: Tensor = args[0] if args else next(iter(kwargs.values()))
    record = recorder.now
    found.clear()
    for number, given in enumerate(parts_of(entry)):
        part = given.to(x.device, torch.promote_types(x.dtype, torch.float32))
        if isinstance(part, Codebook):
            found.append(_of_codebook(part, x, record))
        elif isinstance(part, Gated):
            found.append(_of_gated(part, x, y, record))
        elif part.folds:
            found.append(_told(part, "it is a change of the weight, whatever the prompt"))
        else:
            found.append(_told(part, "it does not say"))
        y = part.apply(x, y, None if part.folds else _apart(record, number))


def sentence(told: Mapping[str, Any], texts: Mapping[str, str] | None = None) -> str:
    """One record of `explained` in words: which memory answers and how near the prompt came, or why none does.

    Args:
        told: the record.
        texts: prompts of edits by their ids, where they may be told.
    """
    memories: list[dict[str, Any]] = told.get("memories", [])
    if not memories:
        return f"{told['decision']}."
    words = {"codebook": _of_keys, "gated_memory": _of_scores, "context": _of_cosines}.get(told["kind"])
    return f"{told['decision']}." if words is None else words(memories, texts or {})


def _of_keys(memories: Sequence[dict[str, Any]], texts: Mapping[str, str]) -> str:
    near = next((one for one in memories if one["taken"]), None) or min(memories, key=lambda one: one["distance"])
    whose, many = _named(near["edits"], texts), f"of {len(memories)} key{'' if len(memories) == 1 else 's'}"
    apart, radius = f"at a distance of {near['distance']:.4g}", f"its radius of {near['radius']:.4g}"
    if near["taken"]:
        return f"the key of {whose} answers, the nearest {many}, {apart}, within {radius}."
    return f"no key answers; the nearest {many}, that of {whose}, lies {apart}, outside {radius}."


def _of_scores(memories: Sequence[dict[str, Any]], texts: Mapping[str, str]) -> str:
    taken = next((one for one in memories if one["taken"]), None)
    near = taken or max(memories, key=lambda one: one["score"] / max(one["threshold"], 1e-30))
    number, whose = memories.index(near) + 1, _named(near["edits"], texts)
    gate = f"its gate stands at {near['score']:.4g}, and {near['threshold']:.4g} opens it"
    if taken is not None:
        return f"memory {number} of {len(memories)} answers, which holds {whose}: {gate}."
    return f"no memory answers; the nearest to it, memory {number} of {len(memories)}, holds {whose}: {gate}."


def _of_cosines(memories: Sequence[dict[str, Any]], texts: Mapping[str, str]) -> str:
    taken = [one for one in memories if one["taken"]]
    if not taken:
        near = max(memories, key=lambda one: one["cosine"])
        return f"no fact goes before the prompt; the most similar of {len(memories)} is {_likeness(near, texts)}."
    facts = "; ".join(_likeness(one, texts) for one in taken[:_NAMED])
    more = f", and {len(taken) - _NAMED} more" if len(taken) > _NAMED else ""
    return f"{len(taken)} of {len(memories)} facts before the prompt: {facts}{more}."


def _likeness(one: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """How like the prompt a fact is, and what the model said when it was asked about it."""
    needed = "" if one["threshold"] <= EVERY else f" ({one['threshold']:.4g} is needed)"
    said = f"{_named(one['edits'], texts)}, cosine {one['cosine']:.4g}{needed}"
    if "confirmed_by" in one:
        said += f", yes over no {one['confirmed_by']:.4g} ({one['needed']:.4g} is needed)"
    return said


def _named(edits: Sequence[str], texts: Mapping[str, str]) -> str:
    """Edits by their prompts, or by their ids where those are not to be told."""
    if not edits:
        return "no edit"
    names = [f'"{texts[name]}"' if name in texts else f"edit {name}" for name in edits[:_NAMED]]
    return ", ".join(names) + (f" and {len(edits) - _NAMED} more" if len(edits) > _NAMED else "")


def _apart(record: ForwardRecord, number: int) -> ForwardRecord:
    """The record under a name of its own, so that nothing decided here is held for others."""
    return record.part(f"explained {number}")


def _told(entry: Entry, decision: str, memories: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"kind": entry.kind, "decision": decision} | ({} if memories is None else {"memories": memories})


def _of_codebook(book: Codebook, x: Tensor, record: ForwardRecord) -> dict[str, Any]:
    query = record.laid_out(x)[:1, int(record.last[0])]
    found = book.lookup(query)
    nearest, hit = int(found.key[0]), bool(found.hit[0])
    gaps = (book.keys - query.to(book.keys.dtype)).norm(dim=1).tolist()
    memories = [
        {"edits": book.edits_of(key), "distance": gaps[key], "radius": float(book.radii[key]),
         "taken": hit and key == nearest}
        for key in range(book.rank)
    ]  # fmt: skip
    words = "its nearest key answers" if hit else "it lies outside the radius of its nearest key"
    return _told(book, words, memories)


def _of_gated(gated: Gated, x: Tensor, y: Tensor, record: ForwardRecord) -> dict[str, Any]:
    states, old = record.laid_out(x)[:1], record.laid_out(y)[:1]
    scores = gated.scores(states, old, record.prompt[:1])[0].tolist()
    taken = int(gated.choose(states, old, record.prompt[:1])[0])
    memories = [
        {"edits": list(gated.names[number]), "score": scores[number],
         "threshold": gated.ratio * float(gated.thresholds[number]), "taken": number == taken}
        for number in range(gated.rank)
    ]  # fmt: skip
    return _told(gated, "a memory takes it" if taken >= 0 else "no memory scores above its threshold", memories)


def _of_context(context: Context, model: nn.Module, ids: Sequence[int]) -> dict[str, Any]:
    (choice,) = context.choose([ids], Embedder(model, hooked=False), partial(answers, model, context))
    memories = []
    for fact, name in enumerate(context.names):
        told = {"edits": [name], "cosine": float(choice.cosines[fact]), "threshold": context.threshold}
        if fact in choice.answers and context.question is not None:
            told |= {"confirmed_by": choice.answers[fact], "needed": context.question.threshold}
        memories.append(told | {"taken": fact in choice.facts})
    n = len(choice.facts)
    words = "no fact goes before it" if n == 0 else f"{n} fact{'' if n == 1 else 's'} before it"
    return _told(context, words, memories)
