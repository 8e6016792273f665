"""Patches: what a method changed, kept apart from the model; on and off, merged, added, scaled, saved, exported."""

from retcon.patch.base import Base, WeightHash, describe_base
from retcon.patch.entries import Dense, Entry, LowRank, combine
from retcon.patch.history import Step
from retcon.patch.live import Attached, active, hooked, top
from retcon.patch.lora import LoraExport
from retcon.patch.patch import Patch

__all__ = [
    "Attached",
    "Base",
    "Dense",
    "Entry",
    "LoraExport",
    "LowRank",
    "Patch",
    "Step",
    "WeightHash",
    "active",
    "combine",
    "describe_base",
    "hooked",
    "top",
]
