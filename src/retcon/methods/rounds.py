"""Between the rounds of a batch, and after: what is left to write, what to take up again, what to remember and tell."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from retcon.errors import RetconWarning
from retcon.lm import LM
from retcon.methods.family import SAME_KEY, Site
from retcon.sweep import Reading
from retcon.values import Found

__all__ = ["remembered", "residuals", "shared_keys", "taken_up", "told"]

_ROWS = 1024
"""Facts whose keys are held against all others at once."""


def residuals(lm: LM, found: Found, reading: Reading, site: Site) -> Float[Tensor, "N d"]:
    """What is still to be written at the projection's output, from the present state of the partly edited model."""
    if site == "layer_out":
        gain = lm.arch.write_gain
        assert gain is not None
        return (found.target.double() - reading.states) / gain
    wanted = found.target[:, 1] if site == "attn_and_mlp_out" else found.target
    return wanted.double() - reading.outputs


def remembered(old: Tensor | None, new: Tensor) -> Tensor:
    """Keys to keep, as at most d_k columns with the same sum of outer products."""
    both = new if old is None else torch.cat([old.double(), new.double().cpu()], 1)
    if both.shape[1] <= both.shape[0]:
        return both.float()
    lengths, directions = torch.linalg.eigh(both.double() @ both.double().T)
    columns: Tensor = directions * lengths.clamp_min(0).sqrt()
    return columns.float()


def shared_keys(keys: Float[Tensor, "N d_k"], residuals: Float[Tensor, "N d"]) -> int:
    """Pairs of facts with the same key and different residuals: no weight can meet both. Warns where there are any."""
    unit, count = torch.nn.functional.normalize(keys.float(), dim=1), 0
    for start in range(0, len(unit), _ROWS):
        close = torch.triu(unit[start : start + _ROWS] @ unit.T > SAME_KEY, start + 1)
        one, other = (close.nonzero() + close.new_tensor([start, 0], dtype=torch.long)).T
        apart = (residuals[one] - residuals[other]).norm(dim=1) > 0.1 * residuals[one].norm(dim=1)
        count += int(apart.sum())
    if count:
        warnings.warn(
            f"{count} pairs of facts share a key and want different answers; each pair will end between its two",
            RetconWarning,
            stacklevel=4,
        )
    return count


def told(
    before: Sequence[dict[str, Any]], found: Found, facts: Sequence[int], left: Float[Tensor, "N d"]
) -> list[dict[str, Any]]:
    """One record a fact: how its search ended, and the share of its residual that was not written.

    Args:
        before: the records of the rounds before; empty in the first.
        found: the targets of the facts that this round sought.
        facts: which those are.
        left: what is still to be written of each fact, at the last layer.
    """
    length = found.delta.double().flatten(1).norm(dim=1)
    rest = left[list(facts)].norm(dim=1) / length.clamp_min(1e-12)
    columns = {
        "evaluations": found.evaluations.tolist(),
        "loss": [round(value, 5) for value in found.loss.tolist()],
        "probability": [round(value, 5) for value in found.probability.tolist()],
        "delta_norm": [round(value, 4) for value in length.tolist()],
        "base_norm": [round(value, 4) for value in found.base.flatten(1).norm(dim=1).tolist()],
        "left": [round(value, 4) for value in rest.tolist()],
    }
    new: list[dict[str, Any]] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if not before:
        return [{"rounds": 1, **fact} for fact in new]
    result = list(before)
    for i, now in zip(facts, new, strict=True):
        old = result[i]
        added = {name: old[name] + now[name] for name in ("evaluations", "delta_norm")}
        result[i] = {**now, **added, "rounds": old["rounds"] + 1}
    return result


def taken_up(bare: Sequence[float], least: Sequence[float], bound: float, most: int) -> list[int]:
    """Which facts a later round takes up, in order.

    Args:
        bare: log-probability of each fact's least likely target token under the bare prompt.
        least: the same in any of its rows.
        bound: from which on a fact needs nothing more.
        most: facts taken up. Where more need it, those that are not sure under the bare prompt come first, the least
            sure of each kind before others.
    """
    unsure = [i for i, value in enumerate(least) if value < bound]
    unsure.sort(key=lambda i: (bare[i] >= bound, bare[i] if bare[i] < bound else least[i]))
    return sorted(unsure[:most])
