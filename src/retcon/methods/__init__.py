"""The methods: one file or folder each, one row each in `METHODS`."""

from collections.abc import Sequence
from typing import Any, Protocol

from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods.alphaedit import AlphaEdit, AlphaEditConfig
from retcon.methods.blue import AlphaEditBlue, MEMITBlue, PMETBlue
from retcon.methods.eamet import EAMET, EAMETConfig
from retcon.methods.ece import ECE, ECEConfig
from retcon.methods.ece_released import ECEReleased, ECEReleasedConfig
from retcon.methods.emmet import EMMET, EMMETConfig
from retcon.methods.fine_tuning import FTL, FTM, FTLConfig, FTMConfig, LocFTBF, LocFTBFConfig
from retcon.methods.grace import GRACE, GRACEConfig
from retcon.methods.ike import IKE, IKEConfig
from retcon.methods.lora import LoRA, LoRAConfig
from retcon.methods.memit import MEMIT, MEMITConfig
from retcon.methods.pmet import PMET, PMETConfig
from retcon.methods.rome import ROME, ROMEConfig
from retcon.methods.scr import SCR, SCRConfig
from retcon.methods.ultraedit import UltraEdit, UltraEditConfig
from retcon.methods.unlearning.config import UnlearningConfig
from retcon.methods.unlearning.methods import (
    CEU,
    DPO,
    GA,
    IDK,
    KL,
    NPO,
    RMU,
    UNDIAL,
    WGA,
    GradDiff,
    SatImp,
    SimNPO,
)
from retcon.methods.wise import WISE, WISEConfig
from retcon.patch import Patch
from retcon.requests import Edit
from retcon.targets import Store

__all__ = [
    "CEU",
    "DPO",
    "EAMET",
    "ECE",
    "EMMET",
    "FTL",
    "FTM",
    "GA",
    "GRACE",
    "IDK",
    "IKE",
    "KL",
    "MEMIT",
    "METHODS",
    "NPO",
    "PMET",
    "RMU",
    "ROME",
    "SCR",
    "UNDIAL",
    "WGA",
    "WISE",
    "AlphaEdit",
    "AlphaEditBlue",
    "AlphaEditConfig",
    "EAMETConfig",
    "ECEConfig",
    "ECEReleased",
    "ECEReleasedConfig",
    "EMMETConfig",
    "FTLConfig",
    "FTMConfig",
    "GRACEConfig",
    "GradDiff",
    "IKEConfig",
    "LoRA",
    "LoRAConfig",
    "LocFTBF",
    "LocFTBFConfig",
    "MEMITBlue",
    "MEMITConfig",
    "Method",
    "PMETBlue",
    "PMETConfig",
    "ROMEConfig",
    "SCRConfig",
    "SatImp",
    "SimNPO",
    "UltraEdit",
    "UltraEditConfig",
    "UnlearningConfig",
    "WISEConfig",
    "method",
]


class Method(Protocol):
    """What every method is: a configuration, and `edit`, which returns a patch and leaves the model as it was."""

    name: str
    """The method's id."""
    Config: Any
    """Its configuration: a frozen dataclass with a docstring for each field."""
    order_matters: bool
    """Whether the order of a batch's facts changes the result. Such a batch is the fold over its facts, unless the
    method has `folds = False`: it then looks at earlier facts but writes all together."""
    uses_retain: bool
    """Whether texts to keep make a difference to it."""
    config: Any
    """The options of this one."""

    def __init__(self, config: Any = None) -> None: ...

    def edit(
        self,
        lm: LM,
        edits: Sequence[Edit],
        *,
        retain: Sequence[str] = (),
        state: Patch | None = None,
        stores: Sequence[Store] = (),
    ) -> Patch:
        """The patch that makes all edits; with `state`, on top of that patch, which the result then contains."""


METHODS: dict[str, type[Method]] = {
    "memit": MEMIT,
    "memit-blue": MEMITBlue,
    "rome": ROME,
    "emmet": EMMET,
    "alphaedit": AlphaEdit,
    "alphaedit-blue": AlphaEditBlue,
    "pmet": PMET,
    "pmet-blue": PMETBlue,
    "ece": ECE,
    "ece-released": ECEReleased,
    "eamet": EAMET,
    "ultraedit": UltraEdit,
    "ft-l": FTL,
    "ft-m": FTM,
    "locft-bf": LocFTBF,
    "lora": LoRA,
    "grace": GRACE,
    "wise": WISE,
    "ga": GA,
    "graddiff": GradDiff,
    "kl": KL,
    "idk": IDK,
    "dpo": DPO,
    "npo": NPO,
    "simnpo": SimNPO,
    "rmu": RMU,
    "undial": UNDIAL,
    "wga": WGA,
    "satimp": SatImp,
    "ceu": CEU,
    "ike": IKE,
    "scr": SCR,
}
"""All methods by id."""


def method(name: str, **config: Any) -> Method:
    """The method of that id, configured.

    Raises:
        RetconError: there is no such method, or it has no such option.
    """
    if name not in METHODS:
        raise RetconError(f"there is no method {name!r}; use one of {', '.join(METHODS)}")
    kind = METHODS[name]
    known = kind.Config.__dataclass_fields__
    for key in config:
        if key not in known:
            raise RetconError(f"{name} has no option {key!r}; it has {', '.join(known)}")
    return kind(kind.Config(**config))
