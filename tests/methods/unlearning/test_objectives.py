"""The objectives against their oracles (O1 to O12), and against faults that public code is known for."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from retcon.errors import RetconError
from retcon.methods import METHODS
from retcon.methods.unlearning.config import IDKConfig
from retcon.methods.unlearning.objectives import (
    IGNORED,
    OBJECTIVES,
    LossInputs,
    Sequences,
    direction,
    divergence,
    retain_term,
    weights,
)

F64 = torch.float64
V, D = 11, 6
NAMES = list(OBJECTIVES)
SIDES = ("forget", "refusal", "retain")


def config(name: str, **options: Any) -> Any:
    return METHODS[name].Config(**options)


def alone(name: str, **options: Any) -> Any:
    """The objective's options with L_f alone."""
    return config(name, **{"forget_weight": 1.0, "retain_weight": 0.0, **options})


def sequences(counts: Sequence[int], seed: int = 0, *, prompt: int = 2) -> Sequences:
    """Random sequences with so many labelled tokens each, and a reference that is another random model."""
    generator = torch.Generator().manual_seed(seed)
    width = prompt + max(counts)
    labels = torch.full((len(counts), width), IGNORED)
    for row, n in enumerate(counts):
        labels[row, prompt : prompt + n] = torch.randint(V, (n,), generator=generator)

    def draw(k: int) -> Tensor:
        return torch.randn(len(counts), width, k, generator=generator, dtype=F64)

    return Sequences(
        labels=labels,
        logits=2 * draw(V),
        states=draw(D),
        reference_nll=4 * torch.rand(len(counts), generator=generator, dtype=F64),
        reference_logits=2 * draw(V),
        reference_states=draw(D),
    )


def inputs(counts: Sequence[int] = (3, 1, 4), seed: int = 0) -> LossInputs:
    return LossInputs(*(sequences(counts, 10 * seed + number) for number in range(3)))


def nlls(side: Sequences) -> list[Tensor]:
    """nll_t of each sequence, by hand."""
    assert side.logits is not None
    found = []
    for logits, labels in zip(side.logits, side.labels, strict=True):
        asked = labels[1:] != IGNORED
        logprobs = logits[:-1][asked].log_softmax(-1)
        found.append(-logprobs.gather(1, labels[1:][asked][:, None])[:, 0])
    return found


def at_reference(side: Sequences) -> Sequences:
    """The same with the reference equal to the model."""
    total = torch.stack([nll.sum() for nll in nlls(side)]).detach()
    return replace(side, reference_nll=total, reference_logits=side.logits, reference_states=side.states)


def value(name: str, given: LossInputs, options: Any = None) -> Tensor:
    total, _ = OBJECTIVES[name](given, alone(name) if options is None else options)
    return total


def wanting(side: Sequences) -> tuple[Sequences, dict[str, Tensor]]:
    """The same with logits and states that want gradients."""
    assert side.logits is not None
    assert side.states is not None
    leaves = {"logits": side.logits.clone().requires_grad_(), "states": side.states.clone().requires_grad_()}
    return replace(side, **leaves), leaves


