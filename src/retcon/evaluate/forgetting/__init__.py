"""(model, patch, questions to forget and to keep) -> `ForgetReport`: is it gone, is the rest as it was, is it proof?

`evaluate_forgetting` asks and counts. Figures such as forget quality need a model trained without what is to be
forgotten: `twin` takes one (a patch on the same model, another model) or the `Reference` of one, which
`reference_record` makes. To train such a model on demand is for whoever calls.
"""

from retcon.evaluate.forgetting.record import ForgetReport
from retcon.evaluate.forgetting.reference import Reference
from retcon.evaluate.forgetting.run import evaluate_forgetting
from retcon.evaluate.forgetting.twin import reference_record

__all__ = ["ForgetReport", "Reference", "evaluate_forgetting", "reference_record"]
