"""`uses_retain` says of each method whether texts to keep make a difference."""

from pathlib import Path
from typing import Any

import pytest

from retcon.lm import LM
from retcon.methods import METHODS
from retcon.patch import Patch
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.contract import RETAIN, quick, unlearns

TWO_LAYERS: dict[str, Any] = {"layers": (1, 2)}
EDITORS = [name for name in METHODS if not unlearns(quick(name))]


def told(patch: Patch) -> tuple[str, dict[str, Any]]:
    return patch.id, {key: value for key, value in patch.info.items() if key != "seconds"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", EDITORS)
def test_texts_to_keep_change_a_patch_where_the_method_says_so_and_nowhere_else(name: str) -> None:
    lm, edits = LM.wrap(tiny_model("llama"), tiny_tokenizer()), tiny_edits(2)
    narrow = TWO_LAYERS if name in ("memit", "pmet", "alphaedit", "eamet") else {}
    method = quick(name, **narrow)
    without, with_texts = (told(method.edit(lm, edits, retain=texts)) for texts in ((), RETAIN))
    assert (without != with_texts) == method.uses_retain


def test_all_objectives_use_them() -> None:
    assert all(quick(name).uses_retain for name in METHODS if name not in EDITORS)
