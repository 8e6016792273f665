"""The contract of methods, its clauses on patches: what a method returns, and what can be done with it."""

import copy
import importlib.util
import json
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from retcon.errors import PatchError
from retcon.patch import Dense, Patch
from retcon.requests import to_dict
from retcon.testing.checks import difference
from retcon.testing.contract import Check, Trial, raised
from retcon.testing.snapshot import changed, snapshot

__all__ = ["CHECKS"]


def the_patch_tells_its_making(trial: Trial) -> None:
    """The patch names its method, configuration, edits and base; its tensors are finite fp32 on the CPU, ids int64."""
    made = trial.patch
    assert made.method == trial.method.name
    assert made.edits == tuple(to_dict(edit) for edit in trial.edits), "the edits of the patch are not those asked for"
    assert made.parent is None
    assert made.entries, "the patch changes nothing"
    assert made.base.weights.keys() >= made.entries.keys(), "the base does not tell all touched weights"
    assert all(step.config and step.versions for step in made.history)
    json.dumps(dict(made.info), allow_nan=False)
    assert {"statistics", "targets", "solve"} <= made.info["seconds"].keys()
    for path, entry in made.entries.items():
        for name, tensor in entry.tensors().items():
            whole = entry.folds or tensor.is_floating_point()  # ids are whole numbers
            assert tensor.dtype == (torch.float32 if whole else torch.int64), f"{name} of {path} is {tensor.dtype}"
            assert tensor.device.type == "cpu", f"{name} of {path} is on {tensor.device}"


def on_and_off_is_exact(trial: Trial) -> None:
    """`on` changes the logits and no weight; off, all is bit for bit as before, and on again does the same again."""
    model = trial.lm.model
    before, plain = snapshot(model, trial.lm.tokenizer), trial.logits()
    seen = []
    for _ in range(2):
        with trial.patch.on(model):
            seen.append(trial.logits())
        assert not changed(before, snapshot(model, trial.lm.tokenizer))
        assert torch.equal(trial.logits(), plain), "off, the logits are not those of before"
    assert torch.equal(*seen), "on a second time, the logits are others"
    assert not torch.equal(seen[0], plain), "the patch has no effect"


def a_saved_patch_is_the_same(trial: Trial) -> None:
    """Saved and loaded, the patch has the same id, memory and history, and gives the same logits."""
    for made in (trial.first, trial.patch):
        loaded = Patch.load(made.save(trial.folder / "patch"))
        assert loaded.id == made.id
        assert loaded.history == made.history
        assert _equal(loaded.state, made.state), "what the patch remembers does not survive a file"
        assert torch.equal(_logits_on(trial, loaded), _logits_on(trial, made)), "from a file, the logits differ"
    assert [file.name for file in trial.folder.iterdir()] == ["patch"], "saving left something beside the patch"


def merge_agrees_and_unmerge_is_exact(trial: Trial) -> None:
    """Merged, the model answers as with the patch on; unmerged, it is bit for bit as before."""
    model = trial.lm.model
    if not _folds(trial.patch):
        _refused(lambda: trial.patch.merge(model))
        return
    wanted = _logits_on(trial, trial.patch)
    before = snapshot(model, trial.lm.tokenizer, written=False)
    trial.patch.merge(model)
    merged = trial.logits()
    trial.patch.unmerge(model)
    assert not changed(before, snapshot(model, trial.lm.tokenizer, written=False)), "unmerge is not exact"
    _agree(merged, wanted, 1e-5, "merged")


def a_lora_does_the_same(trial: Trial) -> None:
    """The exported LoRA, loaded by PEFT, gives the logits of the patch."""
    if not _folds(trial.patch) or any(isinstance(entry, Dense) for entry in trial.patch.entries.values()):
        _refused(lambda: trial.patch.to_lora(trial.folder / "lora"))
        return
    trial.patch.to_lora(trial.folder / "lora")
    if importlib.util.find_spec("peft") is None:
        return
    from peft import PeftModel

    wanted = _logits_on(trial, trial.patch)
    with warnings.catch_warnings():  # of peft's own about transformers
        warnings.simplefilter("ignore", FutureWarning)
        adapted = PeftModel.from_pretrained(copy.deepcopy(trial.lm.model), str(trial.folder / "lora"))
    _agree(trial.logits(adapted), wanted, 1e-5, "as a LoRA")


