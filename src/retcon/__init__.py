"""Edit what a language model knows.

>>> from retcon import Edit
>>> Edit("The capital of {} is", "France", "Rome").text
'The capital of France is'

`retcon.edit` computes a patch, `retcon.forget` one that makes the model refuse, `with patch.on(model):` runs the edited
model, `retcon.evaluate` says what it did, `retcon.evaluate_forgetting` what was forgotten. The names below are the
public ones; each is imported when it is first used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retcon.api import edit, forget
    from retcon.errors import RetconError
    from retcon.evaluate import evaluate, evaluate_forgetting
    from retcon.lm import LM
    from retcon.methods import METHODS
    from retcon.patch import Patch
    from retcon.requests import Case, Edit, Forget, Probe

__all__ = [
    "LM",
    "METHODS",
    "Case",
    "Edit",
    "Forget",
    "Patch",
    "Probe",
    "RetconError",
    "__version__",
    "edit",
    "evaluate",
    "evaluate_forgetting",
    "forget",
]
__version__ = "0.1.0"

_HOMES = {
    "Case": "requests",
    "Edit": "requests",
    "Forget": "requests",
    "LM": "lm",
    "METHODS": "methods",
    "Patch": "patch",
    "Probe": "requests",
    "RetconError": "errors",
    "edit": "api",
    "evaluate": "evaluate",
    "evaluate_forgetting": "evaluate",
    "forget": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'retcon' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"retcon.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Facade(ModuleType):
    """Importing `retcon.evaluate`, the module, would bind its name over the function's; the function stays.

    So it is with `retcon.forget`.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Facade
