"""Running a model over many rows: aligned batches, cached prefixes, logits only where they are read.

Only public arguments of the model's `forward` are used: ids, a two-dimensional mask, position ids, a cache. Rows of a
batch are aligned at one column, the *split*: what stands left of it is padded on the left, what stands right of it on
the right. So one cached prefix serves all that follows, and index differences are true distances (sliding windows,
ALiBi).
"""

from retcon.forward.decoding import end_ids, greedy, sample
from retcon.forward.probes import cache_holds, entry_holds
from retcon.forward.rows import Aligned, align, batches
from retcon.forward.running import call, entered_at, expanded, filled, gathered_head, with_placeholders
from retcon.forward.scoring import Scored, score

__all__ = [
    "Aligned",
    "Scored",
    "align",
    "batches",
    "cache_holds",
    "call",
    "end_ids",
    "entered_at",
    "entry_holds",
    "expanded",
    "filled",
    "gathered_head",
    "greedy",
    "sample",
    "score",
    "with_placeholders",
]
