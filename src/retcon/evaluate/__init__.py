"""(model, patch, cases) -> `Report`: what an edit achieved and harmed; `ForgetReport`: what was forgotten.

`retention` follows edits that come in batches, `compare` tests two reports against each other.
"""

from retcon.evaluate.comparing import Comparison, compare
from retcon.evaluate.curve import Curve, retention, retention_step
from retcon.evaluate.forgetting import ForgetReport, Reference, evaluate_forgetting, reference_record
from retcon.evaluate.record import Report
from retcon.evaluate.run import evaluate

__all__ = [
    "Comparison",
    "Curve",
    "ForgetReport",
    "Reference",
    "Report",
    "compare",
    "evaluate",
    "evaluate_forgetting",
    "reference_record",
    "retention",
    "retention_step",
]
