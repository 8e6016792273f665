"""Sequential MEMIT remembers the keys of earlier batches and leaves them alone."""

import pytest
import torch

from retcon.lm import LM
from retcon.methods import MEMIT, MEMITConfig
from retcon.patch import Patch
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer

CONFIG = MEMITConfig(statistics="none", templates=0, steps=4, ridge=1e-3, layers=(1, 2))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gemma2"])
def test_a_second_batch_leaves_the_first_ones_keys_alone(family: str) -> None:
    lm, edits = LM.wrap(tiny_model(family), tiny_tokenizer()), tiny_edits(6)
    first = MEMIT(CONFIG).edit(lm, edits[:3])
    forgetful = Patch(first.entries, first.base, first.history, {}, first.info, first.contains)
    moved = {}
    for name, state in (("remembering", first), ("forgetful", forgetful)):
        both = MEMIT(CONFIG).edit(lm, edits[3:], state=state)
        path = lm.arch.mlp_out[1]  # the first edited layer's keys are those remembered, whatever was written
        change = both.entries[path].delta() - first.entries[path].delta()
        keys = first.state[f"cat.keys.{path}"]
        moved[name] = float((change @ keys).norm() / change.norm())
    assert moved["remembering"] < 0.05 * moved["forgetful"]


def test_all_batches_are_remembered_in_at_most_as_many_columns_as_a_key_is_wide() -> None:
    lm, edits = LM.wrap(tiny_model("llama"), tiny_tokenizer()), tiny_edits(10)
    patch = MEMIT(CONFIG).edit(lm, edits[:1])
    seen = [patch.state[f"cat.keys.{lm.arch.mlp_out[1]}"]]
    for edit in edits[1:3]:
        patch = MEMIT(CONFIG).edit(lm, [edit], state=patch)
        seen.append(patch.state[f"cat.keys.{lm.arch.mlp_out[1]}"])
    assert [keys.shape[1] for keys in seen] == [1, 2, 3]
    assert torch.equal(seen[2][:, :2], seen[1])
