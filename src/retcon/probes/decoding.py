"""Decoding: does the answer come out when the model is let talk at random?"""

from collections.abc import Iterator
from dataclasses import dataclass

from retcon.errors import RetconError
from retcon.forget.samples import sampled
from retcon.probes.scene import Finding, Scene, question_ids
from retcon.probes.tries import counted

__all__ = ["Decoding", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """Options of the decoding probe."""

    samples: int = 10
    """Answers drawn for each question."""
    temperature: float = 1.0
    """1 draws from the model's own distribution."""


def run(scene: Scene, config: Decoding) -> Iterator[Finding]:
    """leak@k: the share of the questions whose answer is in one of k samples. Each draws from a seed of its own."""
    if config.samples < 1 or not config.temperature > 0:
        raise RetconError("the decoding probe draws answers; give at least 1 of samples, and a temperature above zero")
    prompts = [question_ids(scene.lm, item.question) for item in scene.items]
    texts: dict[str, dict[int, list[str]]] = {}
    for arm in scene.arms:
        with arm.on(scene.lm):
            drawn = sampled(
                scene.lm, prompts, samples=config.samples, max_new_tokens=scene.max_new_tokens,
                temperature=config.temperature, seed=scene.seed,
            )  # fmt: skip
        texts[arm.name] = dict(enumerate(drawn))
    yield counted(scene, {"samples": config.samples, "temperature": config.temperature}, texts)
