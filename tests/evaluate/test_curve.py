"""The retention curve, on a tiny model whose patches are random."""

from collections.abc import Iterator

import pytest
import torch

from retcon.errors import RetconError
from retcon.evaluate import evaluate, retention, retention_step
from retcon.lm import LM
from retcon.patch import LowRank, Patch, Step, active, describe_base
from retcon.requests import Case
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer

BATCHES = [[Case(edit) for edit in tiny_edits(12)[start : start + 4]] for start in range(0, 12, 4)]
FIGURES = ("efficacy_prob", "efficacy_gen", "efficacy")


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM.wrap(tiny_model("llama"), tiny_tokenizer())


@pytest.fixture(scope="module")
def chain(lm: LM) -> list[Patch]:
    """Three patches, each computed on top of those before it and without them."""
    found: list[Patch] = []
    parent: str | None = None
    total: Patch | None = None
    for n in range(3):
        path = lm.arch.mlp_out[n]
        draw = torch.Generator().manual_seed(n)
        entry = LowRank(torch.randn(64, 2, generator=draw) * 0.7, torch.randn(112, 2, generator=draw) * 0.3)
        step = Step(method="random", edits=({"prompt": str(n)},), parent=parent)
        found.append(Patch({path: entry}, describe_base(lm.model, [path]), (step,)))
        total = found[0] if total is None else total + found[-1]
        parent = total.id
    return found


def test_each_step_measures_all_edits_so_far(lm: LM, chain: list[Patch]) -> None:
    found = retention(lm, BATCHES, chain, metrics=FIGURES)
    assert list(found) == list(FIGURES)
    total = chain[0]
    for n, step in enumerate(found["efficacy_prob"].steps):
        total = total if n == 0 else total + chain[n]
        cases = [case for batch in BATCHES[: n + 1] for case in batch]
        report = evaluate(lm, cases, patch=total, metrics=["efficacy_prob"], compare=False, cache=False)
        assert step.edits == len(cases)
        assert step.of_all == pytest.approx(report.metrics["efficacy_prob"])
        values = [case["metrics"]["efficacy_prob"] for case in report.cases]
        assert step.by_batch == pytest.approx([sum(values[at : at + 4]) / 4 for at in range(0, len(values), 4)])
    assert len({step.by_batch for step in found["efficacy_prob"].steps}) == 3
    for step in found["efficacy_prob"].steps:
        assert step.of_all is not None
        assert step.interval is not None
        assert step.interval[0] <= step.of_all <= step.interval[1]
    assert active(lm.model) == ()


def test_a_chain_and_the_sums_along_it_give_the_same(lm: LM, chain: list[Patch]) -> None:
    sums = [chain[0], chain[0] + chain[1], chain[0] + chain[1] + chain[2]]
    assert retention(lm, BATCHES, sums, metrics=FIGURES) == retention(lm, BATCHES, chain, metrics=FIGURES)


def test_the_summary_is_that_of_the_matrix(lm: LM, chain: list[Patch]) -> None:
    found = retention(lm, BATCHES, chain, metrics=["efficacy_prob"])["efficacy_prob"]
    rows = [step.by_batch for step in found.steps]
    told = found.to_dict()
    assert told["edits"] == [4, 8, 12]
    assert told["by_batch"] == [list(row) for row in rows]
    assert told["immediate"] == pytest.approx(sum(row[-1] or 0 for row in rows) / 3)
    assert told["final"] == pytest.approx(sum(value or 0 for value in rows[-1]) / 3)
    assert len(told["by_age"]) == 3


def test_patches_are_taken_one_at_a_time(lm: LM, chain: list[Patch]) -> None:
    taken: list[int] = []

    def coming() -> Iterator[Patch]:
        for n, patch in enumerate(chain):
            taken.append(n)
            yield patch

    found = retention(lm, BATCHES[:2], coming(), metrics=["efficacy"])
    assert (len(found["efficacy"].steps), taken) == (2, [0, 1])


def test_a_step_alone_is_that_of_the_curve(lm: LM, chain: list[Patch]) -> None:
    curve = retention(lm, BATCHES, chain, metrics=["efficacy_prob"])["efficacy_prob"]
    assert retention_step(lm, BATCHES[:2], chain[0] + chain[1], metrics=["efficacy_prob"]) == {
        "efficacy_prob": curve.steps[1]
    }


def test_what_cannot_be_followed_is_refused(lm: LM, chain: list[Patch]) -> None:
    with pytest.raises(RetconError, match="only 1 patches"):
        retention(lm, BATCHES, chain[:1], metrics=["efficacy"])
    with pytest.raises(RetconError, match="at least one case"):
        retention(lm, [[]], chain)
    with pytest.raises(RetconError, match="'perplexity' cannot be followed"):
        retention(lm, BATCHES, chain, metrics=["perplexity"])
