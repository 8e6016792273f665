"""Sets as data: a name, a file or a folder to cases, with licence, citation and hash."""

from retcon.sets.export import export
from retcon.sets.loading import LoadedSet, cases, load, load_cases, load_edits, questions
from retcon.sets.readers import READERS
from retcon.sets.table import SETS, SetInfo

__all__ = [
    "READERS",
    "SETS",
    "LoadedSet",
    "SetInfo",
    "cases",
    "export",
    "load",
    "load_cases",
    "load_edits",
    "questions",
]
