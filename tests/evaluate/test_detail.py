"""Ranks and moments against whole rows of logits."""

import pytest
import torch

from retcon import forward
from retcon.evaluate.detail import details
from retcon.lm import LM
from retcon.testing import tiny_model, tiny_tokenizer

PAIRS = [((1, 20, 21, 22), (5, 9)), ((1, 30, 31), (6,)), ((1, 40), (7, 8, 9, 10)), ((1, 20, 21, 22), (11,))]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_tokens", [4, 512])
def test_ranks_and_moments_are_those_of_the_rows(family: str, batch_tokens: int) -> None:
    lm = LM.wrap(tiny_model(family), tiny_tokenizer())
    for (prompt, continuation), found in zip(PAIRS, details(lm, PAIRS, batch_tokens=batch_tokens), strict=True):
        with torch.no_grad():
            logits = lm.model(torch.tensor([[*prompt, *continuation]])).logits[0].double()
        rows = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        mean = (rows.exp() * rows).sum(-1)
        assert found.ranks == [int((row > row[token]).sum()) + 1 for row, token in zip(rows, continuation, strict=True)]
        assert found.means == pytest.approx(mean.tolist(), abs=1e-4)
        assert found.variances == pytest.approx(
            ((rows.exp() * rows.square()).sum(-1) - mean.square()).tolist(), abs=1e-3
        )


def test_the_first_rank_is_the_argmax() -> None:
    lm = LM.wrap(tiny_model("llama"), tiny_tokenizer())
    prompt = [1, 20, 21]
    (said,) = forward.greedy(lm, [prompt], max_new_tokens=3, stop_at_eos=False)
    (found,) = details(lm, [(prompt, said)])
    assert found.ranks == [1, 1, 1]


def test_no_pair_is_no_work() -> None:
    assert details(LM.wrap(tiny_model("llama"), tiny_tokenizer()), []) == []
