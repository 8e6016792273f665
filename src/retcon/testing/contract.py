"""The contract of methods: what every method does on every model it supports. See `check_method`."""

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from retcon import forward, tokens
from retcon.arch import frozen
from retcon.errors import UnsupportedModel
from retcon.lm import LM
from retcon.methods import METHODS, Method
from retcon.patch import Patch
from retcon.patch import prompts as prompt_ends
from retcon.patch.base import projection
from retcon.requests import Edit

__all__ = [
    "QUICK",
    "RETAIN",
    "UNLEARNING",
    "Check",
    "Trial",
    "check_method",
    "checks",
    "declared_unsupported",
    "knowing",
    "quick",
    "raised",
    "unlearns",
]

QUICK: dict[str, Any] = {
    "statistics": "none",
    "templates": 0,
    "steps": 8,
    "batch": 16,
    "weight_decay": 0.0,
    "precision": "float32",
    "ridge": 1.0,
    "weight": 10.0,
    "l2": 1.0,
    "rounds": 1,
    "radius": 1.0,
    "confirm": -100.0,
}
"""Options that make a method quick on a tiny random model, and exact where a batch is compared with another; those that
a method does not have are left out."""

UNLEARNING: dict[str, Any] = {
    "epochs": 6,
    "lr": 1e-3,
    "eval_every": 4,
    "tolerance": 1.0,
    "most_perplexity": 1e9,
    "goal": None,
}
"""The same for methods with `unlearns = True`: few steps, long ones, and no end before the last."""

RETAIN: tuple[str, ...] = ("The council of the city met on Monday.", "Boats left the harbour.", "Rain fell all night.")
"""Texts to keep, for methods that weigh forgetting against them."""

_KNOWN = 3.0
"""Nats a token, on average, up to which a tiny model counts as having learned an answer; random ones have six."""


@dataclass(frozen=True)
class Trial:
    """One method on one model, and what several checks need of it, computed once."""

    method: Method
    lm: LM
    edits: tuple[Edit, ...]
    """At least two, whose subjects differ."""
    folder: Path
    """An empty folder to write in."""

    @cached_property
    def patch(self) -> Patch:
        """The patch of all edits."""
        return self.edit(self.edits)

    @cached_property
    def first(self) -> Patch:
        """The patch of the first edit alone."""
        return self.edit(self.edits[:1])

    def edit(self, edits: Sequence[Edit], state: Patch | None = None, **more: Any) -> Patch:
        """Run the method, with texts to keep where it unlearns."""
        return self.method.edit(self.lm, list(edits), state=state, retain=self.retain, **more)

    @property
    def retain(self) -> tuple[str, ...]:
        """Texts to keep; none for methods that need none."""
        return RETAIN if unlearns(self.method) else ()

    def on(self, model: PreTrainedModel) -> "Trial":
        """The same trial on another model with the same tokenizer."""
        lm = LM.wrap(model, self.lm.tokenizer, name=self.lm.name, chat=self.lm.chat)
        return Trial(self.method, lm, self.edits, self.folder)

    def copied(self, dtype: torch.dtype | None = None) -> "Trial":
        """The same trial on a copy of the model, in another dtype if one is given."""
        model: Any = copy.deepcopy(self.lm.model)  # whose `to` has no types
        return self.on(model.to(dtype or self.lm.dtype))

    def wide(self) -> "Trial":
        """The same trial on a copy in fp64, so that rounding hides nothing; in fp32 where fp64 does not work.

        Gemma 2's attention rounds a mask made for fp64 to fp32, where it is infinite, and padding then gives NaN.
        """
        wide = self.copied(torch.float64)
        ids, mask = torch.tensor([[5, 6, 7, 8]] * 2), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
        with wide.lm.inference():
            logits = wide.lm.model(input_ids=ids.to(wide.lm.device), attention_mask=mask.to(wide.lm.device)).logits
        return wide if torch.isfinite(logits[:, 2:]).all() else self.copied(torch.float32)

    def logits(self, model: nn.Module | None = None) -> Float[Tensor, "*rows vocabulary"]:
        """Logits on a fixed batch of ordinary ids, of the model as it stands, or of another that wraps it.

        Of a method whose patches look at the prompt, on the prompts of the first two edits.
        """
        if getattr(self.method, "routes", False):
            rows = self.prompts(self.edits[:2])
            with self.lm.inference():
                flat: Tensor = forward.call(self.lm, rows.ids, rows.mask, rows.positions).logits[rows.mask.bool()]
            return flat
        generator = torch.Generator().manual_seed(7)
        ids = torch.randint(3, len(self.lm.tokenizer), (2, 12), generator=generator).to(self.lm.device)
        whole: Any = self.lm.model if model is None else model
        with frozen(whole), torch.no_grad():
            found: Tensor = whole(input_ids=ids).logits
        return found

    def prompts(self, edits: Sequence[Edit]) -> forward.Aligned:
        """The prompts of some edits, padded on the left."""
        rows = [tokens.encode(self.lm, self.lm.render(edit.text)) for edit in edits]
        return forward.align(rows, [len(row) for row in rows], self.lm.device)

    def likelihoods(self, edits: Sequence[Edit] | None = None) -> Float[Tensor, " n"]:
        """The mean log-probability of each edit's target after its prompt: one plain forward an edit.

        Of a method that unlearns, that of the old answer, negated; of one that learns refusals too (`learns_refusal`),
        what the refusal has over the old answer. It is done the better, the higher this is.
        """
        wanted = self.edits if edits is None else edits
        if not unlearns(self.method):
            return torch.stack([self._likelihood(edit, edit.target) for edit in wanted]).cpu()
        lost = torch.stack([self._likelihood(edit, edit.old or edit.target) for edit in wanted]).cpu()
        if not getattr(self.method, "learns_refusal", False):
            return -lost
        return torch.stack([self._likelihood(edit, edit.target) for edit in wanted]).cpu() - lost

    def _likelihood(self, edit: Edit, answer: str) -> Float[Tensor, ""]:
        text = self.lm.render(edit.text)
        prompt, target = tokens.encode(self.lm, text), tokens.target_ids(self.lm, text, answer)
        with self.lm.inference(), prompt_ends(self.lm.model, len(prompt) - 1):
            row = torch.tensor([[*prompt, *target]], device=self.lm.device)
            logprobs = self.lm.model(input_ids=row).logits[0].double().log_softmax(-1)
        at = torch.arange(len(target)) + len(prompt) - 1
        found: Tensor = logprobs[at, torch.tensor(target)].mean()
        return found


