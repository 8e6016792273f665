"""What to change (`Edit`, `Forget`) and how a change is judged (`Case`, `Probe`); JSONL and CSV files of them."""

from retcon.requests.conflicts import Conflicts, check_conflicts
from retcon.requests.files import Loaded, load_cases, load_edits
from retcon.requests.nouns import Case, Edit, Forget, Probe
from retcon.requests.records import from_dict, to_dict

__all__ = [
    "Case",
    "Conflicts",
    "Edit",
    "Forget",
    "Loaded",
    "Probe",
    "check_conflicts",
    "from_dict",
    "load_cases",
    "load_edits",
    "to_dict",
]
