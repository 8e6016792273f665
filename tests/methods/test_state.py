"""Going on from a patch: whether it is on the model already makes no difference, whatever a method reads there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from retcon.lm import LM
from retcon.patch import active
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.contract import quick

READS: dict[str, Any] = {"templates": 2, "statistics": "self", "statistics_tokens": 1024}
"""What the unedited model is asked for: texts that it writes, and its keys on them."""
Tiny = Callable[..., LM]


@pytest.mark.parametrize("name", ["memit", "alphaedit", "ece", "ece-released", "eamet", "rome"])
def test_a_state_that_is_on_gives_what_a_state_that_is_given_does(name: str) -> None:
    def new() -> LM:
        return LM.wrap(tiny_model("llama"), tiny_tokenizer())

    options = READS | ({"few_tokens": True} if name == "alphaedit" else {})
    edits, retain = tiny_edits(5), ["The river is", "A dog sat on the"]
    state = quick(name, **options).edit(new(), edits[:3], retain=retain)
    given = quick(name, **options).edit(new(), edits[3:], retain=retain, state=state)
    lm = new()  # of which nothing is known yet, so that the first reading is made with the state on
    with state.on(lm.model):
        on = quick(name, **options).edit(lm, edits[3:], retain=retain, state=state)
        assert [item.id for item in active(lm.model)] == [state.id]
    assert on.entries.keys() == given.entries.keys()
    for path, entry in given.entries.items():
        for part, tensor in entry.tensors().items():
            torch.testing.assert_close(on.entries[path].tensors()[part], tensor, atol=1e-5, rtol=1e-4)