def raised(trial: Trial, before: Tensor, now: Tensor, least: float = 0.0) -> bool:
    """Whether targets have become likelier on average, by more than `least` nats a token.

    Of a method whose patches put text before the prompt (`in_context = True`): whether each target's likelihood is
    another one, since reading is up to the model, and a random one does not read.
    """
    if getattr(trial.method, "in_context", False):
        return not bool((before == now).any())
    return bool(now.mean() > before.mean() + least)


Check = Callable[[Trial], None]
"""One clause of the contract: returns where it holds, raises AssertionError where it does not."""


def checks() -> tuple[Check, ...]:
    """All clauses of the contract for a method on a model that it supports."""
    from retcon.testing import checks as on_models
    from retcon.testing import checks_of_memories as on_memories
    from retcon.testing import checks_of_patches as on_patches

    return (*on_models.CHECKS, *on_patches.CHECKS, *on_memories.CHECKS)


def quick(name: str, **more: Any) -> Method:
    """A method by its id, with the options of `QUICK` that it has, and with those given."""
    kind = METHODS[name]
    known = kind.Config.__dataclass_fields__
    options = QUICK | UNLEARNING if unlearns(kind) else QUICK
    return kind(kind.Config(**{key: value for key, value in options.items() if key in known} | more))


def unlearns(method: Method | type[Method]) -> bool:
    """Whether a method declares (`unlearns = True`) that it makes the edits' old answers less likely."""
    return bool(getattr(method, "unlearns", False))


