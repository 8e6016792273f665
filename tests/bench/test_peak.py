"""The most memory of one piece of work."""

import sys

import pytest
import torch

from retcon.bench import peak


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is that of the whole process")
def test_what_came_before_does_not_count() -> None:
    with peak.measured() as large:
        big = torch.ones(40 * 2**20)  # 160 MB
        del big
    with peak.measured() as small:
        pass
    if large.own:
        assert large.megabytes is not None
        assert small.megabytes is not None
        assert large.megabytes > small.megabytes + 100
    assert large.own == small.own


def test_where_the_system_cannot_forget_it_is_the_peak_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "_reset", lambda: False)
    monkeypatch.setattr(peak, "peak_memory_mb", lambda: 7.0)
    with peak.measured() as found:
        assert found.megabytes is None
    told: tuple[float | None, bool] = (found.megabytes, found.own)
    assert told == (7.0, False)
