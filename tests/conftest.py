"""What the tests of the engine share: one tiny model of each family, and a cache folder of the test's own."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from retcon.lm import LM
from retcon.testing import tiny_model, tiny_tokenizer

# Tests are imported without a package, so what they share comes to them as fixtures.


@pytest.fixture(scope="session")
def tiny_lm() -> Callable[..., LM]:
    """`tiny_lm(family, dtype=...)`: made once a session; tests leave it as they found it."""

    @cache
    def made(family: str, dtype: torch.dtype = torch.float32) -> LM:
        return LM.wrap(tiny_model(family, dtype=dtype), tiny_tokenizer("fast"))

    return made


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that takes the place of `~/.cache/retcon`."""
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _traces(model: nn.Module) -> tuple[object, ...]:
    """Hooks, overridden forwards, modes and gradient flags: all that a run may leave behind in a model."""
    modules = list(model.modules())
    return (
        [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in modules],
        ["forward" in m.__dict__ for m in modules],
        [m.training for m in modules],
        [(p.requires_grad, p.grad is None, p._version) for p in model.parameters()],
    )


@pytest.fixture
def traces() -> Callable[[nn.Module], tuple[object, ...]]:
    """`traces(model)`: compare before and after."""
    return _traces
