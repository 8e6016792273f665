"""Probes that try to get forgotten answers back, one attack a file.

A model that refuses has learned to refuse; nothing shows that the answers have left its weights. Here they are looked
for: by other prompts, other tokens and other decoding, in the states inside, with the weights rounded, after a little
training, and with the patch taken off. Every attack is also made on the model before forgetting, and on the *twin*, a
model that never saw the answers, where there is one. Principles after arXiv 2506.00688: a probe tells as little of the
answer as it can, and several are used, for none sees everything.
"""

from retcon.probes.decoding import Decoding
from retcon.probes.detach import Detach
from retcon.probes.lens import Lens
from retcon.probes.mixed import Mixed
from retcon.probes.prompts import FewShot, Rephrase, Wordings
from retcon.probes.quantise import Quantise
from retcon.probes.record import Probed, ProbeResult, recovery, together
from retcon.probes.relearn import Relearn
from retcon.probes.run import probe
from retcon.probes.table import GROUPS, PROBES
from retcon.probes.tokenisation import Tokenisation

__all__ = [
    "GROUPS",
    "PROBES",
    "Decoding",
    "Detach",
    "FewShot",
    "Lens",
    "Mixed",
    "ProbeResult",
    "Probed",
    "Quantise",
    "Relearn",
    "Rephrase",
    "Tokenisation",
    "Wordings",
    "probe",
    "recovery",
    "together",
]