def going_on_contains_what_was_there(trial: Trial) -> None:
    """`edit(state=A)` contains A, makes both edits, and is the same with A on the model and off it."""
    both = trial.edit(trial.edits[1:2], state=trial.first)
    assert trial.first.id in both.contains, "the result does not contain the state"
    assert both.parent is None
    assert both.edits == tuple(to_dict(edit) for edit in trial.edits[:2])
    assert both.history[: len(trial.first.history)] == trial.first.history
    with trial.first.on(trial.lm.model):
        inside = trial.edit(trial.edits[1:2], state=trial.first)
        held = trial.logits()
    assert inside.id == both.id, "with the state on the model already, the patch is another one"
    assert torch.equal(held, _logits_on(trial, trial.first)), "editing on top of a patch took it off the model"
    assert (trial.first + both).id == both.id
    plain = trial.likelihoods(trial.edits[:2])
    with both.on(trial.lm.model):
        now = trial.likelihoods(trial.edits[:2])
    assert raised(trial, plain, now), f"after both steps mean log-probabilities went from {plain} to {now}"


def an_increment_stands_on_its_parent(trial: Trial) -> None:
    """What is computed with A on the model has A as its parent: A + B holds, B + A and B alone are refused."""
    model, first = trial.lm.model, trial.first
    with first.on(model):
        more = trial.edit(trial.edits[1:2])
    assert more.parent == first.id
    assert more.edits == (to_dict(trial.edits[1]),), "an increment contains its own step alone"
    whole = first + more
    assert whole.edits == tuple(to_dict(edit) for edit in trial.edits[:2])
    _refused(lambda: more + first)
    _refused(lambda: more.attach(model).detach())
    with first.on(model), more.on(model):
        stacked = trial.logits()
    _agree(_logits_on(trial, whole), stacked, 1e-5, "as a sum")
    if not first.state and _folds(first):  # nothing is remembered, so a fold is the increment and what it stands on
        gap = difference(trial.edit(trial.edits[1:2], state=first), whole)
        assert gap < 1e-4, f"the fold and the sum differ by {gap:.1e}"


def memory_travels_with_the_patch(trial: Trial) -> None:
    """What a sequential method remembers goes on from the saved file, and counts in the next batch."""
    first = trial.first
    if not first.state:
        return
    loaded = Patch.load(first.save(trial.folder / "first"))
    following, again = (trial.edit(trial.edits[1:], state=state) for state in (first, loaded))
    assert again.id == following.id, f"from the file it goes on otherwise, by {difference(following, again):.1e}"
    forgetful = Patch(first.entries, first.base, first.history, {}, first.info, first.contains)
    assert difference(following, trial.edit(trial.edits[1:], state=forgetful)) > 0, "what is remembered has no effect"
    assert following.state.keys() >= first.state.keys()
    third = Patch.load(following.save(trial.folder / "second"))
    assert _equal(third.state, following.state)


CHECKS: tuple[Check, ...] = (
    the_patch_tells_its_making,
    on_and_off_is_exact,
    a_saved_patch_is_the_same,
    merge_agrees_and_unmerge_is_exact,
    a_lora_does_the_same,
    going_on_contains_what_was_there,
    an_increment_stands_on_its_parent,
    memory_travels_with_the_patch,
)


def _logits_on(trial: Trial, patch: Patch) -> Tensor:
    with ExitStack() as stack:
        stack.enter_context(patch.on(trial.lm.model))
        return trial.logits()


def _agree(found: Tensor, wanted: Tensor, tolerance: float, how: str) -> None:
    """Equal up to a tolerance relative to the greatest logit, and to the dtype of the model."""
    size = max(float(wanted.abs().max()), 1.0)
    gap = float((found.double() - wanted.double()).abs().max()) / size
    limit = max(tolerance, 8 * torch.finfo(wanted.dtype).eps)
    assert gap <= limit, f"{how}, the logits differ by {gap:.1e} of the greatest"


def _folds(patch: Patch) -> bool:
    return all(entry.folds for entry in patch.entries.values())


def _refused(call: Callable[[], Any]) -> None:
    try:
        call()
    except PatchError:
        return
    raise AssertionError("no PatchError was raised")


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
