"""A tiny model on disk, a file of edits, and the command line in this process."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from retcon.cli import app
from retcon.requests import to_dict
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer

FAST = ["--set", "steps=12", "clamp=4", "templates=1", "layers=1,2", "statistics=none", "ridge=0.1"]
"""Options of a method that make an edit of a tiny model a matter of moments."""


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        (line,) = self.out.splitlines()
        value: dict[str, Any] = json.loads(line)
        return value


Retcon = Callable[..., Said]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    path = tmp_path / "edits.jsonl"
    path.write_text("".join(json.dumps(to_dict(edit)) + "\n" for edit in tiny_edits(4)), encoding="utf-8")
    return path


@pytest.fixture
def retcon(capsys: pytest.CaptureFixture[str]) -> Retcon:
    def call(*arguments: object) -> Said:
        capsys.readouterr()
        code = app.run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return call


@pytest.fixture(scope="session")
def made(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patch of four edits, computed once."""
    folder = tmp_path_factory.mktemp("made")
    path = folder / "edits.jsonl"
    path.write_text("".join(json.dumps(to_dict(edit)) + "\n" for edit in tiny_edits(4)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patching:
        patching.setenv("RETCON_CACHE", str(folder / "cache"))
        code = app.run(["edit", "--model", model, "--edits", str(path), "--out", str(folder / "patch"), *FAST])
    assert code == 0
    return folder / "patch"


@pytest.fixture
def patch(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "patch"))


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """One fact as CounterFact's authors publish theirs."""
    facts = tmp_path / "counterfact.json"
    rewrite = {
        "prompt": "{} speaks",
        "subject": "Anne",
        "target_new": {"str": "English"},
        "target_true": {"str": "Thai"},
    }
    facts.write_text(json.dumps([{"case_id": 7, "requested_rewrite": rewrite}]), encoding="utf-8")
    return facts
