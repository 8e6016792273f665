"""Reports for people: of edits here, of forgetting in `retcon.report.forgetting`.

A terminal table, Markdown, and one HTML page that needs nothing else.
"""

from retcon.report.edits import html, markdown, table, write

__all__ = ["html", "markdown", "table", "write"]
