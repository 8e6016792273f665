"""A second round seeks and writes again what the edited model does not yet hold, and nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from retcon.lm import LM
from retcon.methods import MEMIT, MEMITConfig
from retcon.methods.rounds import taken_up
from retcon.patch import Patch
from retcon.requests import Edit
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.contract import Trial

STIFF = MEMITConfig(statistics="none", templates=0, steps=12, weight_decay=0.0, ridge=3.0, clamp=4.0)


def _edited(lm: LM, edits: list[Edit], **options: object) -> Patch:
    return MEMIT(replace(STIFF, **options)).edit(lm, edits)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_what_a_stiff_first_round_left_is_written_by_the_second(family: str, tmp_path: Path) -> None:
    lm, edits = LM.wrap(tiny_model(family), tiny_tokenizer()), tiny_edits(2)
    found = {}
    for rounds in (1, 2):
        patch = _edited(lm, edits, rounds=rounds)
        with patch.on(lm.model):
            found[rounds] = float(Trial(MEMIT(), lm, tuple(edits), tmp_path).likelihoods().mean())
        assert all(1 <= fact["rounds"] <= rounds for fact in patch.info["facts"])
    assert found[2] > found[1] + 0.05


def test_facts_that_are_held_are_not_sought_again() -> None:
    lm, edits = LM.wrap(tiny_model("llama"), tiny_tokenizer()), tiny_edits(3)
    one = _edited(lm, edits, rounds=1, stop_probability=1e-9)
    two = _edited(lm, edits, rounds=2, stop_probability=1e-9)
    assert all(torch.equal(one.entries[path].delta(), two.entries[path].delta()) for path in one.entries)
    assert [fact["rounds"] for fact in two.info["facts"]] == [1, 1, 1]
    assert one.info["facts"] == two.info["facts"]


def test_evaluations_of_all_rounds_are_counted() -> None:
    lm, edits = LM.wrap(tiny_model("llama"), tiny_tokenizer()), tiny_edits(2)
    one, two = (_edited(lm, edits, rounds=rounds, stop_probability=0.999).info["facts"] for rounds in (1, 2))
    assert all(b["rounds"] == 2 and b["evaluations"] > a["evaluations"] for a, b in zip(one, two, strict=True))


@pytest.mark.filterwarnings("ignore:.*share a key")
def test_a_later_round_takes_up_the_least_sure_and_no_more_than_its_share() -> None:
    """None of thirteen is ever sure enough; ten are taken up in any case, and above that a share."""
    lm, edits = LM.wrap(tiny_model("llama"), tiny_tokenizer()), tiny_edits(13)
    for again, wanted in ((0.0, 10), (0.9, 12)):
        patch = _edited(lm, edits, rounds=2, again=again, stop_probability=0.999999, stop=0.0)
        assert sum(fact["rounds"] == 2 for fact in patch.info["facts"]) == wanted


def test_facts_that_fail_under_the_bare_prompt_are_taken_up_before_those_that_fail_in_other_rows() -> None:
    bare = [-0.01, -3.0, -0.02, -9.0, -0.01]
    least = [-8.0, -3.5, -7.0, -9.0, -0.05]
    assert [taken_up(bare, least, -0.1, most) for most in range(6)] == [
        [],
        [3],
        [1, 3],
        [0, 1, 3],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
    ]
