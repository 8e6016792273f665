"""What a model knows without being taught: the questions that it answers right before anything is done to it."""

from collections.abc import Sequence
from dataclasses import replace

from retcon import forward, tokens
from retcon.errors import RetconError
from retcon.forget_bench.corpus import Groups, Split, by_group, split
from retcon.lm import LM
from retcon.metrics.texts import mentions
from retcon.requests import ForgetCase

__all__ = ["known", "split_known"]


def known(lm: LM, cases: Sequence[ForgetCase], *, max_new_tokens: int = 40) -> list[bool]:
    """Whether the model's greedy answer to each question holds the answer, or another wording of it."""
    prompts = [tokens.encode(lm, lm.render(case.forget.question)) for case in cases]
    said = forward.greedy(lm, prompts, max_new_tokens=max_new_tokens, label="asking what is known")
    texts = [tokens.decode(lm, ids) for ids in said]
    return [
        any(mentions(text, answer) for answer in (case.forget.answer, *case.forget.aliases))
        for case, text in zip(cases, texts, strict=True)
    ]


def split_known(
    lm: LM,
    cases: Sequence[ForgetCase],
    *,
    forget_groups: Groups = None,
    retain_groups: Groups = None,
    max_new_tokens: int = 40,
    seed: int = 0,
) -> Split:
    """The questions that the model answers right, cut into those to forget, by default half of them, and those to keep.

    Nobody can be trained without what is known already, so there is no holdout and no twin. The others are dropped, and
    `told` has their number.

    Raises:
        RetconError: the model knows fewer than two.
    """
    right = known(lm, cases, max_new_tokens=max_new_tokens)
    mine = [case for case, knows in zip(cases, right, strict=True) if knows]
    if len(mine) < 2:
        raise RetconError(
            f"the model answers {len(mine)} of {len(cases)} questions right; give questions that it knows"
        )
    wanted = max(1, len(by_group(mine)) // 2) if forget_groups is None else forget_groups
    found = split(mine, forget_groups=wanted, retain_groups=retain_groups, holdout=0, seed=seed)
    return replace(found, told=found.told | {"known": len(mine), "dropped": len(cases) - len(mine)})