def slopes(name: str, given: LossInputs, options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and its gradient by everything that the model computes, under "side.what"."""
    sides: dict[str, Sequences] = {}
    leaves: dict[str, Tensor] = {}
    for side in SIDES:
        sides[side], found = wanting(getattr(given, side))
        leaves |= {f"{side}.{what}": leaf for what, leaf in found.items()}
    total, _ = OBJECTIVES[name](LossInputs(**sides), options)
    grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return total.detach(), dict(zip(leaves, grads, strict=True))


def both(name: str) -> Any:
    """Options with which both terms count."""
    return config(name, forget_weight=0.7, retain_weight=1.3)


# ------------------------------------------------------------------------------------------------- the oracles


@pytest.mark.parametrize(("beta", "wanted"), [(0.1, 13.8629), (0.5, 2.7726)])
def test_o1_at_the_reference_npo_and_dpo_are_two_over_beta_times_ln_2(beta: float, wanted: float) -> None:
    given = LossInputs(*(at_reference(side) for side in (inputs().forget, inputs().refusal) if side))
    assert float(value("npo", given, alone("npo", beta=beta))) == pytest.approx(2 / beta * math.log(2), abs=1e-9)
    assert float(value("dpo", given, alone("dpo", beta=beta))) == pytest.approx(wanted, abs=1e-4)


def test_o1_simnpo_at_its_margin_is_two_over_beta_times_ln_2() -> None:
    side = sequences([4])
    margin = float(nlls(side)[0].mean())
    assert float(value("simnpo", LossInputs(side), alone("simnpo", margin=margin))) == pytest.approx(0.3081, abs=1e-4)


def by_sums(name: str, sums: Tensor, beta: float) -> Tensor:
    """An objective as a function of s alone: one label among two, with a logit that gives such an s."""
    logits = torch.stack([torch.zeros_like(sums), (sums.exp() - 1).log()], -1)[:, None].expand(-1, 2, -1)
    labels = torch.tensor([[IGNORED, 0]] * len(sums))
    side = Sequences(labels=labels, logits=logits, reference_nll=torch.full_like(sums, 2.0))
    return value(name, LossInputs(side), alone(name, beta=beta))


def test_o2_at_the_reference_npos_gradient_is_that_of_ga_and_it_vanishes_as_answers_become_unlikely() -> None:
    for excess in (0.0, 0.5, 30.0):
        sums = torch.full((3,), 2.0 + excess, dtype=F64, requires_grad=True)
        (slope,) = torch.autograd.grad(by_sums("npo", sums, 0.4), sums)
        wanted = -2 / (1 + math.exp(0.4 * excess)) / 3
        torch.testing.assert_close(slope, torch.full_like(slope, wanted), rtol=1e-9, atol=0)
        if excess == 0:
            torch.testing.assert_close(slope, torch.full_like(slope, -1 / 3))
        if excess == 30:
            assert slope.abs().max() < 1e-5


@pytest.mark.parametrize(("beta", "wanted"), [(1.0, -1.331), (0.1, -3.579), (0.01, -3.958), (1e-4, -3.9996)])
def test_o3_towards_beta_0_npo_is_gradient_ascent(beta: float, wanted: float) -> None:
    sums = torch.tensor([5.0, 7.0], dtype=F64)  # 3 and 5 above the reference
    found = float(by_sums("npo", sums, beta)) - 2 / beta * math.log(2)
    assert found == pytest.approx(wanted, abs=6e-4 if beta > 1e-3 else 5e-5)


def test_o4_simnpo_sees_the_loss_a_token_alone_and_npo_does_not() -> None:
    side = sequences([3], prompt=1)
    assert side.logits is not None
    twice = replace(
        side,
        labels=torch.cat([side.labels, side.labels[:, 1:]], 1),
        logits=torch.cat([side.logits[:, :-1], side.logits], 1),
    )
    assert (twice.labels != IGNORED).sum() == 6
    torch.testing.assert_close(value("simnpo", LossInputs(twice)), value("simnpo", LossInputs(side)))
    assert (value("npo", LossInputs(twice)) - value("npo", LossInputs(side))).abs() > 0.1


def test_o5_undial_at_the_reference_only_turns_the_labels_down() -> None:
    given = replace(inputs(), forget=at_reference(sequences([3, 1, 4])))
    _, still = slopes("undial", given, alone("undial", beta=0.0))
    assert still["forget.logits"].abs().max() < 1e-15
    _, found = slopes("undial", given, alone("undial", beta=10.0))
    assert given.forget is not None
    asked = given.forget.labels[:, 1:] != IGNORED
    by_label = found["forget.logits"][:, :-1][asked]
    label = torch.zeros(by_label.shape, dtype=torch.bool)
    label[torch.arange(len(label)), given.forget.labels[:, 1:][asked]] = True
    assert (by_label[label] > 0).all()
    assert (by_label[~label] < 0).all()


def test_o6_ceu_is_the_entropy_without_the_label_less_its_complements_log() -> None:
    side = sequences([3, 4])
    assert side.logits is not None
    wanted, skip = [], 1
    for logits, labels in zip(side.logits, side.labels, strict=True):
        asked = labels[1:] != IGNORED
        for z, y in list(zip(logits[:-1][asked], labels[1:][asked], strict=True))[skip:]:
            rest = torch.cat([z[:y], z[y + 1 :]]).log_softmax(0)
            wanted.append(-(rest.exp() * rest).sum() - torch.log1p(-z.softmax(0)[y]))
    assert len(wanted) == 5
    options = alone("ceu", ignore_first=skip)
    torch.testing.assert_close(value("ceu", LossInputs(side), options), torch.stack(wanted).mean())


def test_o6_ceus_gradient_by_a_label_is_its_probability_over_the_places() -> None:
    given, options = inputs((3, 2)), alone("ceu", ignore_first=0)
    _, found = slopes("ceu", given, options)
    assert given.forget is not None
    assert given.forget.logits is not None
    asked = given.forget.labels[:, 1:] != IGNORED
    label = given.forget.labels[:, 1:][asked][:, None]
    likely = given.forget.logits[:, :-1][asked].softmax(-1).gather(1, label)
    torch.testing.assert_close(found["forget.logits"][:, :-1][asked].gather(1, label), likely / 5)


def test_o6_ceu_is_undial_with_an_endless_beta_at_the_reference() -> None:
    given = replace(inputs(), forget=at_reference(sequences([3, 2])))
    one = slopes("ceu", given, alone("ceu", ignore_first=0))
    other = slopes("undial", given, alone("undial", beta=1e4))
    torch.testing.assert_close(one[0], other[0])
    torch.testing.assert_close(one[1]["forget.logits"], other[1]["forget.logits"])


def test_o7_weighted_ascent_without_weights_is_ascent_and_satimp_without_its_second_is_the_first() -> None:
    given = inputs()
    ascent, by_logits = slopes("ga", given, alone("ga"))
    assert given.forget is not None
    torch.testing.assert_close(ascent, -torch.cat(nlls(given.forget)).mean())
    weighted = slopes("wga", given, alone("wga", beta=0.0))
    torch.testing.assert_close(weighted[0], ascent)
    torch.testing.assert_close(weighted[1]["forget.logits"], by_logits["forget.logits"])
    for beta in (0.5, 2.0):
        torch.testing.assert_close(
            value("satimp", given, alone("satimp", beta1=beta, beta2=0.0)), value("wga", given, alone("wga", beta=beta))
        )


def test_the_weights_of_tokens_are_those_of_the_papers_and_have_no_gradient() -> None:
    given = inputs()
    assert given.forget is not None
    nll = torch.cat(nlls(given.forget))
    likely = (-nll).exp()
    torch.testing.assert_close(value("wga", given, alone("wga", beta=2.0)), -(likely**2 * nll).mean())
    wanted = -(likely**5 * (1 - likely) * nll).mean()
    torch.testing.assert_close(value("satimp", given), wanted)
    one = LossInputs(sequences([1]), sequences([1], 7), sequences([1], 8))
    assert one.forget is not None
    share = float((-torch.cat(nlls(one.forget))).exp())
    _, weighted = slopes("wga", one, alone("wga"))
    _, plain = slopes("ga", one, alone("ga"))
    torch.testing.assert_close(weighted["forget.logits"], share * plain["forget.logits"])


def test_o8_rmu_is_zero_where_the_states_are_steered_and_nowhere_else() -> None:
    side, options = sequences([3, 1]), alone("rmu", steering=2.5, seed=3)
    aim = 2.5 * direction(D, 3)
    assert side.states is not None
    assert float(aim.norm()) == pytest.approx(2.5)
    assert bool((aim >= 0).all())
    states = side.states.clone()
    asked = side.labels[:, 1:] != IGNORED
    states[:, :-1][asked] = aim
    assert float(value("rmu", LossInputs(replace(side, states=states)), options)) == 0
    states[1, 1] += 1  # one of one place, of the second of two sequences
    assert float(value("rmu", LossInputs(replace(side, states=states)), options)) == pytest.approx(0.5)
    states[1, 3] += 100  # a place without a label
    assert float(value("rmu", LossInputs(replace(side, states=states)), options)) == pytest.approx(0.5)


def test_o9_graddiff_is_ascent_and_retain_fine_tuning_by_its_weights() -> None:
    given = inputs()
    assert given.retain is not None
    held = torch.cat(nlls(given.retain)).mean()
    torch.testing.assert_close(value("graddiff", given, config("graddiff", forget_weight=0.0)), held)
    ascent = value("ga", given)
    torch.testing.assert_close(value("graddiff", given, config("graddiff", retain_weight=0.0)), ascent)
    torch.testing.assert_close(value("graddiff", given, both("graddiff")), 0.7 * ascent + 1.3 * held)


def test_o10_the_divergence_is_zero_at_the_reference_and_so_is_its_gradient() -> None:
    given = replace(inputs(), retain=at_reference(sequences([3, 2])))
    total, found = slopes("kl", given, config("kl", forget_weight=0.0))
    assert abs(float(total)) < 1e-15
    assert found["retain.logits"].abs().max() < 1e-15
    away = inputs()
    assert away.retain is not None
    assert float(retain_term(away.retain, config("kl"))) > 0.1


def test_the_divergence_is_that_of_torch() -> None:
    before, now = torch.randn(2, 5, V, generator=torch.Generator().manual_seed(2), dtype=F64)
    wanted = F.kl_div(now.log_softmax(-1), before.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(divergence(before, now), wanted)


def padded(side: Sequences, left: int, right: int) -> Sequences:
    """The same with columns of padding that hold anything, not even numbers."""

    def wider(values: Tensor, fill: float) -> Tensor:
        return F.pad(values, (0, 0, left, right), value=fill) if values.ndim == 3 else values

    names = ("logits", "states", "reference_logits", "reference_states")
    whole = {name: wider(getattr(side, name), fill) for name, fill in zip(names, (3e5, -7.0, 1e9, 2.0), strict=True)}
    return replace(side, labels=F.pad(side.labels, (left, right), value=IGNORED), **whole)


@pytest.mark.parametrize("retain_loss", ["nll", "kl", "embed"])
@pytest.mark.parametrize("name", NAMES)
def test_o11_padding_on_either_side_changes_neither_value_nor_gradient(name: str, retain_loss: str) -> None:
    given, options = inputs(), replace(both(name), retain_loss=retain_loss)
    total, found = slopes(name, given, options)
    assert any(slope.any() for slope in found.values())
    for left, right in ((0, 3), (2, 0), (1, 2)):
        wide = LossInputs(*(padded(getattr(given, side), left, right) for side in SIDES))
        again, wider = slopes(name, wide, options)
        torch.testing.assert_close(again, total, rtol=1e-12, atol=0)
        for where, slope in found.items():
            inner = wider[where][:, left : wider[where].shape[1] - right]
            torch.testing.assert_close(inner, slope, rtol=1e-12, atol=1e-15)
            assert float(wider[where].abs().sum()) == pytest.approx(float(inner.abs().sum()), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_o11_what_stands_where_nothing_is_asked_has_no_part(name: str) -> None:
    """Not even where it is no number: what is left out is not read, rather than weighed by zero."""
    given, options = inputs(), both(name)
    total, found = slopes(name, given, options)
    spoilt = {}
    for side in SIDES:
        whole = getattr(given, side)
        asked = torch.zeros(whole.labels.shape, dtype=torch.bool)
        asked[:, :-1] = whole.labels[:, 1:] != IGNORED
        assert not asked.all()
        values = {what: getattr(whole, what).clone() for what in ("logits", "states", "reference_logits")}
        for tensor in values.values():
            tensor[~asked] = torch.nan
        spoilt[side] = replace(whole, **values)
    again, other = slopes(name, LossInputs(**spoilt), options)
    assert torch.equal(again, total)
    for where, slope in found.items():
        assert torch.equal(other[where], slope)


@pytest.mark.parametrize("name", NAMES)
def test_o12_a_batch_of_two_is_the_stated_mean_of_its_members(name: str) -> None:
    """Weighted by tokens, or by sequences; so a batch may be cut into parts."""
    objective, options = OBJECTIVES[name], alone(name)
    one, other = inputs((2,), 1), inputs((5,), 2)
    pair = inputs((2, 5), 3)
    joined: dict[str, Sequences] = {}
    for side in SIDES:
        parts = [getattr(one, side), getattr(other, side)]
        parts[0] = padded(parts[0], 0, 3)
        names = ("labels", "logits", "states", "reference_nll", "reference_logits", "reference_states")
        joined[side] = replace(
            getattr(pair, side), **{what: torch.cat([getattr(part, what) for part in parts]) for what in names}
        )
    singles = [float(objective.forget(given, options)) for given in (one, other)]
    share = [objective.units([n], options) for n in (2, 5)]
    assert share == ([1, 1] if objective.mean == "sequences" else [1, 4] if name == "ceu" else [2, 5])
    assert objective.units([2, 5], options) == sum(share)
    wanted = sum(k * single for k, single in zip(share, singles, strict=True)) / sum(share)
    found = float(objective.forget(LossInputs(**joined), options))
    assert found == pytest.approx(wanted, rel=1e-12)
    other_mean = (singles[0] + singles[1]) / 2 if objective.mean == "tokens" else (2 * singles[0] + 5 * singles[1]) / 7
    assert abs(found - other_mean) > 1e-6


# ------------------------------------------------------------------------------------------------- the others


def test_dpo_prefers_the_refusal_to_the_answer() -> None:
    given = inputs()
    excess = []
    for side in (given.forget, given.refusal):
        assert side is not None
        assert side.reference_nll is not None
        excess.append(torch.stack([nll.sum() for nll in nlls(side)]) - side.reference_nll)
    wanted = -2 / 0.1 * F.logsigmoid(0.1 * (-excess[1] + excess[0])).mean()
    torch.testing.assert_close(value("dpo", given), wanted)
    _, found = slopes("dpo", given, alone("dpo"))
    for name, sign in (("forget", 1), ("refusal", -1)):
        labels = getattr(given, name).labels
        asked = labels[:, 1:] != IGNORED
        by_label = found[f"{name}.logits"][:, :-1][asked].gather(1, labels[:, 1:][asked][:, None])
        assert (sign * by_label > 0).all()


def test_idk_descends_on_refusals_and_its_joint_mean_is_one_over_all_tokens() -> None:
    given = LossInputs(sequences([9], 5), sequences([2, 3], 1), sequences([7, 1, 1], 2))
    assert given.refusal is not None
    assert given.retain is not None
    refused, held = torch.cat(nlls(given.refusal)), torch.cat(nlls(given.retain))
    torch.testing.assert_close(value("idk", given, config("idk")), refused.mean() + held.mean())
    joint = value("idk", given, config("idk", joint_mean=True))
    torch.testing.assert_close(joint, torch.cat([refused, held]).mean())
    assert weights(IDKConfig(joint_mean=True), 5, 9) == (5 / 14, 9 / 14)
    assert weights(IDKConfig(forget_weight=0.5), 5, 9) == (0.5, 1.0)


def test_the_parts_of_a_loss_are_told() -> None:
    given = inputs()
    total, told = OBJECTIVES["npo"](given, both("npo"))
    assert told.keys() == {"forget", "retain"}
    assert float(total) == pytest.approx(0.7 * told["forget"] + 1.3 * told["retain"])
    _, told = OBJECTIVES["npo"](given, alone("npo"))
    assert told.keys() == {"forget"}


def test_in_half_precision_sums_are_in_fp32() -> None:
    side = sequences([3, 1])
    assert side.logits is not None
    half = replace(side, logits=side.logits.bfloat16())
    assert value("ga", LossInputs(half)).dtype == torch.float32
    assert value("ga", LossInputs(side)).dtype == F64


@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("ga", LossInputs(), "forget sequences are missing"),
        ("dpo", LossInputs(sequences([1])), "refusal sequences are missing"),
        ("npo", LossInputs(replace(sequences([1]), reference_nll=None)), "reference_nll is missing"),
        ("undial", LossInputs(replace(sequences([1]), reference_logits=None)), "reference_logits are missing"),
        ("rmu", LossInputs(replace(sequences([1]), states=None)), "states are missing"),
    ],
)
def test_what_is_missing_is_named(name: str, given: LossInputs, reason: str) -> None:
    with pytest.raises(RetconError, match=reason):
        value(name, given)


def test_a_weight_without_its_side_and_no_weight_at_all_are_refused() -> None:
    given = LossInputs(sequences([1]))
    with pytest.raises(RetconError, match="retain sequences are missing"):
        value("graddiff", given, config("graddiff"))
    with pytest.raises(RetconError, match="both weights are zero"):
        value("ga", given, config("ga", forget_weight=0.0))


# ------------------------------------------------------------------------------------------------- faults of others


def test_f1_undial_looks_at_labelled_places_alone_and_at_no_wrapped_index() -> None:
    """An index of -100 wraps around to entry V - 100: a mask made with it turns that entry down at every place."""
    wide, n = 150, 3
    generator = torch.Generator().manual_seed(0)
    labels = torch.full((1, 8), IGNORED)
    labels[0, 5:] = torch.tensor([7, 8, 9])
    logits = torch.randn(1, 8, wide, generator=generator, dtype=F64, requires_grad=True)
    side = Sequences(labels=labels, logits=logits, reference_logits=logits.detach())
    (slope,) = torch.autograd.grad(value("undial", LossInputs(side)), logits)
    assert not slope[0, [0, 1, 2, 3, 7]].any()
    assert (slope[0, [4, 5, 6]].sum(-1).abs() < 1e-12).all()
    likely = logits.detach()[0, 4].softmax(-1)
    lowered = (logits.detach()[0, 4] - 10 * F.one_hot(torch.tensor(7), wide)).softmax(-1)
    torch.testing.assert_close(slope[0, 4], (likely - lowered) / n)
    assert slope[0, 4, wide - 100] < 0  # it gains, as all do that are no label


def test_f2_the_divergence_is_a_mean_over_labelled_places_not_over_rows_or_pads() -> None:
    side = sequences([3, 2])
    assert side.logits is not None
    assert side.reference_logits is not None
    asked = side.labels[:, 1:] != IGNORED
    each = divergence(side.reference_logits[:, :-1][asked], side.logits[:, :-1][asked])
    torch.testing.assert_close(retain_term(side, config("kl")), each.mean())
    torch.testing.assert_close(retain_term(padded(side, 0, 40), config("kl")), each.mean())


def test_f3_npo_is_of_log_probabilities_not_of_raw_logits() -> None:
    """Logits that are all higher by the same say the same."""
    side = sequences([3, 2])
    assert side.logits is not None
    shifted = replace(side, logits=side.logits + 5.0)
    torch.testing.assert_close(value("npo", LossInputs(shifted)), value("npo", LossInputs(side)))
    assert side.reference_logits is not None
    both_shifted = replace(shifted, reference_logits=side.reference_logits - 3.0)
    torch.testing.assert_close(retain_term(both_shifted, config("kl")), retain_term(side, config("kl")))
