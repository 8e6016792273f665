"""How a patch names what it makes a model forget: by salted ids.

Questions and their answers stay out of everything that is written: an edit's records hold an id and the refusal. Ids
are HMAC-SHA-256 under a salt that never leaves this machine's cache folder, so that nobody who gets a patch can try
guesses on it, while the same run on the same machine gives the same ids and can go on after a stop.
"""

from retcon.requests import Forget
from retcon.storage import salted

__all__ = ["HIDDEN", "HIDDEN_ANSWERS", "id_of", "secret"]

HIDDEN = ("prompt", "subject", "old")
"""Fields of an edit that its records leave out."""
HIDDEN_ANSWERS = ("old",)
"""Those left out where questions may be kept."""


def id_of(item: Forget) -> str:
    """The salted id of a question and its answer."""
    return salted(item.question, item.answer)


def secret(name: str) -> bytes:
    """What seals a cache of this machine, 32 bytes; another for each name."""
    return (salted(name, "left") + salted(name, "right")).encode()
