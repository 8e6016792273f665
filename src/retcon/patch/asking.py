"""What is asked of a model while it answers something else: embeddings of ids, and yes or no."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from retcon.errors import PatchError
from retcon.hooks import StopForward, stoppable
from retcon.patch.context import Context
from retcon.patch.forward_record import argument_names, prompts

__all__ = ["Embedder", "answers", "head_of", "is_asked"]

_ASKED_TOKENS = 2048
"""Tokens of one forward that asks questions, padding included."""

_asking: WeakSet[nn.Module] = WeakSet()
"""Models that are being asked a question, before which nothing goes."""


def is_asked(model: nn.Module) -> bool:
    """Whether the forward that runs is a question to the model."""
    return model in _asking


class Embedder:
    """What a model, or an encoder beside it, makes of ids; see `Embed`.

    Args:
        model: the model.
        hooked: whether the hooks act that stand on its input embeddings.
    """

    def __init__(self, model: nn.Module, *, hooked: bool) -> None:
        whole: Any = model
        self._model, self._module = model, whole.get_input_embeddings()
        self._call = self._module if hooked else self._module.forward

    def __call__(self, ids: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens d"]:
        """The model's input embeddings."""
        found: Tensor = self._call(ids.to(self._module.weight.device))
        return found.detach()

    def sentences(self, encoder: str, contents: Sequence[Sequence[int]]) -> Float[Tensor, "k d"]:
        """What a sentence encoder makes of the texts of some ids.

        Raises:
            PatchError: the encoder's library is not there, or nobody has told the model's tokenizer.
        """
        from retcon.lm import tokenizer_of  # here, so that patches can be looked into without transformers

        tokenizer = tokenizer_of(self._model)
        if tokenizer is None:
            raise PatchError(
                f"this memory compares texts by the encoder {encoder}, and nothing tells which tokenizer is the "
                "model's; wrap both before: retcon.LM.wrap(model, tokenizer)"
            )
        plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        texts = [str(tokenizer.decode(list(ids), **plain)) for ids in contents]
        found: Tensor = _encoder(encoder).encode(texts, convert_to_tensor=True, show_progress_bar=False)
        return found


@cache
def _encoder(name: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise PatchError(
            f"this memory compares texts by the encoder {name}; install what runs it: pip install 'retcon-lm[encoder]'"
        ) from None
    return SentenceTransformer(name, trust_remote_code=False, model_kwargs={"use_safetensors": True})


def answers(model: nn.Module, context: Context, rows: Sequence[Sequence[int]]) -> list[float]:
    """log p(yes) - log p(no) after each row, of the model without contexts; all else that is on it acts.

    The states are read before the model's head, so that no hook of a caller there sees them; what the model does behind
    it (scaling, soft caps) does not change the sign.
    """
    assert context.question is not None
    whole: Any = model
    device = whole.get_input_embeddings().weight.device
    yes, no = context.question.yes, context.question.no
    found = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    while order:
        batch = [order.pop()]  # the longest that is left
        while order and (len(batch) + 1) * len(rows[batch[0]]) <= _ASKED_TOKENS:
            batch.append(order.pop())
        width = len(rows[batch[0]])
        ids = torch.tensor([[0] * (width - len(rows[n])) + list(rows[n]) for n in batch], device=device)
        lengths = torch.tensor([len(rows[n]) for n in batch], device=device)
        mask = torch.arange(width, device=device) >= width - lengths[:, None]
        logits = _last_logits(model, ids, mask)
        for number, value in zip(batch, (logits[:, yes] - logits[:, no]).tolist(), strict=True):
            found[number] = value
    return found


def _last_logits(model: nn.Module, ids: Int[Tensor, "n width"], mask: Bool[Tensor, "n width"]) -> Tensor:
    """Logits after each row's last column, in fp32; (n, vocabulary)."""
    seen: list[Tensor] = []

    def read(_module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0][:, -1])
        raise StopForward

    head = head_of(model)
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long(), "use_cache": False}
    if "position_ids" in argument_names(model):
        given["position_ids"] = (mask.long().cumsum(1) - 1).clamp_min(0)
    with _asked(model), torch.no_grad(), prompts(model, ids.shape[1] - 1):
        handle = head.register_forward_pre_hook(read, prepend=True)
        try:
            with stoppable():
                model(**given)
        finally:
            handle.remove()
        logits: Tensor = head.forward(seen[0])
    return logits.float()


@contextmanager
def _asked(model: nn.Module) -> Iterator[None]:
    _asking.add(model)
    try:
        yield
    finally:
        _asking.discard(model)


def head_of(model: nn.Module) -> nn.Module:
    """The module that maps states to logits.

    Raises:
        PatchError: there is none.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Module):
        raise PatchError(f"a context goes before the prompts of a language model, and this {type(model).__name__} has "
                         "no output head; put the patch on the causal language model")  # fmt: skip
    return head
