"""The contract of methods, its clauses on models: what `edit` leaves behind, and on which models it works."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from retcon import api, patch
from retcon.arch import frozen
from retcon.errors import RequestError, RetconError
from retcon.methods import METHODS
from retcon.methods.unlearning.journal import FOLDER as JOURNALS
from retcon.patch import Entry, Patch
from retcon.targets import Store
from retcon.testing.contract import Check, Trial, raised
from retcon.testing.snapshot import changed, snapshot

__all__ = ["CHECKS", "Interrupted", "difference"]

_CLOSE = 1e-3
"""How far two ways to one patch may differ, relative to the change; targets are sought by Adam, which can make much of
little where a gradient is nearly zero."""


class Interrupted(Exception):  # noqa: N818 - what a user's Ctrl-C stands for
    """Raised in the middle of a run, and caught by nobody."""


def difference(one: Patch, other: Patch) -> float:
    """The norm of the difference of two patches' changes over the norm of the first's; infinite where paths differ.

    Of entries that are no change of a weight their tensors are compared.
    """
    if one.entries.keys() != other.entries.keys():
        return float("inf")
    both = [(_tensors(entry), _tensors(other.entries[path])) for path, entry in one.entries.items()]
    if any([t.shape for t in mine] != [t.shape for t in theirs] for mine, theirs in both):
        return float("inf")
    pairs = [(a.double(), b.double()) for mine, theirs in both for a, b in zip(mine, theirs, strict=True)]
    gap = sum(float((a - b).square().sum()) for a, b in pairs)
    return float((gap / max(sum(float(a.square().sum()) for a, _ in pairs), 1e-300)) ** 0.5)


def _tensors(entry: Entry) -> list[Tensor]:
    return [entry.delta()] if entry.folds else list(entry.tensors().values())


def the_model_is_untouched(trial: Trial) -> None:
    """After `edit`, weights, flags, hooks, modes, configuration and tokenizer are bit for bit as they were."""
    _ = trial.patch  # what transformers sets up on a first run is not the method's doing
    with _unusual_flags(trial.lm.model):
        before = snapshot(trial.lm.model, trial.lm.tokenizer)
        made = trial.edit(trial.edits)
        left = changed(before, snapshot(trial.lm.model, trial.lm.tokenizer))
    assert not left, f"edit changed {left}"
    assert made.id == trial.patch.id, "in train mode, or with frozen weights, the patch is another one"


def an_error_leaves_nothing_behind(trial: Trial) -> None:
    """An error in the middle of a run goes up to the caller, and no hook, flag or patch stays on the model."""
    paths = list(trial.patch.entries)
    before = snapshot(trial.lm.model, trial.lm.tokenizer)
    total = count()
    _edit_watched(trial.on(trial.lm.model), paths, lambda: next(total))
    calls = next(total)
    for end in sorted({0, calls // 3, 2 * calls // 3, calls - 1}):
        _interrupt(trial.on(trial.lm.model), paths, end)
        left = changed(before, snapshot(trial.lm.model, trial.lm.tokenizer))
        assert not left, f"an error in forward {end} of {calls} left changed: {left}"
    assert trial.edit(trial.edits).id == trial.patch.id, "after an error the same call gives another patch"


def targets_become_likelier(trial: Trial) -> None:
    """Under the patch the targets are likelier after their prompts, on average; so they are where each is edited alone.

    Old answers are less likely, where the method unlearns.

    One fact may lose on a random model: a change also acts on the other tokens, whose keys are much like the subject's.
    """
    before = trial.likelihoods()
    with trial.patch.on(trial.lm.model):
        together = trial.likelihoods()
    assert raised(trial, before, together, 1e-3), f"mean log-probabilities went from {before} to {together}"
    alone = []
    for edit in trial.edits:
        with trial.edit([edit]).on(trial.lm.model):
            alone.append(trial.likelihoods([edit]))
    now = torch.cat(alone)
    assert raised(trial, before, now, 1e-3), f"edited alone, mean log-probabilities went from {before} to {now}"


def a_batch_of_one_is_the_single(trial: Trial) -> None:
    """One fact by `retcon.edit` and by `Method.edit` is the same patch; so is a batch's fold, where it is one."""
    config = {name: getattr(trial.method.config, name) for name in trial.method.Config.__dataclass_fields__}
    lm = trial.lm
    if METHODS.get(trial.method.name) is type(trial.method):
        options: dict[str, Any] = {"method": trial.method.name, "chat": lm.chat, "cache": False, **config}
        by_facade = api.edit(lm.model, lm.tokenizer, trial.edits[:1], retain=trial.retain, **options)
        assert difference(trial.first, by_facade) == 0, "retcon.edit and Method.edit give different patches"
    assert trial.edit(tuple(trial.edits[:1])).id == trial.first.id, "the same call gives another patch"
    if getattr(trial.method, "folds", trial.method.order_matters):
        together = trial.edit(trial.edits[:2])
        folded = trial.edit(trial.edits[1:2], state=trial.first)
        assert difference(together, folded) == 0, "a batch is not the fold over its facts"
        assert [step.edits for step in together.history] == [step.edits for step in folded.history]


