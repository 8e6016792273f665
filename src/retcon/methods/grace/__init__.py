"""GRACE: a codebook beside one layer, whose keys are prompts and whose values are outputs (arXiv 2211.11031).

`method` has the options and `edit`; `run` takes the edits in one after the other: `state` decides what becomes of each
(no model needed), `values` seeks what the layer is to give, on the rows that `rows` prepares.
"""

from retcon.methods.grace.method import GRACE, GRACEConfig, without

__all__ = ["GRACE", "GRACEConfig", "without"]
