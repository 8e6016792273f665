"""Which layers to edit in a model that nobody has tuned: averages over facts, and a simple rule.

The rule: of all windows of `width` neighbouring layers, the one with the most evidence. By tracing, that is the mean
indirect effect of putting the outputs of the window's MLPs back, all together, at the subject's last token (as ROME and
MEMIT chose their layers, arXiv 2202.05262 and 2210.07229); by attribution, the mean mass of the window's neurons there.
Layer 0 is left out: its MLP makes up which word a token is, which the noise has spoilt, and would win by that alone.
The rule says where a fact is read out, which is not always where it is best edited (arXiv 2301.04213): take it as a
first guess and measure.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from retcon import forward
from retcon.errors import RequestError, RetconError, RetconWarning
from retcon.lm import LM
from retcon.locate.attribution import How, attribute
from retcon.locate.facts import facts_of
from retcon.locate.tracing import Tracing, trace
from retcon.requests import Edit

__all__ = ["By", "Suggestion", "best_window", "suggest"]

_LOWEST = 1
"""The lowest layer that a window may have."""

By = Literal["tracing", "gradient", "integrated"]

_ENOUGH = 10
"""Known facts from which on a suggestion is made without a warning."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Layers to edit, and why."""

    layers: tuple[int, ...]
    """The window that the rule chose."""
    by: By
    """The evidence it was chosen by."""
    evidence: dict[str, tuple[float, ...]]
    """Kind of evidence -> its mean over the facts, layer by layer. Tracing: the effect, in probability, of the window
    centred there, cut off at the model's ends; attribution: the layer's mass in nats."""
    windows: dict[str, tuple[int, ...]]
    """Kind of evidence -> the window it alone would choose."""
    share: float
    """Tracing: the part of the lost probability that the window brings back; attribution: its part of all mass."""
    used: int
    """Facts averaged over."""
    given: int
    """Facts given; those whose answer the model does not give are left out, unless that leaves none."""
    tracing: Tracing | None
    """How facts were traced, if they were."""


def suggest(
    lm: LM,
    edits: Sequence[Edit],
    *,
    by: By = "tracing",
    width: int = 5,
    tracing: Tracing | None = None,
    steps: int = 20,
) -> Suggestion:
    """Choose `width` neighbouring layers to edit by the facts of `edits`.

    Attribution is cheap and is always shown; facts are traced, at the subject's last token only, where the choice is
    by tracing.

    Args:
        lm: the model.
        edits: facts that the model knows, some tens of them; each needs a subject.
        by: the evidence that decides.
        width: layers in the window.
        tracing: options of tracing, MLPs by default; its window is `width`, its answer the attribution's too.
        steps: points of the integral, for `integrated`.

    Raises:
        RequestError: an edit has no subject, or its answer no token.
        RetconError: the window is wider than the model, or whole blocks are to be traced.
    """
    n_layers, options = lm.arch.n_layers, replace(tracing or Tracing(kind="mlp"), window=width)
    if by == "tracing" and options.kind == "hidden":
        raise RetconError("a block's output holds what all blocks below it wrote; layers are suggested by mlp or attn")
    if not 1 <= width <= n_layers - _LOWEST:
        raise RetconError(f"a window of {width} layers does not fit; this model has {n_layers - _LOWEST} above layer 0")
    if not edits:
        raise RequestError("there is no fact to choose layers by; give some tens of facts that the model knows")
    known = [edit for edit, knows in zip(edits, _known(lm, edits, options), strict=True) if knows]
    if len(known) < _ENOUGH:
        taken = "all are taken all the same, which says little" if not known else "the choice rests on these alone"
        warnings.warn(
            f"the model knows {len(known)} of the {len(edits)} facts, and {taken}; give some tens that it knows",
            RetconWarning,
            stacklevel=2,
        )
    known = known or list(edits)
    evidence: dict[str, tuple[float, ...]] = {}
    windows: dict[str, tuple[int, ...]] = {}
    whole = 0.0
    if by == "tracing":
        traces = trace(lm, known, options, where="subject")
        effects = torch.stack([one.effects[:, 0] for one in traces]).mean(0).tolist()
        whole = sum(one.high - one.low for one in traces) / len(traces)
        evidence["tracing"] = tuple(effects)
        centres = effects[width // 2 :][: n_layers - width + 1]  # of windows that are not cut off, by where they begin
        (start,) = best_window(centres, 1, lowest=_LOWEST)
        windows["tracing"] = tuple(range(start, start + width))
    how: How = "integrated" if by == "integrated" else "gradient"
    found = attribute(lm, known, range(n_layers), answer=options.answer, how=how, steps=steps)
    mass = found.mass().double().mean(0).tolist()
    evidence[how], windows[how] = tuple(mass), best_window(mass, width, lowest=_LOWEST)
    if by == "tracing":
        share, traced = evidence[by][windows[by][width // 2]] / (whole or 1.0), options
    else:
        share, traced = sum(mass[layer] for layer in windows[by]) / (sum(mass) or 1.0), None
    return Suggestion(windows[by], by, evidence, windows, share, len(known), len(edits), traced)


def best_window(values: Sequence[float], width: int, lowest: int = 0) -> tuple[int, ...]:
    """The `width` neighbouring indices, from `lowest` on, with the largest sum; of equal ones the lowest.

    >>> best_window([0.0, 1.0, 3.0, 2.0, 0.0], 2)
    (2, 3)
    """
    start = max(range(lowest, len(values) - width + 1), key=lambda i: (sum(values[i : i + width]), -i))
    return tuple(range(start, start + width))


def _known(lm: LM, edits: Sequence[Edit], tracing: Tracing) -> list[bool]:
    """Whether the model says the answer: its likeliest next token is the answer's first."""
    facts = facts_of(lm, edits, tracing.answer)
    said = forward.greedy(lm, [fact.ids for fact in facts], max_new_tokens=1, stop_at_eos=False, label="known facts")
    return [ids[0] == fact.answer[0] for ids, fact in zip(said, facts, strict=True)]
