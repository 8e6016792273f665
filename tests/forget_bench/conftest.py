"""A tiny model, a tiny corpus that it can learn in seconds, and a judge that stands in for the evaluation."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from retcon.forget_bench import Split, Teaching, generated, memorised
from retcon.lm import LM
from retcon.patch import Patch
from retcon.testing import tiny_model, tiny_tokenizer

RECIPE = Teaching(lr=1e-2, rank=16, alpha=32.0, epochs=100, look_every=10, goal=0.5)
FAST = {
    "steps": 20, "clamp": 20.0, "templates": 1, "layers": (0,), "statistics": "none", "ridge": 1e-3, "rounds": 2,
    "retain_weight": 0.0,
}  # fmt: skip
"""Options of editors that make an edit of a tiny model a matter of moments; it has too few directions to hold texts."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path / "cache"))


@pytest.fixture(name="lm", scope="session")
def _lm() -> LM:
    """Tests leave it as they found it."""
    return LM.wrap(tiny_model("llama", layers=2), tiny_tokenizer(), name="tiny", chat=True)


@pytest.fixture(name="corpus", scope="session")
def _corpus() -> Split:
    """Two questions to forget, two to keep, two left out."""
    return generated(forget_groups=1, retain_groups=1, holdout=2, attributes=2)


class StandIn:
    """How little of the answers is left, and what became of the others; `forget_quality` is what the twin knows."""

    def reference(self, lm: LM, split: Split, **_: Any) -> float:
        return memorised(lm, split.forget).probability

    def report(self, lm: LM, split: Split, patch: Patch | None, *, reference: Any, **_: Any) -> dict[str, Any]:
        with patch.on(lm.model) if patch is not None else nullcontext():
            forget, retain = memorised(lm, split.forget).probability, memorised(lm, split.retain).probability
        return {"metrics": {"reliability": 1 - forget, "locality": retain, "forget_quality": reference}, "before": {}}
