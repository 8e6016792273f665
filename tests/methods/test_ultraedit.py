"""UltraEdit against its equations written out plainly; its statistics; its turns; what it reads where."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, Phi3Config

from retcon import solve, tokens
from retcon.errors import RetconError, RetconWarning, UnsupportedModel
from retcon.lm import LM
from retcon.methods.gradients import read_answers
from retcon.methods.mlp_sites import mlp_in
from retcon.methods.ultraedit import Normaliser, UltraEdit, UltraEditConfig
from retcon.patch import Patch
from retcon.requests import Edit
from retcon.testing import FAMILIES, check_method, tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.checks import difference

F64 = torch.float64
TinyLM = Callable[..., LM]
ONE_TOKEN = Edit(prompt="The", target="city")
WHERE = UltraEditConfig(layers=(1, 2), sites=("mlp_in", "mlp_out"), lr=1e-3, prior=0.0)
"""Both sites, and without a prior: as published."""


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def near(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert (found.double() - wanted.double()).norm() <= tolerance * wanted.double().norm().clamp_min(1e-300)


# ------------------------------------------------------------------------------------------- the closed form

SIZES = st.integers(1, 12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**16), SIZES, SIZES, st.integers(1, 30), st.floats(-2, 2))
def test_the_plain_ridge_is_the_dense_one_in_either_form(seed: int, d: int, width: int, n: int, weight: float) -> None:
    """Dual (n x n) up to as many keys as they are wide, primal beyond: both are R K^T (K K^T + w I)^{-1}."""
    keys, residuals, w = draw(seed, width, n), draw(seed + 1, d, n), 10**weight
    factors = solve.plain_ridge(keys, residuals, w)
    primal = residuals @ keys.T @ torch.linalg.inv(keys @ keys.T + w * torch.eye(width, dtype=F64))
    near(factors.dense(), primal, 1e-8)
    near(factors.dense(), solve.ridge(keys, residuals, solve.cholesky(w * torch.eye(width, dtype=F64))).dense(), 1e-8)
    assert factors.U.shape[1] == factors.V.shape[1] <= min(n, max(min(d, width), 1))


def test_the_plain_ridge_takes_equal_keys_and_no_residual() -> None:
    keys = draw(0, 6, 1).expand(6, 4)
    assert torch.isfinite(solve.plain_ridge(keys, draw(1, 3, 4), 1e-6).dense()).all()
    assert not solve.plain_ridge(keys, torch.zeros(3, 4), 1.0).dense().any()


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_the_plain_ridge_needs_a_weight(weight: float) -> None:
    with pytest.raises(ValueError, match="weight above zero"):
        solve.plain_ridge(draw(0, 4, 2), draw(1, 3, 2), weight)


def test_the_plain_ridge_refuses_what_is_not_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        solve.plain_ridge(torch.full((4, 2), torch.inf), draw(1, 3, 2), 1.0)


# ------------------------------------------------------------------------------------------- the normaliser


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**16), st.lists(st.integers(1, 7), min_size=1, max_size=8), st.floats(0, 100))
def test_streamed_statistics_are_those_of_one_shot(seed: int, lengths: list[int], offset: float) -> None:
    """Also where the mean is a hundred times the spread, and in any order of the parts."""
    rows = draw(seed, sum(lengths) + 1, 5) + offset
    parts = [*rows.split([*lengths, 1])]
    forwards, backwards = Normaliser.empty(5, rows.device), Normaliser.empty(5, rows.device)
    for one, other in zip(parts, parts[::-1], strict=True):
        forwards, backwards = forwards.seen(one), backwards.seen(other)
    for normaliser in (forwards, backwards):
        mean, std = normaliser.statistics((2, 3), 0.0)
        near(mean, rows.mean(0), 1e-12)
        near(std, rows.std(0), 1e-9)


def test_the_released_variance_follows_its_recurrence() -> None:
    """M2 += b var_unbiased + n b D^2 / (n + b), where the exact merge has the biased variance."""
    lengths, rows = [3, 2, 5], draw(0, 10, 4)
    n, mean, m2 = 0, torch.zeros(4, dtype=F64), torch.zeros(4, dtype=F64)
    for part in rows.split(lengths):
        b, apart = len(part), part.mean(0) - mean
        m2 = m2 + b * part.var(0) + n * b * apart**2 / (n + b)
        mean = mean + b * apart / (n + b)
        n += b
    found_mean, found_std = Normaliser.empty(4, rows.device).seen(rows, batches=lengths).statistics((2, 2), 0.0)
    near(found_mean, mean, 1e-12)
    near(found_std, (m2 / (n - 1)).sqrt(), 1e-12)
    assert (found_std > rows.std(0)).all()


def test_a_prior_is_imagined_rows_of_mean_zero_and_one_variance() -> None:
    rows, parts, prior = draw(0, 6, 5) + 2, (2, 3), 4
    scale = torch.cat([part.square().mean().sqrt().expand(part.shape[1]) for part in rows.split(parts, 1)])
    imagined = torch.stack([scale, -scale, scale, -scale])
    wanted = torch.cat([rows, imagined])
    mean, std = Normaliser.empty(5, rows.device).seen(rows).statistics(parts, prior)
    near(mean, wanted.mean(0), 1e-12)
    near(std, wanted.std(0), 1e-12)


def test_one_row_has_no_spread() -> None:
    mean, std = Normaliser.empty(3, torch.device("cpu")).seen(draw(0, 1, 3)).statistics((1, 2), 0.0)
    near(mean, draw(0, 1, 3)[0], 1e-15)
    assert (std < 1e-7).all()


# ------------------------------------------------------------------------------------------------- the change


def by_hand(lm: LM, edits: Sequence[Edit], paths: Sequence[str], config: UltraEditConfig) -> dict[str, Tensor]:
    """One turn from the equations: statistics in one shot, the primal solve, dense."""
    answers = read_answers(lm, edits, paths, micro_batch=config.micro_batch)
    stacked = {path: torch.cat([answers.inputs[path], answers.gradients[path]], 1) for path in paths}
    change = {}
    for path, x in stacked.items():
        alike = torch.cat([other for name, other in stacked.items() if shape(lm, name) == shape(lm, path)])
        normal = (x - alike.mean(0)) / (alike.std(0) + config.eps)
        d_in = shape(lm, path)[1]
        h, v = x[:, :d_in], -config.lr * normal[:, :d_in].square().sum(1, keepdim=True) * normal[:, d_in:]
        change[path] = (torch.linalg.inv(h.T @ h + config.ridge * torch.eye(d_in, dtype=F64)) @ h.T @ v).T
    return change


def shape(lm: LM, path: str) -> tuple[int, ...]:
    weight: Any = lm.module(path).weight
    return tuple(weight.shape)


def test_a_turn_is_what_the_equations_say(tiny_lm: TinyLM) -> None:
    lm, edits, config = (
        tiny_lm("llama", F64),
        tiny_edits(5),
        replace(WHERE, averaging="micro_batch", micro_batch=2, ridge=0.5),
    )
    method = UltraEdit(config)
    wanted = by_hand(lm, edits, method.paths(lm), config)
    found = method.edit(lm, edits).entries
    assert found.keys() == wanted.keys()
    assert len(found) == 6
    for path, change in wanted.items():
        near(found[path].delta(), change, 1e-5)


def test_gradients_at_their_mean_change_nothing(tiny_lm: TinyLM) -> None:
    """A single row is its own mean; with a prior it is not."""
    lm = tiny_lm("llama")
    edit = [ONE_TOKEN]
    config = replace(WHERE, layers=(2,), sites=("mlp_out",))
    (entry,) = UltraEdit(config).edit(lm, edit).entries.values()
    assert not entry.delta().any()
    (entry,) = UltraEdit(replace(config, prior=1.0)).edit(lm, edit).entries.values()
    assert entry.delta().any()


def test_modules_of_one_shape_share_statistics_and_others_do_not(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    state = UltraEdit(WHERE).edit(lm, edits).state
    d, wide = lm.arch.d_model, lm.arch.d_mlp
    assert set(state) == {f"sum.ultraedit.{wide}x{d}", f"sum.ultraedit.{d}x{wide}"}
    n = sum(len(tokens.target_ids(lm, edit.text, edit.target)) for edit in edits)
    assert (state[f"sum.ultraedit.{wide}x{d}"][0] == 4 * n).all()  # gate and up of two layers
    assert (state[f"sum.ultraedit.{d}x{wide}"][0] == 2 * n).all()
    alone = UltraEdit(replace(WHERE, sites=("mlp_out",))).edit(lm, edits)
    assert torch.equal(alone.state[f"sum.ultraedit.{d}x{wide}"], state[f"sum.ultraedit.{d}x{wide}"])


def test_summed_losses_make_a_turn_that_knows_no_order(tiny_lm: TinyLM) -> None:
    lm, edits, config = tiny_lm("llama", F64), tiny_edits(6), replace(WHERE, averaging="none")
    patch = UltraEdit(config).edit(lm, edits)
    assert difference(patch, UltraEdit(config).edit(lm, edits[::-1])) < 1e-6
    assert difference(patch, UltraEdit(replace(config, micro_batch=2)).edit(lm, edits)) == 0
    released = replace(config, averaging="micro_batch", micro_batch=2)
    assert difference(patch, UltraEdit(released).edit(lm, edits)) > 1e-3


def test_the_released_variance_makes_smaller_steps(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama", F64), tiny_edits(4)
    config = replace(WHERE, sites=("mlp_out",), layers=(2,))
    exact, released = (UltraEdit(replace(config, released_var=flag)).edit(lm, edits) for flag in (False, True))
    (one,), (other,) = exact.entries.values(), released.entries.values()
    ratio = other.delta().norm() / one.delta().norm()  # all in one micro-batch: (b / (b - 1))^{-3/2}
    b = exact.state[f"sum.ultraedit.{lm.arch.d_model}x{lm.arch.d_mlp}"][0, 0]
    assert float(ratio) == pytest.approx(float(((b - 1) / b) ** 1.5), rel=1e-5)


def test_the_released_variance_of_one_token_is_refused(tiny_lm: TinyLM) -> None:
    config = replace(WHERE, released_var=True)
    with pytest.raises(RetconError, match="two answer tokens in each micro-batch"):
        UltraEdit(config).edit(tiny_lm("llama"), [ONE_TOKEN])


def test_bfloat16_products_change_little(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(4)
    one, other = (UltraEdit(replace(WHERE, precision=name)).edit(lm, edits) for name in ("float32", "bfloat16"))
    assert 0 < difference(one, other) < 0.1


def test_a_model_in_float16_loses_no_gradient() -> None:
    edits = tiny_edits(4)
    whole, half = (LM.wrap(tiny_model("llama", dtype=kind), tiny_tokenizer()) for kind in (F64, torch.float16))
    assert difference(UltraEdit(WHERE).edit(whole, edits), UltraEdit(WHERE).edit(half, edits)) < 0.1


def test_a_huge_step_is_told(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(3)
    patch = UltraEdit(WHERE).edit(lm, edits)
    with pytest.warns(RetconWarning, match="give a smaller lr than 10"):
        huge = UltraEdit(replace(WHERE, lr=10.0)).edit(lm, edits)
    assert huge.info["first_order_fall"] == pytest.approx(1e4 * patch.info["first_order_fall"], rel=0.01)


def test_the_first_order_fall_is_what_a_small_step_does() -> None:
    lm, edits = LM.wrap(tiny_model("llama", dtype=F64), tiny_tokenizer()), tiny_edits(3)
    paths = [lm.arch.mlp_out[2]]
    before = read_answers(lm, edits, paths).losses.sum()
    patch = UltraEdit(replace(WHERE, lr=1e-5, layers=(2,), sites=("mlp_out",))).edit(lm, edits)
    exact = UltraEdit(replace(WHERE, lr=1e-2, layers=(2,), sites=("mlp_out",))).edit(lm, edits)
    with patch.on(lm.model):
        after = read_answers(lm, edits, paths).losses.sum()
    fall = float((before - after) / before)
    assert fall == pytest.approx(exact.info["first_order_fall"] / 1e3, rel=0.05)  # which rounds to three digits


# -------------------------------------------------------------------------------------------------- the turns


def test_more_edits_than_a_turn_holds_are_a_fold_over_its_turns(tiny_lm: TinyLM) -> None:
    lm, edits, method = tiny_lm("llama"), tiny_edits(5), UltraEdit(replace(WHERE, turn=2))
    together = method.edit(lm, edits)
    folded: Patch | None = None
    for start in (0, 2, 4):
        folded = method.edit(lm, edits[start : start + 2], state=folded)
    assert folded is not None
    assert together.id == folded.id
    assert [len(step.edits) for step in together.history] == [2, 2, 1]
    assert together.info["n"] == len(together.info["facts"]) == 5
    assert difference(together, UltraEdit(WHERE).edit(lm, edits)) > 1e-3


def test_turns_go_on_from_a_state_that_the_model_runs_already(tiny_lm: TinyLM) -> None:
    lm, edits, method = tiny_lm("llama"), tiny_edits(6), UltraEdit(replace(WHERE, turn=2))
    first = method.edit(lm, edits[:2])
    wanted = method.edit(lm, edits[2:], state=first)
    with first.on(lm.model):
        found = method.edit(lm, edits[2:], state=first)
        alone = method.edit(lm, edits[2:])
    assert difference(wanted, found) < 1e-5
    assert alone.parent == first.id
    assert len(alone.history) == 2


def test_statistics_go_on_over_calls_and_add_up_in_a_sum(tiny_lm: TinyLM) -> None:
    lm, edits, method = tiny_lm("llama"), tiny_edits(4), UltraEdit(WHERE)
    first, second = method.edit(lm, edits[:2]), method.edit(lm, edits[2:])
    total = (first + second).state
    assert total.keys() == first.state.keys()
    for name, sums in total.items():
        near(sums, first.state[name] + second.state[name], 1e-15)
    on_top = method.edit(lm, edits[2:], state=first)
    for name, sums in on_top.state.items():
        assert torch.equal(sums[0], total[name][0])


def test_a_later_edit_overwrites_an_earlier_one() -> None:
    lm = LM.wrap(tiny_model("llama"), tiny_tokenizer())
    method = UltraEdit(replace(WHERE, lr=1e-2, prior=1.0))
    prompt = "People say that {} plays the sport of"
    first = method.edit(lm, [Edit(prompt=prompt, subject="Big Ben", target="chess")])
    later = method.edit(lm, [Edit(prompt=prompt, subject="Big Ben", target="soccer")], state=first)

    def likelihoods(patch: Patch) -> list[float]:
        with patch.on(lm.model):
            found = [
                read_answers(lm, [Edit(prompt=prompt, subject="Big Ben", target=word)], [lm.arch.mlp_out[1]])
                for word in ("chess", "soccer")
            ]
        return [-float(answers.losses.mean()) for answers in found]

    assert likelihoods(first)[0] > likelihoods(first)[1]
    assert likelihoods(later)[1] > likelihoods(later)[0]


def test_facts_need_no_subject_and_may_share_one(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("gpt2")
    named = [
        Edit(prompt="{} plays the sport of", subject="Big Ben", target="chess"),
        Edit(prompt="The mother tongue of {} is", subject="Big Ben", target="Danish"),
    ]
    plain = [Edit(prompt=edit.text, target=edit.target) for edit in named]
    assert difference(UltraEdit(WHERE).edit(lm, named), UltraEdit(WHERE).edit(lm, plain)) == 0


# ------------------------------------------------------------------------------------------- where it can edit


@pytest.mark.parametrize("family", FAMILIES)
def test_what_reads_the_stream_is_found_by_structure(family: str, tiny_lm: TinyLM) -> None:
    lm = tiny_lm(family)
    found = mlp_in(lm, 1)
    gated = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "stablelm", "olmo2", "cohere", "granite"}
    names = [path.rpartition(".")[2] for path in found]
    assert len(found) == (2 if family in gated else 1), names
    assert names == ["gate_proj", "up_proj"] if family in gated else "attn" not in found[0]
    assert all(path.startswith(lm.arch.blocks[1]) for path in found)


def test_a_fused_gate_and_up_is_one_projection() -> None:
    config = Phi3Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=None,
        bos_token_id=1,
        eos_token_id=2,
    )
    model: Any = AutoModelForCausalLM
    lm = LM.wrap(model.from_config(config).eval(), tiny_tokenizer())
    assert mlp_in(lm, 1) == ["model.layers.1.mlp.gate_up_proj"]
    patch = UltraEdit(replace(WHERE, layers=(1,))).edit(lm, tiny_edits(2))
    assert sorted(entry.shape for entry in patch.entries.values()) == [(64, 112), (224, 64)]


def test_a_model_without_such_projections_is_refused(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama")
    odd = LM(lm.model, lm.tokenizer, replace(lm.arch, mlp_out=lm.arch.attn_out), "odd")
    reason = UltraEdit(WHERE).unsupported(odd)
    assert reason is not None
    assert "edit the site mlp_out alone" in reason
    with pytest.raises(UnsupportedModel, match="reads the residual stream"):
        UltraEdit(WHERE).edit(odd, tiny_edits(1))
    assert UltraEdit(replace(WHERE, sites=("mlp_out",))).unsupported(odd) is None
    assert UltraEdit(WHERE).unsupported(lm) is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"layers": (7,)}, "name some of 0 to 3"),
        ({"sites": ()}, "sites is empty"),
        ({"turn": 0}, "at least 1"),
        ({"micro_batch": 0}, "at least 1"),
        ({"ridge": 0.0}, "weight above zero"),
    ],
)
def test_senseless_options_are_refused(options: dict[str, Any], reason: str, tiny_lm: TinyLM) -> None:
    with pytest.raises(RetconError, match=reason):
        UltraEdit(replace(WHERE, **options)).edit(tiny_lm("llama"), tiny_edits(2))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "opt", "gemma2"])
def test_the_contract(family: str) -> None:
    check_method(UltraEdit(replace(WHERE, lr=3e-4)), tiny_model(family), tiny_tokenizer())


def test_the_default_window_ends_below_the_last_layer() -> None:
    for layers, wanted in ((1, [0]), (2, [0]), (3, [1]), (4, [1, 2]), (9, [3, 4, 5, 6, 7])):
        lm = LM.wrap(tiny_model("llama", layers=layers), tiny_tokenizer())
        assert UltraEdit().paths(lm) == [lm.arch.mlp_out[layer] for layer in wanted]


def test_the_contract_with_the_default_options() -> None:
    check_method(UltraEdit(), tiny_model("llama", tie=True), tiny_tokenizer("bos"))
