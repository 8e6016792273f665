"""What is left of early edits."""

import pytest

from retcon.metrics.retention import Retention, retention


def test_a_run_that_forgets_shows_it() -> None:
    found = retention([[1.0], [0.5, 0.8], [0.0, 0.4, 0.9]])
    assert found.immediate == pytest.approx(0.9)
    assert found.final == pytest.approx(1.3 / 3)
    assert found.by_age == pytest.approx((0.9, 0.45, 0.0))
    assert found.forgotten == pytest.approx(0.9 - 1.3 / 3)


def test_what_was_not_measured_is_left_out() -> None:
    found = retention([[None], [0.5, 1.0]])
    assert (found.immediate, found.final, found.by_age, found.forgotten) == (1.0, 0.75, (1.0, 0.5), 0.0)
    assert retention([]) == Retention(None, None, (), None)
    assert retention([[None]]) == Retention(None, None, (None,), None)


def test_a_matrix_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1 has 1 scores"):
        retention([[1.0], [0.5]])
