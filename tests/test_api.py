"""`retcon.edit`: edits or dicts in, a patch out, mistakes named."""

from pathlib import Path
from typing import Any

import pytest

import retcon
from retcon.errors import RequestError, RetconError
from retcon.requests import to_dict
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer

QUICK: dict[str, Any] = {"steps": 3, "templates": 0, "layers": (1, 2), "statistics": "none"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path))


@pytest.mark.parametrize("method", ["memit", "rome"])
def test_edits_and_dicts_give_the_same_patch(method: str) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    options = QUICK | ({"layers": (2,)} if method == "rome" else {})
    edits = tiny_edits(2)
    patch = retcon.edit(model, tokenizer, edits, method, **options)
    again = retcon.edit(model, tokenizer, [to_dict(edit) for edit in edits], method, cache=False, **options)
    assert patch.id == again.id
    assert [edit["subject"] for edit in patch.edits] == [edit.subject for edit in edits]


def test_a_run_goes_on_from_a_patch() -> None:
    model, tokenizer, edits = tiny_model("llama"), tiny_tokenizer(), tiny_edits(2)
    first = retcon.edit(model, tokenizer, edits[:1], **QUICK)
    both = retcon.edit(model, tokenizer, edits[1:], state=first, **QUICK)
    assert len(both.edits) == 2


def test_mistakes_are_named() -> None:
    model, tokenizer, (one, other) = tiny_model("llama"), tiny_tokenizer(), tiny_edits(2)
    with pytest.raises(RequestError, match="give a list of one"):
        retcon.edit(model, tokenizer, one)  # type: ignore[arg-type]
    with pytest.raises(RetconError, match="there is no method 'romeo'"):
        retcon.edit(model, tokenizer, [one], "romeo")
    with pytest.raises(RetconError, match="has no option 'stepz'"):
        retcon.edit(model, tokenizer, [one], stepz=3)
    with pytest.raises(RequestError, match="edit 1 and edit 2 give"):
        retcon.edit(model, tokenizer, [one, to_dict(one) | {"target_new": other.target}])
