"""The bench: methods × sets × numbers of edits × seeds on models, each judged on the final model, all edits in force.

    run.toml --config--> cells --plan--> edit (folding) --> judge --> a row and its cases

`rows` keeps what was measured, `work` goes on after failures and stops, `table` and `compare` read the rows. The bench
of forgetting, `retcon.forget_bench`, stands on the same rows.
"""

from retcon.bench.cells import Cell, cells
from retcon.bench.compare import Comparison, compared, rows_of
from retcon.bench.config import Config, load
from retcon.bench.runner import Bench, Plan, run
from retcon.bench.table import latest, page

__all__ = [
    "Bench",
    "Cell",
    "Comparison",
    "Config",
    "Plan",
    "cells",
    "compared",
    "latest",
    "load",
    "page",
    "rows_of",
    "run",
]
