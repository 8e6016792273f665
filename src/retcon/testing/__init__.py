"""Help for tests, ours and those of others: tiny models and tokenizers, the contract of methods, the slow reference."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retcon.testing.contract import check_method
    from retcon.testing.tiny import FAMILIES, MOE_FAMILIES, tiny_edits, tiny_model, tiny_tokenizer

__all__ = ["FAMILIES", "MOE_FAMILIES", "check_method", "tiny_edits", "tiny_model", "tiny_tokenizer"]

_HOMES = dict.fromkeys(__all__, "retcon.testing.tiny") | {"check_method": "retcon.testing.contract"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
