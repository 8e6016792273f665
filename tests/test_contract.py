"""The contract has teeth: a method that breaks a clause fails, and what is declared unsupported must be refused."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

import retcon.testing
from retcon.errors import UnsupportedModel
from retcon.lm import LM
from retcon.methods import MEMIT
from retcon.patch import LowRank, Patch
from retcon.requests import Edit
from retcon.testing import check_method, tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing import checks as on_models
from retcon.testing import checks_of_patches as on_patches
from retcon.testing.contract import Check, checks, quick


class Broken(MEMIT):
    """MEMIT that does one thing more, before or after the edit."""

    def __init__(self, deed: Callable[[LM], object] = lambda lm: None, spoil: Callable[[Patch], Patch] = lambda p: p):
        super().__init__(quick("memit").config)
        self.deed, self.spoil = deed, spoil

    def edit(self, lm: LM, edits: Sequence[Edit], **more: Any) -> Patch:
        made = super().edit(lm, edits, **more)
        self.deed(lm)
        return self.spoil(made)


def writes_a_weight(lm: LM) -> None:
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[3, 3] += 1e-6  # type: ignore[index, operator]


def leaves_a_hook(lm: LM) -> None:
    lm.block(1).register_forward_hook(lambda *_: None)


def draws_from_the_global_generator(_: LM) -> None:
    torch.rand(1)


def pads_on_the_left(lm: LM) -> None:
    lm.tokenizer.padding_side = "left" if lm.tokenizer.padding_side == "right" else "right"


def leaves_eval_mode(lm: LM) -> None:
    lm.model.eval()


def freezes(lm: LM) -> None:
    lm.model.requires_grad_(False)


def sets_the_config(lm: LM) -> None:
    lm.model.config.use_cache = not lm.model.config.use_cache


def replaces_a_forward(lm: LM) -> None:
    lm.block(0).__dict__["forward"] = lm.block(0).forward


@pytest.mark.parametrize(
    "deed",
    [
        writes_a_weight,
        leaves_a_hook,
        draws_from_the_global_generator,
        pads_on_the_left,
        leaves_eval_mode,
        freezes,
        sets_the_config,
        replaces_a_forward,
    ],
    ids=lambda deed: deed.__name__,
)
def test_a_trace_in_the_model_is_found(deed: Callable[[LM], object]) -> None:
    done = iter([False])  # not in the trial's first run, as a method that leaves a trace each second time

    def second(lm: LM) -> None:
        if next(done, True):
            deed(lm)

    broken(Broken(second), on_models.the_model_is_untouched, "edit changed")


def scaled(factor: float) -> Callable[[Patch], Patch]:
    def spoil(patch: Patch) -> Patch:
        entries = {path: entry.scaled(factor) for path, entry in patch.entries.items()}
        return replace(patch, entries=entries)

    return spoil


def noisy(patch: Patch) -> Patch:
    entries = {}
    for path, entry in patch.entries.items():
        factors = entry.tensors()
        entries[path] = LowRank(factors["U"] * (1 + 0.1 * torch.rand(())), factors["V"])
    return replace(patch, entries=entries)


def without_edits(patch: Patch) -> Patch:
    return replace(patch, history=(replace(patch.history[0], edits=()),))


def forgets_its_state(patch: Patch) -> Patch:
    return replace(patch, contains=(), history=patch.history[-1:])


@pytest.mark.parametrize(
    ("spoil", "check", "message"),
    [
        (scaled(-1.0), on_models.targets_become_likelier, "went from"),
        (noisy, on_models.a_batch_of_one_is_the_single, "another patch"),
        (noisy, on_models.the_order_of_a_batch_does_not_matter, "reverse order"),
        (without_edits, on_patches.the_patch_tells_its_making, "edits"),
        (forgets_its_state, on_patches.going_on_contains_what_was_there, "does not contain"),
    ],
)
def test_a_spoilt_patch_is_found(spoil: Callable[[Patch], Patch], check: Check, message: str) -> None:
    broken(Broken(spoil=spoil), check, message)


def test_an_error_that_is_swallowed_is_found() -> None:
    class Swallows(MEMIT):
        def edit(self, lm: LM, edits: Sequence[Edit], **more: Any) -> Patch:
            try:
                return super().edit(lm, edits, **more)
            except on_models.Interrupted:
                return super().edit(lm, edits, **more)

    broken(Swallows(quick("memit").config), on_models.an_error_leaves_nothing_behind, "no Interrupted")


def test_a_model_declared_unsupported_must_be_refused_with_the_reason() -> None:
    class Declares(MEMIT):
        refuse = "llamas bite"

        def unsupported(self, lm: LM) -> str | None:
            return "llamas bite" if lm.arch.family == "llama" else None

        def edit(self, lm: LM, edits: Sequence[Edit], **more: Any) -> Patch:
            if self.refuse and lm.arch.family == "llama":
                raise UnsupportedModel(f"this model cannot be edited: {self.refuse}")
            return super().edit(lm, edits, **more)

    method = Declares(quick("memit").config)
    check_method(method, tiny_model("llama"), tiny_tokenizer())
    method.refuse = "llamas spit"
    with pytest.raises(AssertionError, match="refuses with .*llamas spit.* but declares 'llamas bite'"):
        check_method(method, tiny_model("llama"), tiny_tokenizer())
    method.refuse = ""
    with pytest.raises(AssertionError, match="but edits it"):
        check_method(method, tiny_model("llama"), tiny_tokenizer())
    method.refuse = "llamas bite"
    check_method(method, tiny_model("gpt2"), tiny_tokenizer(), only=[on_models.targets_become_likelier])


def test_one_edit_is_too_few() -> None:
    with pytest.raises(ValueError, match="two edits"):
        check_method("memit", tiny_model("llama"), tiny_tokenizer(), tiny_edits(1))


def test_it_is_public_and_every_clause_says_what_holds() -> None:
    assert retcon.testing.check_method is check_method
    assert "check_method" in retcon.testing.__all__
    assert len({check.__name__ for check in checks()}) == len(checks())
    assert all(check.__doc__ for check in checks())


def broken(method: MEMIT, check: Check, message: str) -> None:
    with pytest.raises(AssertionError, match=message) as caught:
        check_method(method, tiny_model("llama"), tiny_tokenizer(), only=[check])
    assert check.__name__ in caught.value.__notes__[0]
