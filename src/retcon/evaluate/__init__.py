"""(model, patch, cases) -> `Report`: what an edit achieved and what it harmed, before and after."""

from retcon.evaluate.record import Report
from retcon.evaluate.run import evaluate

__all__ = ["Report", "evaluate"]
