"""The logit lens: the last layer says what the model says, on every family; a late refusal leaves traces below."""

from collections.abc import Callable

import pytest
import torch

from retcon import forward
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.patch import Dense, Patch, Step, describe_base
from retcon.probes.lens import Lens, ranks, run, tail
from retcon.probes.scene import ORIGINAL, TWIN, UNLEARNED, Scene

TinyLM = Callable[..., LM]
SceneOf = Callable[..., Scene]
PROMPTS = [[5, 9, 7, 6, 8, 30, 31], [6, 7, 10], [40, 41, 42, 43]]


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gptj", "falcon", "gemma2", "cohere", "bloom", "phi"])
def test_the_last_layers_rank_is_that_of_the_models_own_logits(family: str, tiny_lm: TinyLM) -> None:
    lm = tiny_lm(family)
    wanted = [11, 300, 17]
    found = ranks(lm, PROMPTS, wanted)
    assert found.shape == (3, lm.arch.n_layers)
    assert len(tail(lm)) >= 1
    for i, ids in enumerate(PROMPTS):
        with lm.inference():
            row = forward.align([ids], [0], lm.device)
            logits = forward.call(lm, row.ids, row.mask, row.positions).logits[0, -1].float()
        rank = 1 + int((logits > logits[wanted[i]]).sum())
        assert abs(int(found[i, -1]) - rank) <= 1  # a tie may fall either way


def test_below_the_last_layer_other_ranks_are_read(tiny_lm: TinyLM) -> None:
    found = ranks(tiny_lm("llama"), PROMPTS, [11, 300, 17])
    assert any(len(set(row)) > 1 for row in found.tolist())


def test_known_answers_are_read_and_erased_ones_less(erasing: Patch, scene_of: SceneOf) -> None:
    (found,) = run(scene_of(erasing, erasing), Lens())
    assert found.share(ORIGINAL) == 1
    assert (found.share(UNLEARNED) or 0) < 1
    assert found.out[TWIN] == found.out[UNLEARNED]
    assert not found.answers
    detail = found.detail
    assert detail["layers"] == len(detail["median_rank_by_layer"][ORIGINAL]) == 4
    assert detail["median_lowest_rank"][ORIGINAL] < detail["median_lowest_rank"][UNLEARNED]
    assert detail["layers_in_top"][ORIGINAL] > detail["layers_in_top"][UNLEARNED]


def test_a_change_of_the_last_layer_leaves_what_is_read_below_it(lm: LM, scene_of: SceneOf) -> None:
    path = lm.arch.mlp_out[-1]
    D = 3 * torch.randn(lm.arch.d_model, lm.arch.d_mlp, generator=torch.Generator().manual_seed(0))
    late = Patch({path: Dense(D)}, describe_base(lm.model, [path]), (Step(method="hand", chat=True),))
    (found,) = run(scene_of(late), Lens(top=5))
    by_layer = found.detail["median_rank_by_layer"]
    assert by_layer[UNLEARNED][:-1] == by_layer[ORIGINAL][:-1]
    assert by_layer[UNLEARNED][-1] > by_layer[ORIGINAL][-1]
    assert (found.share(UNLEARNED) or 0) > 0.5


def test_a_top_of_none_is_refused(erasing: Patch, scene_of: SceneOf) -> None:
    with pytest.raises(RetconError, match="at least 1"):
        next(run(scene_of(erasing, n=1), Lens(top=0)))
