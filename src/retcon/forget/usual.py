"""What forgetting does where the user asks for nothing else: the recipe that was measured to be the best."""

from collections.abc import Mapping
from typing import Any

__all__ = ["METHOD", "TARGET", "usual"]

METHOD = "memit"
TARGET = "contextual"
_MANY = 40
"""Questions to keep from which on each counts less, so that all together count no more: a layer has only so many
directions, and forgetting needs some of them."""
_FAR: Mapping[str, Any] = {"clamp": 1.5, "steps": 24, "rounds": 1}
_CLOSELY: Mapping[str, Any] = {"ridge": 100.0, "retain_weight": 30.0, **_FAR}
_WIDELY: Mapping[str, Any] = {"threshold": 0.5, "l2": 2.0, "retain_weight": 30.0, **_FAR}
_OPTIONS: dict[str, Mapping[str, Any]] = {
    **dict.fromkeys(("memit", "memit-blue", "pmet", "pmet-blue", "ece", "ece-released", "eamet"), _CLOSELY),
    **dict.fromkeys(("alphaedit", "alphaedit-blue"), _WIDELY),
}
"""By method, options that differ from its own. What a model knows by heart is not turned by a short shift, so targets
may be sought further away than for an edit; once, as a refusal that is reached is easily written. Where texts say what
is to be left alone, ordinary text counts less, or more directions are open to write in, which makes room to leave those
texts alone."""


def usual(method: str, *, retain: int) -> Mapping[str, Any]:
    """The options that forgetting gives a method beside its defaults; those that the user names go before them.

    Args:
        method: its id.
        retain: how many questions to keep are given; without any the method's own defaults are the more careful ones.
    """
    options = _OPTIONS.get(method, {}) if retain else {}
    if retain > _MANY and "retain_weight" in options:
        return {**options, "retain_weight": options["retain_weight"] * _MANY / retain}
    return options
