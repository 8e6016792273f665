"""A tiny model, four facts with the prompts that judge them, and options that make an edit a matter of moments."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retcon.bench import Bench
from retcon.bench import load as configured
from retcon.lm import LM
from retcon.requests import to_dict
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer

FAST = {"steps": 12, "clamp": 4.0, "templates": 1, "layers": [1, 2], "statistics": "none", "ridge": 0.1}
METRICS = ["efficacy", "generalization", "specificity", "score"]

Make = Callable[..., Bench]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path / "cache"))


@pytest.fixture(name="lm", scope="session")
def _lm() -> LM:
    """Tests leave it as they found it."""
    return LM.wrap(tiny_model("llama"), tiny_tokenizer(), name="tiny")


@pytest.fixture(name="facts", scope="session")
def _facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cases of our own schema."""
    path = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    records = [
        to_dict(edit)
        | {
            "paraphrases": [f"It is said: {edit.text}"],
            "neighbours": [{"prompt": f"The sky over town {n} is", "answer": "blue"}],
        }
        for n, edit in enumerate(tiny_edits(4))
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(name="asked")
def _asked(facts: Path) -> dict[str, Any]:
    """The keys of a small run; a test may change some."""
    return {
        "models": ["tiny"],
        "methods": ["memit"],
        "datasets": [str(facts)],
        "edits": [4],
        "set": {"memit": FAST},
        "metrics": METRICS,
    }


@pytest.fixture(name="bench")
def _bench(lm: LM, asked: dict[str, Any], tmp_path: Path) -> Make:
    """`bench(**keys)`: a bench of the small run with some of its keys changed, in the test's folder."""

    def make(folder: Path | None = None, *, cache: bool = True, only: tuple[str, ...] = (), **keys: Any) -> Bench:
        config = configured(asked | keys)
        return Bench(config, folder or tmp_path / "out", only, cache, "retcon bench run.toml", lambda _: lm)

    return make
