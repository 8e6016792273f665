"""What earlier chunks still hold."""

import pytest
from tests.bench.conftest import FAST

from retcon.bench import retaining
from retcon.bench.cells import configured
from retcon.evaluate import evaluate
from retcon.lm import LM
from retcon.requests import Case
from retcon.testing import tiny_edits


def test_each_chunk_so_far_has_the_efficacy_that_the_evaluation_gives(lm: LM) -> None:
    edits = tiny_edits(4)
    memit = configured("memit", FAST | {"layers": (1, 2)}, 0)
    patch = memit.edit(lm, edits[:3])
    scores = retaining.after_step(lm, patch, edits, 2)
    report = evaluate(lm, [Case(edit) for edit in edits[:3]], patch=patch, metrics=["efficacy"], compare=False)
    found = [case["metrics"]["efficacy"] for case in report.cases]
    assert scores == [sum(found[:2]) / 2, found[2]]


def test_the_summary_tells_what_each_step_gave_and_what_is_left() -> None:
    found = retaining.summary([[1.0], [0.5, 1.0]])
    assert found["scores"] == [[1.0], [0.5, 1.0]]
    assert (found["immediate"], found["final"], found["forgotten"]) == (1.0, 0.75, pytest.approx(0.25))
