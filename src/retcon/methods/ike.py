"""IKE: facts with demonstrations go before the prompts that are near them (arXiv 2305.12740)."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch

from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods import in_context
from retcon.methods.demonstrations import Pool, counts_of
from retcon.methods.in_context import ORDINARY, budget_of, entered, gate, held_out, memory_of
from retcon.methods.memories import MemoryMethod, put_on
from retcon.methods.record import as_patch, clock, refuse_none, resumed, timed
from retcon.patch import Patch
from retcon.patch.context import EVERY, ROOT
from retcon.requests import Edit
from retcon.targets import Store

__all__ = ["IKE", "IKEConfig", "without"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IKEConfig:
    """Options of IKE."""

    mode: Literal["gated", "oracle"] = "gated"
    """Which prompts get a fact: those near one, or every prompt the nearest, as published, where the evaluation
    knows which fact is asked about."""
    pool: str | None = None
    """A file of cases, none of them to be judged later, for the demonstrations; without one the fact stands alone."""
    demonstrations: int = 32
    """How many go before a fact, where there is a pool."""
    ratio: tuple[int, int, int] = (1, 3, 4)
    """Copies of a fact, other wordings of it, and neighbours that keep their answers."""
    threshold: float | Literal["auto"] = "auto"
    """Cosine above which a prompt gets a fact; `auto`: the one that `leak` of the prompts exceed which should get none.
    Not used by the mode oracle."""
    leak: float = 0.05
    """That share."""
    budget: int = 1024
    """Tokens of a context, at most half of the model's positions; the least similar demonstrations go first."""
    encoder: str | None = None
    """A sentence encoder to compare prompts by: a name or folder for sentence-transformers, which comes with
    `pip install retcon-lm[encoder]`; by default the model's own input embeddings."""
    seed: int = 0
    """Seed of the order of kinds."""


class IKE(MemoryMethod):
    """IKE: the fact, after demonstrations of how facts are used, is put before a prompt; no weight changes.

        context = demonstrations, the least similar first; New Fact: s o*, Prompt: s o*; New Fact: s o*, Prompt: [asked]
        demonstrations: copy (a fact, its own prompt), update (another wording), retain (a neighbour, its true answer)

    A prompt gets the fact whose prompt is nearest, by the cosine of idf-weighted means of input embeddings. In the mode
    `gated` it gets none where no cosine exceeds a threshold, and then runs as on the bare model.

    Paper: Zheng et al., Can We Edit Factual Knowledge by In-Context Learning?, EMNLP 2023, arXiv 2305.12740.
    """

    Config: Any = IKEConfig
    quotes: bool = True
    """Its patches hold the prompts, as ids."""
    config: IKEConfig
    name: str = "ike"
    in_context: bool = True
    """Whether its patches work is up to the model's reading."""

    def edit(
        self,
        lm: LM,
        edits: Sequence[Edit],
        *,
        retain: Sequence[str] = (),
        state: Patch | None = None,
        stores: Sequence[Store] = (),
    ) -> Patch:
        """Enter the facts; with `state`, into its context, in a patch that contains it.

        Args:
            lm: the model; it is left as it was.
            edits: the facts, with or without a subject.
            retain: prompts to keep: they set the threshold together with the facts' own prompts, each against the
                other facts, and with a few ordinary ones.
            state: the patch to go on from.
            stores: not used: there are no targets to keep.

        Raises:
            RequestError: a fact is longer than the budget, or the pool's file is wrong.
            RetconError: there is no edit, an option makes no sense, the pool is too small, or the state's context was
                made with other options.
        """
        refuse_none(edits)
        config = self.config
        _check(config)
        making = {
            "method": self.name, "mode": config.mode, "encoder": config.encoder or "",
            "threshold": config.threshold, "leak": config.leak,
        }  # fmt: skip
        old, budget = memory_of(state, making), budget_of(lm, config.budget)
        seconds = clock()
        with ExitStack() as stack:
            stack.enter_context(resumed(lm, state, texts=True))
            stack.enter_context(lm.inference())
            pool = Pool(lm, config.pool, edits)
            with timed(seconds, "targets"):
                made = entered(
                    lm, old, edits, pool.alone, retain, budget, most=1, encoder=config.encoder or "", making=making
                )
                context, facts = made.context, made.facts
                if config.pool is not None:
                    counts = counts_of(config.demonstrations, config.ratio)
                    context = pool.demonstrated(context, edits, facts, counts, config.seed, made.embed)
            with timed(seconds, "statistics"):
                cosines = held_out(lm, context, made.embed, [*ORDINARY, *retain])
                threshold = gate(cosines, config.leak) if config.threshold == "auto" else float(config.threshold)
                if old is not None:
                    threshold = max(threshold, old.threshold)  # what was to be kept then stays kept
                threshold = EVERY if config.mode == "oracle" else threshold
                context = context.gated(threshold)
            kept = cosines[len(ORDINARY) : len(ORDINARY) + len(retain)]
            told = {"retain_hits": round(float((kept > threshold).float().mean()), 5)} if retain else {}
            lengths = torch.tensor([len(context.text([fact])) for fact in range(context.rank)]).double()
            info = {
                "targets_cached": 0, "threshold": threshold, "tokens": round(float(lengths.mean()), 1), **told,
                "facts": facts,
            }  # fmt: skip
            alone = as_patch(lm, self.name, config, edits, {ROOT: context}, None, {}, seconds, info)
        return put_on(state, alone, ROOT, context, in_place=old is not None)


def without(made: Patch, ids: Iterable[str]) -> Patch:
    """A patch of IKE without some edits; the rest answer as before, and without any it is the bare model.

    Args:
        made: the patch.
        ids: of the edits; the `id` in their record, or, where they have none, the one in `info["facts"]`.

    Raises:
        PatchError: there is no such edit in it.
    """
    return in_context.without(made, IKE.name, ids)


def _check(config: IKEConfig) -> None:
    if config.mode not in ("gated", "oracle"):
        raise RetconError(f"mode {config.mode!r} is not known; name gated or oracle")
    if not 0 < config.leak < 1:
        raise RetconError(f"leak is {config.leak}; it must be a share between 0 and 1")
    if config.demonstrations < 0 or len(config.ratio) != 3 or min(config.ratio) < 0 or sum(config.ratio) == 0:
        raise RetconError("demonstrations and the three parts of ratio count examples; give 0 or more, not all 0")
