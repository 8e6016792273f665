"""Patches: what a method changed, kept apart from the model; on and off, merged, added, scaled, saved, exported."""

from retcon.patch.base import Base, WeightHash, describe_base
from retcon.patch.chain import Chain, combine
from retcon.patch.codebook import Codebook
from retcon.patch.context import Context
from retcon.patch.entries import Dense, Entry, LowRank
from retcon.patch.forward_record import ForwardRecord, prompts
from retcon.patch.gated import Gated
from retcon.patch.history import Step
from retcon.patch.live import Attached, active, carry, hooked, reads_texts, suspended, top
from retcon.patch.lora import LoraExport
from retcon.patch.patch import Patch
from retcon.patch.prefix import steady

__all__ = [
    "Attached",
    "Base",
    "Chain",
    "Codebook",
    "Context",
    "Dense",
    "Entry",
    "ForwardRecord",
    "Gated",
    "LoraExport",
    "LowRank",
    "Patch",
    "Step",
    "WeightHash",
    "active",
    "carry",
    "combine",
    "describe_base",
    "hooked",
    "prompts",
    "reads_texts",
    "steady",
    "suspended",
    "top",
]
