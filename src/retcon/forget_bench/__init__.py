"""The bench of forgetting, where the truth is known: what is forgotten was taught, and a twin was not taught it.

    corpus --split--> forget, retain, holdout
    base --teach forget + retain--> the model      base --teach retain--> its twin
    the model --a method--> a patch --judged against the twin--> a row

`contracts` invents a corpus, `corpus` cuts it, `teach` makes the model know it, `cells` names the ways to forget, `run`
measures them, `rows` keeps what was measured. `known` finds what a model knows without being taught.
"""

from retcon.forget_bench.cells import Cell, cells
from retcon.forget_bench.contracts import contracts
from retcon.forget_bench.corpus import Split, generated, split, split_files, with_general, write_split
from retcon.forget_bench.known import known, split_known
from retcon.forget_bench.rows import table
from retcon.forget_bench.run import Bench
from retcon.forget_bench.teach import Teaching, memorised, merged, teach

__all__ = [
    "Bench",
    "Cell",
    "Split",
    "Teaching",
    "cells",
    "contracts",
    "generated",
    "known",
    "memorised",
    "merged",
    "split",
    "split_files",
    "split_known",
    "table",
    "teach",
    "with_general",
    "write_split",
]
