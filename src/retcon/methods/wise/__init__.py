"""WISE: side memories beside one layer, which prompts enter whose states they move far enough (arXiv 2405.14768).

`config` has the options, `method` has `edit`; `run` takes the edits in one after the other: `train` writes each into
the open memory, on what `rows` reads once, and `shards` closes and merges memories (no model needed).
"""

from retcon.methods.wise.method import WISE, WISEConfig, without

__all__ = ["WISE", "WISEConfig", "without"]
