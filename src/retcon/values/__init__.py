"""The target search: which hidden state at the subject would make the model say the new answer.

One copy serves all methods. For each fact a shift `delta` of the state at the subject's last token is sought that
lowers

    J(delta) = NLL(target | prompt under each template) + kl * KL(p_delta || p_clean) + weight_decay * |delta| / |h0|^2

(ROME, arXiv 2202.05262; MEMIT, arXiv 2210.07229), with the model frozen: by Adam as published, or, a third of the steps
and a shorter shift, by steps of a set length along the gradient. The state is a block's output, what its MLP adds to
it, or what its attention and its MLP add, each with a shift of its own (PMET, arXiv 2308.08742). What makes it fast,
and changes no result:

- all facts of a batch run together, each with its own shift, stop and clamp;
- only the blocks above the site run, and only the tokens from the site on, against cached keys and values of the rest;
- logits are taken only where a target token or the essence is read;
- a fact that has met its stop leaves the batch.

`rows` makes a fact's sequences, `clean` runs them once as they are and keeps what never changes in `chunks`, `loss`
gives J and its gradient at any shift, `descent` goes down (on one shift for facts that `ties` join), and `paths` finds
out, once a model, how much of a forward can be saved. `retcon.testing.reference` is the plain, slow form of the same
search, and the tests hold the two together.
"""

from retcon.values.config import Found, FromBase, Path, Penalty, SearchConfig, Site, Step
from retcon.values.descent import search
from retcon.values.paths import fast_path
from retcon.values.rows import Row, rows_of

__all__ = [
    "Found",
    "FromBase",
    "Path",
    "Penalty",
    "Row",
    "SearchConfig",
    "Site",
    "Step",
    "fast_path",
    "rows_of",
    "search",
]