def the_order_of_a_batch_does_not_matter(trial: Trial) -> None:
    """The same facts in another order give the same change, unless the method says that order matters."""
    if trial.method.order_matters:
        return
    wide = trial.wide()
    gap = difference(wide.patch, wide.edit(wide.edits[::-1]))
    assert gap < _CLOSE, f"in the reverse order the change differs by {gap:.1e}"


def kept_targets_change_nothing(trial: Trial) -> None:
    """Targets kept by another batch, or by a run that was interrupted, lead to the patch of an undisturbed run."""
    wide = trial.wide()
    store = Store(wide.folder / "targets.sqlite")
    wide.edit(wide.edits[:1], stores=[store])
    gap = difference(wide.patch, wide.edit(wide.edits, stores=[store]))
    assert gap < _CLOSE, f"with targets from another batch the change differs by {gap:.1e}"

    store, paths, seen = Store(trial.folder / "again" / "targets.sqlite"), list(trial.patch.entries), count()
    _edit_watched(trial, paths, lambda: next(seen))
    _interrupt(trial, paths, next(seen) // 2, stores=[store])
    rest = [file.name for file in store.path.parent.iterdir() if file.name not in (store.path.name, JOURNALS)]
    assert not rest, f"an interrupted run left {rest}"
    for again in range(2):  # the second one finds all its targets kept
        gone_on = trial.edit(trial.edits, stores=[store])
        assert gone_on.id == trial.patch.id, f"run {again + 1} after an interruption gives another patch"


def half_precision_works(trial: Trial) -> None:
    """On the model in bfloat16: targets become likelier, the patch is finite, the model untouched."""
    half = trial.copied(torch.bfloat16)
    _ = half.patch
    before, plain = snapshot(half.lm.model, half.lm.tokenizer), half.likelihoods()
    made = half.edit(half.edits)
    left = changed(before, snapshot(half.lm.model, half.lm.tokenizer))
    assert not left, f"edit changed {left}"
    with made.on(half.lm.model):
        after = half.likelihoods()
        assert half.logits().dtype == torch.bfloat16
    assert raised(half, plain, after), f"in bfloat16 mean log-probabilities went from {plain} to {after}"


def conv1d_and_linear_agree(trial: Trial) -> None:
    """Where projections are stored (in, out), the same weights stored (out, in) give the same change."""
    if not trial.lm.arch.conv1d:
        return
    wide = trial.wide()
    twin = wide.on(_linear_twin(wide.copied().lm.model))
    assert not twin.lm.arch.conv1d
    gap = difference(wide.patch, twin.patch)
    assert gap < _CLOSE, f"stored as Linear, the model gets a change that differs by {gap:.1e}"
    if not all(entry.folds for entry in wide.patch.entries.values()):
        return
    wide.patch.merge(wide.lm.model)
    twin.patch.merge(twin.lm.model)
    for path in twin.patch.entries:
        one, other = (cast(Tensor, item.lm.module(path).weight) for item in (wide, twin))
        assert torch.allclose(one.T, other, atol=1e-5), f"{path} is written in the wrong orientation"


def tied_embeddings_stay(trial: Trial) -> None:
    """Where input and output embeddings share their weight, no entry names it, and a merge keeps it shared."""
    model: Any = trial.lm.model
    shared = model.get_input_embeddings().weight
    if model.get_output_embeddings().weight is not shared:
        return
    owners = {name for name, module in model.named_modules() if getattr(module, "weight", None) is shared}
    assert not owners & trial.patch.entries.keys(), f"the patch changes the tied {owners & trial.patch.entries.keys()}"
    if not all(entry.folds for entry in trial.patch.entries.values()):
        return
    bits = shared.detach().clone()
    trial.patch.merge(model)
    try:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight is shared
        assert torch.equal(shared, bits), "a merge changed the tied embeddings"
    finally:
        trial.patch.unmerge(model)


def senseless_requests_are_refused(trial: Trial) -> None:
    """No edit at all is a RetconError; an edit without a subject is done, or refused by a RequestError that says so."""
    _expect(RetconError, lambda: trial.edit([]))
    edit = trial.edits[0]
    refusal = ""
    try:
        trial.edit([replace(edit, prompt=edit.text, subject=None)])
    except RequestError as error:
        refusal = str(error)
    assert not refusal or "subject" in refusal, f"the refusal does not name the subject: {refusal}"
    assert not patch.active(trial.lm.model)


CHECKS: tuple[Check, ...] = (
    the_model_is_untouched,
    an_error_leaves_nothing_behind,
    targets_become_likelier,
    a_batch_of_one_is_the_single,
    the_order_of_a_batch_does_not_matter,
    kept_targets_change_nothing,
    half_precision_works,
    conv1d_and_linear_agree,
    tied_embeddings_stay,
    senseless_requests_are_refused,
)


def _expect(kind: type[Exception], call: Callable[[], object]) -> Exception:
    """The error of that kind that a call raises.

    Raises:
        AssertionError: it raises none.
    """
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


@contextmanager
def _unusual_flags(model: PreTrainedModel) -> Iterator[None]:
    """Train mode but for one module, and some weights without gradients, as in the middle of a user's own work."""
    with frozen(model):  # puts the flags back
        model.train()
        list(model.modules())[-1].eval()
        for number, weight in enumerate(model.parameters()):
            weight.requires_grad_(number % 2 == 0)
        yield


@contextmanager
def _watched(trial: Trial, paths: Sequence[str], told: Callable[[], object]) -> Iterator[None]:
    """Call `told` whenever the embeddings or one of the modules at `paths` have run."""
    modules = [trial.lm.model.get_input_embeddings(), *(trial.lm.module(path) for path in paths)]
    with ExitStack() as stack:
        for module in modules:
            hook = module.register_forward_hook(lambda *_: (told(), None)[1])
            stack.callback(hook.remove)
        yield


def _edit_watched(trial: Trial, paths: Sequence[str], told: Callable[[], object], **more: Any) -> Patch:
    with _watched(trial, paths, told):
        return trial.edit(trial.edits, **more)


def _interrupt(trial: Trial, paths: Sequence[str], at: int, **more: Any) -> None:
    """Edit, and fail in the forward of that number.

    Raises:
        AssertionError: the failure did not reach the caller.
    """
    seen = count()

    def fail() -> None:
        if next(seen) == at:
            raise Interrupted

    _expect(Interrupted, lambda: _edit_watched(trial, paths, fail, **more))


def _linear_twin(model: PreTrainedModel) -> PreTrainedModel:
    """The model with every `Conv1D` replaced, in place, by a `Linear` that computes the same."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            d_in, d_out = module.weight.shape
            with torch.random.fork_rng(devices=[]):
                linear = nn.Linear(d_in, d_out, dtype=module.weight.dtype, device=module.weight.device)
            linear.weight.data = module.weight.detach().T.contiguous()
            linear.bias.data = module.bias.detach().clone()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, linear)
    return model
