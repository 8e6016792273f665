"""What is freed goes back to the system, and the peak only grows."""

import os
import sys

import pytest
import torch

from retcon import memory


def _resident_mb() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_freed_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors, every second one kept, so that the allocator keeps the holes between them."""
    monkeypatch.setattr(memory, "_EVERY", 0.0)
    held = [torch.zeros(25_000) for _ in range(2000)]  # 0.1 MB each
    held = held[::2]
    memory.give_back()
    before = _resident_mb()
    more = [torch.zeros(25_000) for _ in range(2000)]
    del more
    memory.give_back()
    assert _resident_mb() < before + 60
    assert len(held) == 1000


def test_the_peak_only_grows() -> None:
    first = memory.peak_memory_mb()
    block = torch.ones(8_000_000)
    second = memory.peak_memory_mb()
    del block
    assert first is None or (second is not None and memory.peak_memory_mb() == second >= first)


def test_it_does_nothing_when_it_has_just_been_called(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[bool] = []
    monkeypatch.setattr(memory, "_last", 0.0)
    monkeypatch.setattr("gc.collect", lambda: looked.append(True))
    memory.give_back()
    memory.give_back()
    assert looked == [True]


def test_the_users_own_bound_on_kernels_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    monkeypatch.delenv("LRU_CACHE_CAPACITY", raising=False)
    memory.bound_kernel_caches()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"
    assert os.environ["LRU_CACHE_CAPACITY"] == "16"
