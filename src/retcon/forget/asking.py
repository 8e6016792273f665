"""How a question to forget is put: the one rule for methods, the evaluation and probes, so that all ask alike."""

from dataclasses import replace

from retcon.errors import RetconError
from retcon.lm import LM

__all__ = ["asking"]


def asking(lm: LM, chat: bool | None = None) -> LM:
    """The model as questions are put to it: by default through its chat template, if it has one.

    Args:
        lm: the model.
        chat: whether the template is used; None for where there is one.

    Raises:
        RetconError: the template is wanted, and there is none.
    """
    has = bool(getattr(lm.tokenizer, "chat_template", None))
    if chat and not has:
        raise RetconError(f"{lm.name} has no chat template; leave --chat (chat=True) out")
    return replace(lm, chat=has if chat is None else chat)
