"""Many prompts for each question, put to every arm at once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from retcon.probes.scene import Finding, Scene, comes_out, said

__all__ = ["Prompts", "answered", "counted", "finding"]

Prompts = Mapping[int, Sequence[list[int]]]
"""By number of the question, the ids of all that is put in its place."""
Judge = Callable[[int, str], bool]
"""Whether a text gives away what is looked for, of the question of that number."""


def finding(
    scene: Scene,
    setting: dict[str, Any],
    prompts: Prompts,
    label: str,
    *,
    note: str = "",
    judge: Judge | None = None,
    detail: Mapping[str, Any] | None = None,
) -> Finding:
    """What comes out of each arm, whose answers are sought greedily; prompts that are too long are left out."""
    kept = {i: [ids for ids in rows if scene.fits(ids)] for i, rows in prompts.items()}
    kept = {i: rows for i, rows in kept.items() if rows}
    if len(kept) < len(prompts):
        note = joined(note, f"{len(prompts) - len(kept)} left out as too long for the model")
    texts = {}
    for arm in scene.arms:
        with arm.on(scene.lm):
            texts[arm.name] = answered(scene, kept, label)
    return counted(scene, setting, texts, note=note, judge=judge, detail=detail)


def answered(scene: Scene, prompts: Prompts, label: str) -> dict[int, list[str]]:
    """What the model says to each prompt, as it stands; one call for all of them."""
    texts = iter(said(scene.lm, [ids for rows in prompts.values() for ids in rows], scene.max_new_tokens, label))
    return {i: [next(texts) for _ in rows] for i, rows in prompts.items()}


def counted(
    scene: Scene,
    setting: dict[str, Any],
    texts: Mapping[str, Mapping[int, Sequence[str]]],
    *,
    note: str = "",
    judge: Judge | None = None,
    detail: Mapping[str, Any] | None = None,
) -> Finding:
    """A finding from what was said, by arm and question: the share of tries that gave the answer away."""

    def gives(i: int, text: str) -> bool:
        return comes_out(text, scene.cases[i].forget) if judge is None else judge(i, text)

    out = {
        arm: {i: sum(gives(i, text) for text in tries) / len(tries) for i, tries in by_item.items()}
        for arm, by_item in texts.items()
    }
    found = Finding(setting, out, note, dict(detail or {}), texts if scene.reveal else {}, judge is None)
    found.detail["share_of_tries"] = {arm: found.share_of_tries(arm) for arm in out}
    return found


def joined(*notes: str) -> str:
    """Notes as one."""
    return "; ".join(note for note in notes if note)
