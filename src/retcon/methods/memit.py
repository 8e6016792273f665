"""MEMIT: many facts in one ridge regression a layer, spread over several layers (Meng et al., arXiv 2210.07229)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retcon import solve
from retcon.lm import LM
from retcon.methods.locate_and_edit import LocateAndEditConfig, Problem, edit_layers, metric
from retcon.patch import Patch
from retcon.requests import Edit
from retcon.targets import Store

__all__ = ["MEMIT", "MEMITConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MEMITConfig(LocateAndEditConfig):
    """Options of MEMIT."""

    ridge: float = 500.0
    """lambda: the number of ordinary keys that C stands for; more protects what is not edited, less meets the edits."""


class MEMIT:
    """MEMIT: many facts at once, spread over several layers; goes on in batches by remembering earlier keys.

    At each layer the least-squares change for all facts, with the pull of lambda ordinary keys:

        Delta = share * R K^T (lambda C + K_p K_p^T + K K^T)^{-1},   R = (Z - H) at the last edited layer

    K_p are the keys of earlier batches (the sequential form), which travel in the patch. Keys are remembered as they
    were before their own batch was written; the released sequential code takes them after it.

    Paper: Meng, Sharma, Andonian, Belinkov, Bau, Mass-Editing Memory in a Transformer, ICLR 2023, arXiv 2210.07229.
    """

    Config: Any = MEMITConfig
    name: str = "memit"
    order_matters: bool = False

    def __init__(self, config: MEMITConfig | None = None) -> None:
        self.config = config or MEMITConfig()

    def edit(
        self,
        lm: LM,
        edits: Sequence[Edit],
        *,
        retain: Sequence[str] = (),
        state: Patch | None = None,
        stores: Sequence[Store] = (),
    ) -> Patch:
        """Edit all facts in one batch; with `state`, on top of that patch, which the result then contains.

        Args:
            lm: the model; it is left as it was.
            edits: the facts; each needs a subject.
            retain: not used by this method.
            state: the patch to go on from.
            stores: where found targets are looked up and kept.

        Raises:
            RequestError: an edit has no subject.
            RetconError: there is no edit, or the layers are not there.
        """

        def rule(problem: Problem) -> solve.Factors:
            return solve.ridge(problem.keys, problem.residuals, metric(problem, self.config.ridge))

        return edit_layers(lm, edits, self.config, rule, method=self.name, state=state, remember=True, stores=stores)
