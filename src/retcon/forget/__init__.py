"""Editing as unlearning: questions whose answers must go become edits, and any editor an unlearner.

The answers are replaced by refusals (Li et al., Editing as Unlearning, arXiv 2505.19855): `subjects` finds where a
question's key is read, `targets` what is said instead, `merging` which questions share an edit, `mapping` makes the
edits, `privacy` keeps questions and answers out of what is written, and `plan` puts it together. `asking` is the rule
how a question is put, here and wherever it is judged. What the model writes itself: `wording` asks for it, `drafts`
remembers it, `refusals` takes what passes the `checks`, `kept` writes and reads `targets.jsonl`.
"""

from retcon.forget.mapping import edits_of
from retcon.forget.plan import Plan, Recipe, planned, told
from retcon.forget.subjects import Subject, find_subjects
from retcon.forget.target import Target
from retcon.forget.targets import FAMILIES

__all__ = ["FAMILIES", "Plan", "Recipe", "Subject", "Target", "edits_of", "find_subjects", "planned", "told"]
