"""Quantisation: does rounding the weights undo the change?

A small change may be less than half a step of the rounding, which then gives the old weight back (Zhang et al., arXiv
2410.16454: 21 % of what was forgotten was kept in full precision, 83 % after 4 bits). Two orders: `merged`, the patch
goes into the weights, which are then rounded, as someone does who ships the merged model; `attached`, the base is
rounded, and the patch stands on it in full precision.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from retcon.probes.rounding import quantised
from retcon.probes.scene import Arm, Finding, Scene, comes_out, question_ids, said

__all__ = ["Quantise", "run"]

Order = Literal["merged", "attached"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantise:
    """Options of the quantisation probe."""

    bits: tuple[int, ...] = (8, 4)
    """Bits of a weight; each is a row of its own."""
    group: int | None = None
    """Inputs of a weight that share a step; none for whole rows. 128 is usual."""
    orders: tuple[Order, ...] = ("merged", "attached")
    """Whether the patch is rounded with the weights, or stands on weights that are."""


def run(scene: Scene, config: Quantise) -> Iterator[Finding]:
    """Ask plainly, with the weights rounded."""
    prompts = [question_ids(scene.lm, item.question) for item in scene.items]
    for bits in config.bits:
        bare: list[str] = []  # a model without a patch is the same in both orders
        for order in config.orders:
            setting = {"bits": bits, "group": config.group, "order": order}
            if order == "merged" and not scene.unlearned.folds:
                yield Finding(setting, note="n/a: the patch is no change of weights, so it cannot be merged")
                continue
            texts = {}
            for arm in scene.arms:
                if arm.patch is None:
                    bare = bare or _said(scene, arm, prompts, bits, config.group, order)
                    texts[arm.name] = bare
                else:
                    texts[arm.name] = _said(scene, arm, prompts, bits, config.group, order)
            out = {name: _judged(scene, found) for name, found in texts.items()}
            told = {name: {i: [text] for i, text in enumerate(t)} for name, t in texts.items()}
            yield Finding(setting, out, texts=told if scene.reveal else {})


def _judged(scene: Scene, texts: Sequence[str]) -> dict[int, float]:
    """Which answers came out."""
    return {i: float(comes_out(text, item)) for i, (text, item) in enumerate(zip(texts, scene.items, strict=True))}


def _said(
    scene: Scene, arm: Arm, prompts: Sequence[list[int]], bits: int, group: int | None, order: Order
) -> list[str]:
    """The answers of an arm; a patch that cannot be merged stands on the rounded weights in either order."""
    merges = order == "merged" and arm.folds
    with ExitStack() as stack:
        stack.enter_context(quantised(scene.lm, bits, group, merged=arm.patch if merges else None))
        if not merges:
            stack.enter_context(arm.on(scene.lm))
        return said(scene.lm, prompts, scene.max_new_tokens, f"asking in {bits} bits")
