"""What to change (`Edit`, `Forget`) and how a change is judged (`Case`, `ForgetCase`, `Probe`); files of them."""

from retcon.requests.conflicts import Conflicts, check_conflicts
from retcon.requests.files import Loaded, load_cases, load_edits, load_forget, load_retain, load_targets
from retcon.requests.forgetting import (
    GivenTarget,
    check_answer,
    check_forgets,
    forget_case_from_dict,
    forget_case_to_dict,
    forget_from_dict,
    left_to_keep,
    retained,
)
from retcon.requests.holes import filled, masked
from retcon.requests.nouns import Case, Edit, Forget, ForgetCase, Probe, literal, split_prompt
from retcon.requests.records import case_from_dict, case_to_dict, from_dict, text_of, to_dict
from retcon.requests.ties import tied

__all__ = [
    "Case",
    "Conflicts",
    "Edit",
    "Forget",
    "ForgetCase",
    "GivenTarget",
    "Loaded",
    "Probe",
    "case_from_dict",
    "case_to_dict",
    "check_answer",
    "check_conflicts",
    "check_forgets",
    "filled",
    "forget_case_from_dict",
    "forget_case_to_dict",
    "forget_from_dict",
    "from_dict",
    "left_to_keep",
    "literal",
    "load_cases",
    "load_edits",
    "load_forget",
    "load_retain",
    "load_targets",
    "masked",
    "retained",
    "split_prompt",
    "text_of",
    "tied",
    "to_dict",
]
