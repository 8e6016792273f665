"""(model, patch, cases) -> `Report`: what an edit achieved and harmed; `ForgetReport`: what was forgotten."""

from retcon.evaluate.forgetting import ForgetReport, Reference, evaluate_forgetting, reference_record
from retcon.evaluate.record import Report
from retcon.evaluate.run import evaluate

__all__ = ["ForgetReport", "Reference", "Report", "evaluate", "evaluate_forgetting", "reference_record"]