def knowing(method: Method, lm: LM, edits: Sequence[Edit]) -> LM:
    """The model to try a method on: itself, or, for one that unlearns, a copy that has learned the old answers.

    A random model knows no answer, and most objectives leave alone what is unlikely already. The texts to keep are
    learned too, so that there is something to harm.
    """
    if not unlearns(method):
        return lm
    known = LM.wrap(copy.deepcopy(lm.model), lm.tokenizer, name=lm.name, chat=lm.chat)
    facts = [replace(edit, target=edit.old) for edit in edits if edit.old is not None]
    facts += [Edit(prompt=text.split()[0], target=text.partition(" ")[2]) for text in RETAIN]
    learned = quick("locft-bf", steps=100, lr=5e-3).edit(known, facts)
    if sum(fact["loss"] for fact in learned.info["facts"]) > _KNOWN * len(facts):  # scaled logits, as granite's
        learned = quick("locft-bf", steps=100, lr=5e-2).edit(known, facts)
    for path, entry in learned.entries.items():
        module, _, transposed = projection(known.model, path)
        weight: Any = module.weight
        with torch.no_grad():
            weight += (entry.delta().T if transposed else entry.delta()).to(weight)
    return known


def declared_unsupported(method: Method, lm: LM) -> str | None:
    """The reason for which a method declares a model unsupported (`method.unsupported(lm)`); None where it does not."""
    declared = getattr(method, "unsupported", None)
    reason: str | None = None if declared is None else declared(lm)
    return reason


def check_method(
    method: Method | str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    edits: Sequence[Edit] | None = None,
    *,
    only: Sequence[Check] | None = None,
) -> None:
    """Check that a method keeps the contract on a model: it passes, or declares the model unsupported and refuses it.

    The contract, one function each in `retcon.testing.checks` (on models), `checks_of_patches` and, for methods with
    `routes = True`, whose patches look at the prompt and are no change of a weight, `checks_of_memories`: the model is
    bit-identical after `edit`, also after an error; targets become likelier; the patch survives a file, goes on and off
    exactly, merges and unmerges, exports as a LoRA that does the same; batches, their order, dtypes and storages
    agree; runs go on from where they stopped. Of methods with `in_context = True`, whose patches put text before the
    prompt, targets need not become likelier, since a random model does not read. Models are copied, so take tiny ones
    (`retcon.testing.tiny_model`).

    A method with `unlearns = True` makes old answers less likely, not targets likelier: it is checked on a copy of the
    model that has learned them, and given texts to keep.

    A method that cannot work on some models has `unsupported(lm) -> str | None`, which gives the reason; there its
    `edit` must raise UnsupportedModel with that reason, and nothing else is checked.

    Args:
        method: a configured method, or an id of `METHODS`, which is then given quick options.
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        edits: two facts or more about different subjects; three small ones by default.
        only: the clauses to check, all by default.

    Raises:
        AssertionError: a clause does not hold; a note names it.
        ValueError: there are fewer than two edits.
    """
    from retcon.testing.tiny import tiny_edits

    rule = quick(method) if isinstance(method, str) else method
    facts = tuple(tiny_edits(3) if edits is None else edits)
    if len(facts) < 2:
        raise ValueError("the contract needs two edits at least; give more")
    lm = LM.wrap(model, tokenizer)
    reason = declared_unsupported(rule, lm)
    with tempfile.TemporaryDirectory(prefix="retcon-contract-") as folder:
        if reason is not None:
            _refuses(Trial(rule, lm, facts, Path(folder)), reason)
            return
        trial = Trial(rule, knowing(rule, lm, facts), facts, Path(folder))
        for number, check in enumerate(checks() if only is None else only):
            part = Path(folder, str(number))
            part.mkdir()
            with _noted(rule, lm, check):
                check(replaced(trial, part))


def replaced(trial: Trial, folder: Path) -> Trial:
    """The trial with another folder, and what it has computed already."""
    other = replace(trial, folder=folder)
    other.__dict__.update({name: trial.__dict__[name] for name in ("patch", "first") if name in trial.__dict__})
    return other


def _refuses(trial: Trial, reason: str) -> None:
    refusal = None
    try:
        trial.edit(trial.edits)
    except UnsupportedModel as error:
        refusal = str(error)
    assert refusal is not None, f"{trial.method.name} declares {trial.lm.name} unsupported ({reason}) but edits it"
    assert reason in refusal, f"{trial.method.name} refuses with {refusal!r} but declares {reason!r}"


@contextmanager
def _noted(method: Method, lm: LM, check: Check) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"{method.name} breaks the contract on {lm.arch.family}: {check.__name__}: {check.__doc__}")
        raise
