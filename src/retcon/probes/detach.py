"""Detaching: can the patch simply be taken off?"""

from collections.abc import Iterator
from dataclasses import dataclass

from retcon.probes.scene import ORIGINAL, TWIN, UNLEARNED, Finding, Scene

__all__ = ["Detach", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Detach:
    """The detaching probe has no options."""


def run(scene: Scene, _config: Detach) -> Iterator[Finding]:
    """Nothing is run: without the patch the model is, to the bit, what it was before."""
    if scene.unlearned.folds:
        yield Finding({}, note="n/a: the originals are not shipped with a merged model")
        return
    before = {i: float(value) for i, value in enumerate(scene.plain[ORIGINAL])}
    out = {ORIGINAL: before, UNLEARNED: before}
    if TWIN in scene.plain:
        out[TWIN] = {i: float(value) for i, value in enumerate(scene.plain[TWIN])}
    yield Finding({}, out, note="by construction: the weights are as they were, and the patch can be taken off")
