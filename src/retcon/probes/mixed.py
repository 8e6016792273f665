"""Mixed prompts: does the answer come out when the question stands among questions to keep?

A model that has learned to refuse one question alone may answer it beside others, or refuse these too (SEPS, arXiv
2505.14832). One question to forget and one to three to keep, in one prompt, the first of them or the last. An answer to
all of them takes its time, so as many times the usual tokens are given as there are questions.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from retcon.errors import RetconError
from retcon.methods.unlearning.batches import order_of
from retcon.probes.prompts import setting, templates
from retcon.probes.scene import Finding, Scene, comes_out, question_ids
from retcon.probes.tries import finding
from retcon.requests import Forget

__all__ = ["Mixed", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """Options of the probe by mixed prompts."""

    others: tuple[int, ...] = (1, 2, 3)
    """Numbers of questions to keep that stand beside the one to forget; each is a try."""


def run(scene: Scene, config: Mixed) -> Iterator[Finding]:
    """One row with the question before the others, one with it after them; no question beside it tells its answer."""
    if not config.others or min(config.others) < 1:
        raise RetconError("the mixed prompts hold questions to keep; give at least 1 in each of others")
    longer = replace(scene, max_new_tokens=scene.max_new_tokens * (1 + max(config.others)))
    for order in ("first", "last"):
        how = setting("mixed", others=list(config.others), order=order)
        if not scene.retain:
            yield Finding(how, note="n/a: give questions to keep (retain)")
            continue
        prompts = {}
        for i, item in enumerate(scene.items):
            beside = _beside(scene, i, item)
            texts = [_text(item, beside[:n], order) for n in config.others if n <= len(beside)]
            if texts:
                prompts[i] = [question_ids(scene.lm, text) for text in texts]
        yield finding(longer, how, prompts, "attacking by mixed prompts")


def _beside(scene: Scene, i: int, item: Forget) -> list[str]:
    """Questions to keep, in an order of the item's own; none that tells what is looked for, nor whose answer does."""
    kept = [case.forget for case in scene.retain]
    fit = [one.question for one in kept if not comes_out(f"{one.question} {one.answer}", item)]
    fit = [question for question in dict.fromkeys(fit) if question != item.question]
    return [fit[place] for place in order_of(len(fit), scene.seed, "mixed", i)]


def _text(item: Forget, beside: list[str], order: str) -> str:
    """All questions, numbered."""
    asked = [item.question, *beside] if order == "first" else [*beside, item.question]
    return "\n".join([templates()["mixed"]["head"], *(f"{number}. {text}" for number, text in enumerate(asked, 1))])
