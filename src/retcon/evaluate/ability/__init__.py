"""What the model can do besides facts, before and after: small multiple-choice tasks, or lm-evaluation-harness."""

from retcon.evaluate.ability.asking import Asking, Outcome, details, figures, intervals
from retcon.evaluate.ability.tasks import TASKS, Item, load

__all__ = ["TASKS", "Asking", "Item", "Outcome", "details", "figures", "intervals", "load"]
