"""Reports for people: of edits here, of forgetting in `retcon.report.forgetting`, of a benchmark in `.bench`.

A terminal table, Markdown, one HTML page that needs nothing else, and the model card of a patch.
"""

from retcon.report.cards import card
from retcon.report.edits import html, markdown, table, write

__all__ = ["card", "html", "markdown", "table", "write"]
