"""Texts to retain go on as the unedited model does."""

from typing import Any

import pytest
import torch

from retcon import forward, solve, stats, tokens
from retcon.errors import RequestError, RetconError
from retcon.lm import LM
from retcon.methods import MEMIT, METHODS, MEMITConfig, method
from retcon.methods.family import Problem
from retcon.methods.retained import answered, retained_keys
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.contract import quick

QUICK: dict[str, Any] = {"templates": 0, "steps": 5, "rounds": 1, "precision": "float32", "statistics": "none"}
RULES: dict[str, dict[str, Any]] = {
    "memit": {"ridge": 0.1},
    "memit-blue": {"ridge": 0.1},
    "pmet": {"ridge": 0.1},
    "emmet": {"weight": 0.1},
    "ece": {"ridge": 0.1},
    "ece-released": {"ridge": 0.1},
    "eamet": {"ridge": 0.1},
    "alphaedit": {"l2": 0.1},
}
KEPT = ("The river is in the north of the country.", "Chess is a sport too.")


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM.wrap(tiny_model("llama"), tiny_tokenizer())


def test_the_answer_is_the_models_own(lm: LM) -> None:
    prompts = [tokens.encode(lm, kept) for kept in KEPT]
    found = answered(lm, KEPT, 6)
    assert [one.prompt for one in found] == prompts
    assert [one.answer for one in found] == forward.greedy(lm, prompts, max_new_tokens=6)
    assert all(one.ids == one.prompt + one.answer and one.answer for one in found)
    assert [one.ended for one in found] == [len(one.answer) < 6 for one in found]


def test_no_answer_and_no_text(lm: LM) -> None:
    assert [one.ids for one in answered(lm, KEPT, 0)] == [tokens.encode(lm, kept) for kept in KEPT]
    assert answered(lm, (), 6) == []
    with pytest.raises(RetconError, match=r"-1 tokens .* give 0 or more"):
        answered(lm, KEPT, -1)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"rome", "ultraedit"}))  # those two read no such texts
def test_a_text_without_a_token_is_refused_by_every_method(lm: LM, name: str) -> None:
    with pytest.raises(RequestError, match="the text to keep '' has (no token|fewer than two tokens)"):
        quick(name).edit(lm, tiny_edits(1), retain=[KEPT[0], ""])


def test_keys_of_both_at_all_their_tokens(lm: LM) -> None:
    paths = lm.arch.mlp_out[1:3]
    plain = stats.keys(lm, paths, [one.ids for one in answered(lm, KEPT, 6)])
    for path, keys in retained_keys(lm, paths, KEPT, 6, 4.0).items():
        assert torch.equal(keys, 2 * plain[path])
    assert retained_keys(lm, paths, KEPT, 6, 0.0) == retained_keys(lm, paths, (), 6, 1.0) == {}
    with pytest.raises(RetconError, match="retain_weight is -1; it must be 0 or more"):
        retained_keys(lm, paths, KEPT, 6, -1.0)


@pytest.mark.parametrize("name", RULES)
def test_what_counts_more_is_held_closer(lm: LM, name: str) -> None:
    norms = []
    for weight in (0.0, 0.01, 1.0, 100.0):
        rule = method(name, **QUICK, **RULES[name], layers=(1,), retain_weight=weight)
        made = rule.edit(lm, tiny_edits(3), retain=KEPT)
        path = lm.arch.mlp_out[1]
        keys = retained_keys(lm, [path], KEPT, 40, 1.0)[path]
        norms.append(float((made.entries[path].delta().double() @ keys).norm()))
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] < 0.2 * norms[0]


def test_keys_to_retain_are_those_of_the_unedited_model_beside_those_of_earlier_batches(lm: LM) -> None:
    seen = []

    class Watched(MEMIT):
        def rule(self, problem: Problem) -> solve.Factors:
            seen.append(problem.past)
            return super().rule(problem)

    rule = Watched(MEMITConfig(**QUICK, layers=(1, 2), ridge=0.1, retain_weight=9.0))
    first = rule.edit(lm, tiny_edits(3))
    seen.clear()
    rule.edit(lm, tiny_edits(4)[3:], state=first, retain=KEPT)
    wanted = retained_keys(lm, lm.arch.mlp_out[1:3], KEPT, 40, 9.0)
    for found, (path, keys) in zip(seen, wanted.items(), strict=True):
        assert torch.equal(found[:, :3], first.state[f"cat.keys.{path}"].double())
        assert torch.equal(found[:, 3:], keys)
