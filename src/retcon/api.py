"""`retcon.edit`: a model, a tokenizer and facts to a patch, in one call."""

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from retcon import methods
from retcon.errors import RequestError
from retcon.lm import LM
from retcon.patch import Patch
from retcon.requests import Edit, check_conflicts, from_dict
from retcon.targets import Store

__all__ = ["edit"]


def edit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    edits: Iterable[Edit | Mapping[str, Any]],
    method: str = "memit",
    *,
    state: Patch | None = None,
    retain: Iterable[str] = (),
    chat: bool = False,
    cache: bool = True,
    **config: Any,
) -> Patch:
    """Compute a patch that changes facts of a model; the model and the tokenizer are left as they are.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        edits: the facts, as `Edit` or as dicts with the files' field names (`prompt`, `subject`, `target_new` ...).
        method: one of `METHODS`.
        state: a patch to go on from; the result contains it.
        retain: texts to keep, for methods that use them.
        chat: whether prompts are rendered through the chat template.
        cache: whether found targets are looked up and kept on disk.
        **config: options of the method; `retcon methods NAME` lists them.

    Returns:
        The patch: `with patch.on(model): ...` runs the edited model.

    Raises:
        RequestError: an edit is wrong, or two edits give one text different targets.
        RetconError: there is no such method or option, or no edit.
        UnsupportedModel: the model cannot be edited this way.
    """
    if isinstance(edits, Edit | Mapping):
        raise RequestError("edits is a single edit; give a list of one")
    facts = [fact if isinstance(fact, Edit) else from_dict(fact) for fact in edits]
    check_conflicts(facts)
    rule = methods.method(method, **config)
    stores = [Store.shared()] if cache else []
    return rule.edit(LM.wrap(model, tokenizer, chat=chat), facts, retain=tuple(retain), state=state, stores=stores)
