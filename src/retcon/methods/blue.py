"""BLUE: only the first and the last layer of the window, each with targets of its own (arXiv 2502.03748)."""

from retcon.lm import LM
from retcon.methods.alphaedit import AlphaEdit
from retcon.methods.locate_and_edit import LocateAndEdit
from retcon.methods.memit import MEMIT
from retcon.methods.pmet import PMET

__all__ = ["AlphaEditBlue", "Boundary", "MEMITBlue", "PMETBlue"]


class Boundary(LocateAndEdit):
    """BLUE: the boundary layers of a method's window, each written in full to targets sought at that layer.

    For l in (first, last): seek z_l at layer l on the model as edited so far, R_l = Z_l - H_l, undivided; solve as the
    host does, write, go on. The second search is short where the first write already reaches the answer.

    Paper: BLUE, NeurIPS 2025, arXiv 2502.03748.
    """

    every_layer = True

    def layers(self, lm: LM) -> tuple[int, ...]:
        """The first and the last of the host's layers."""
        layers = super().layers(lm)
        return layers if len(layers) < 2 else (layers[0], layers[-1])


class MEMITBlue(Boundary, MEMIT):
    """BLUE on MEMIT: the first and the last layer only, each written in full to targets of its own."""

    name = "memit-blue"


class PMETBlue(Boundary, PMET):
    """BLUE on PMET: the first and the last layer only, each written in full to targets of its own."""

    name = "pmet-blue"


class AlphaEditBlue(Boundary, AlphaEdit):
    """BLUE on AlphaEdit: the first and the last layer only, each written in full to targets of its own."""

    name = "alphaedit-blue"
