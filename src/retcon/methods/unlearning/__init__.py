"""Unlearning by gradient descent on a loss: many objectives over one trainer.

`objectives` has the losses (pure functions), `methods` one method for each over the common `base`, `config` their
options; `run` makes the steps, on what `batches` draws, and `journal` lets a stopped run go on.
"""
