"""What kind of forgetting it was, in words.

`denies access`: the patch is no change of weights, and can be taken off. `forgets nothing`: the answers come out when
they are plainly asked for. `erased`: no probe brings out more than of a model that never saw the answers. `suppresses`:
anything else.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retcon.probes.record import Probed, ProbeResult

__all__ = ["ACCESS_CONTROL", "CORE", "LEVEL", "judged", "over_twin"]

LEVEL = 0.05
"""A difference of shares that counts as none."""
LEAST_KNOWN = 10
"""Questions below which too little was seen to say that nothing is left."""
BACK = 0.1
"""The recovery from which on an attack is named."""

CORE = ("relearn_same", "relearn_disjoint", "quantise", "tokenisation", "lens", "decoding")
"""Probes without whose figures nothing is called erased; beside them one of prompts."""

ACCESS_CONTROL = (
    "GRACE, WISE, IKE and in-context unlearning are access control. The original weights still hold the information; "
    "whoever holds the weights can remove the patch. Use them to test behaviour, not to comply with an erasure duty."
)


def judged(probed: "Probed") -> tuple[str, str]:
    """The kind, and sentences that say why."""
    if not probed.known:
        return "unknown", "Nothing can be said: the model before forgetting answers none of these questions right."
    if probed.unlearned is not None and probed.unlearned > 1 - LEVEL:
        share = f"{probed.unlearned:.0%} of the answers come out when they are plainly asked for"
        return "forgets nothing", f"Forgets nothing: {share}." + ("" if probed.folds else f" {ACCESS_CONTROL}")
    if not probed.folds:
        return "denies access", f"Denies access: {ACCESS_CONTROL}{_came_back(probed)}"
    return _weighed(probed)


def _weighed(probed: "Probed") -> tuple[str, str]:
    """Of a change of weights: suppressed or erased."""
    measured = [result for result in probed.results if not result.failed]
    names = {result.name for result in measured}
    missing = [name for name in CORE if name not in names]
    if not any("prompt" in result.setting for result in measured):
        missing.append("prompts")
    start = f"Suppresses: {probed.known} answers that the model knew are given less often, "
    if not probed.has_twin:
        why = "and without a model that never saw them (a twin) nothing can show that they are gone"
        return "suppresses", f"{start}{why}.{_came_back(probed)}"
    over = [result for result in measured if (over_twin(result) or 0.0) > LEVEL]
    if over or (probed.unlearned or 0.0) - (probed.twin or 0.0) > LEVEL:
        named = ", ".join(dict.fromkeys(label(result) for result in over)) or "the plain question"
        why = f"but more of them can be brought out than of a model that never saw them, by: {named}"
        return "suppresses", f"{start}{why}.{_came_back(probed)}"
    if missing or probed.known < LEAST_KNOWN:
        few = [f"only {probed.known} answers were known"] if probed.known < LEAST_KNOWN else []
        without = [f"there are no figures for {', '.join(missing)}"] if missing else []
        why = f"and that they are erased cannot be claimed: {' and '.join(few + without)}"
        return "suppresses", f"{start}{why}.{_came_back(probed)}"
    what = f"no probe brings out more of the {probed.known} known answers than of a model that never saw them"
    return "erased", f"Erased, as far as these probes see: {what} (differences up to {LEVEL:.0%} count as none)."


def over_twin(result: "ProbeResult") -> float | None:
    """By how much an attack brings out more than of the twin; of a curve, the difference of the areas under it."""
    areas = result.detail.get("area")
    if areas and "twin" in areas:
        return float(areas["unlearned"] - areas["twin"])
    if result.attacked is None or result.attacked_twin is None:
        return None
    return result.attacked - result.attacked_twin


def label(result: "ProbeResult") -> str:
    """A row's name and the settings that tell it from others of the probe."""
    telling = ("bits", "order", "lr", "where", *(("trained",) if result.name == "relearn_benign" else ()))
    shown = [f"{key} {value}" for key, value in result.setting.items() if key in telling]
    return " ".join([result.name, *([f"({', '.join(shown)})"] if shown else [])])


def _came_back(probed: "Probed") -> str:
    """What got answers back, the most telling first."""
    found = [result for result in probed.results if (result.recovery or 0.0) >= BACK]
    found.sort(key=lambda result: -(result.recovery or 0.0))
    if not found:
        return ""
    named = ", ".join(f"{label(result)} {result.recovery:.0%}" for result in found)
    return f" What brought answers back, and the share of the forgetting that it undid: {named}."
