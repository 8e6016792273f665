"""What the unedited model writes when it is asked for a refusal, and what it has written before.

A draft is kept under a hash of all that decides it: the weights, the patches that are on, the whole prompt (guide,
examples and question), the seed of the draw and its settings. So a run that was stopped loses one round of drafts, and
another editor on the same questions has none to write. Drafts may hold the answer: what is kept can be read only with
the prompt at hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from retcon import forward, storage, tokens
from retcon.caches import Sealed, Store
from retcon.forget.privacy import secret
from retcon.lm import LM
from retcon.patch import active

__all__ = ["Draft", "drafts", "kept_drafts"]

TEMPERATURE, TOP_P = 0.8, 0.95
_LABEL = "writing refusals"


@dataclass(frozen=True, slots=True)
class Draft:
    """One try."""

    prompt: tuple[int, ...]
    seed: int | None
    """Of the draw; None takes the likeliest token each time."""


def drafts(lm: LM, wanted: Sequence[Draft], *, max_new_tokens: int, store: Store | None = None) -> list[str]:
    """The text of each draft; those in the store are not written again, and new ones go into it.

    What is drawn for a draft does not depend on those beside it.
    """
    keys = {draft: _key(lm, draft, max_new_tokens) for draft in wanted}
    known = {} if store is None else store.get(keys.values())
    texts = {draft: known[key].decode() for draft, key in keys.items() if key in known}
    new = _written(lm, [draft for draft in keys if draft not in texts], max_new_tokens)
    if store is not None and new:
        store.put({keys[draft]: text.encode() for draft, text in new.items()})
    texts |= new
    return [texts[draft] for draft in wanted]


def kept_drafts(lm: LM) -> Store:
    """The drafts of these weights on this kind of device, with the patches that are on; sealed."""
    state = storage.digest(lm.fingerprint(), lm.device.type, [patch.id for patch in active(lm.model)])
    return Sealed(storage.cache_dir("refusals") / f"{state[:32]}.sqlite", secret("refusals"))


def _written(lm: LM, wanted: Sequence[Draft], max_new_tokens: int) -> dict[Draft, str]:
    """What the model writes."""
    made: dict[Draft, list[int]] = {}
    plain = [draft for draft in wanted if draft.seed is None]
    if plain:
        rows = [list(draft.prompt) for draft in plain]
        found = forward.greedy(lm, rows, max_new_tokens=max_new_tokens, label=_LABEL)
        made |= dict(zip(plain, found, strict=True))
    drawn = [(draft, draft.seed) for draft in wanted if draft.seed is not None]
    if drawn:
        found = forward.sample(
            lm,
            [list(draft.prompt) for draft, _ in drawn],
            max_new_tokens=max_new_tokens,
            seed=[seed for _, seed in drawn],
            temperature=TEMPERATURE,
            top_p=TOP_P,
            label=_LABEL,
        )
        made |= dict(zip((draft for draft, _ in drawn), found, strict=True))
    return {draft: tokens.decode(lm, ids) for draft, ids in made.items()}


def _key(lm: LM, draft: Draft, max_new_tokens: int) -> bytes:
    settings = [max_new_tokens, *([] if draft.seed is None else [draft.seed, TEMPERATURE, TOP_P])]
    return bytes.fromhex(storage.digest("draft", 1, list(draft.prompt), settings))
