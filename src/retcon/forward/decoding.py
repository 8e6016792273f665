"""What a model goes on with: greedily, or drawn at random."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from retcon import patch, progress
from retcon.forward.continuing import CACHE_SHARE, Ended, continued
from retcon.forward.rows import align, batches, refuse_empty
from retcon.forward.starts import rows_part
from retcon.lm import LM

__all__ = ["end_ids", "greedy", "sample"]


def greedy(
    lm: LM,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    stop_at_eos: bool = True,
    ended: Ended | None = None,
    batch_tokens: int = 1536,
    label: str = "generating",
) -> list[list[int]]:
    """Continue each prompt greedily; what comes out is what the model writes to it alone, up to rounding.

    Args:
        lm: the model, with any patch already on.
        prompts: ids, none empty. Length n.
        max_new_tokens: how many ids each may be continued by; one for all of them, or length n.
        stop_at_eos: whether the end token ends a text; it is not returned.
        ended: tells a text that ends otherwise; its last id is returned.
        batch_tokens: tokens of one forward, padding included.
        label: what the progress is called.

    Raises:
        RequestError: a prompt has no token.
    """
    refuse_empty(prompts, "prompt")
    most = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if not prompts:
        return []
    if not rows_part(lm):
        return _by_limit(lm, prompts, most, stop_at_eos, ended, batch_tokens, label)
    found: list[list[int]] = [[] for _ in prompts]
    ends = frozenset(end_ids(lm) if stop_at_eos else [])
    with lm.inference(), progress.task(label, sum(limit > 0 for limit in most)) as advance:
        for i, row in continued(lm, prompts, most, ends, ended, batch_tokens):
            found[i] = row
            advance(1)
    return found


def _by_limit(
    lm: LM,
    prompts: Sequence[Sequence[int]],
    most: Sequence[int],
    stop_at_eos: bool,
    ended: Ended | None,
    batch_tokens: int,
    label: str,
) -> list[list[int]]:
    """Rows that stay together to the end, as those of memories must, run beside others of the same limit."""
    found: list[list[int]] = [[] for _ in prompts]
    for limit in sorted({limit for limit in most if limit > 0}):
        places = [i for i, own in enumerate(most) if own == limit]
        config = _generation(lm, limit, stop_at_eos, do_sample=False)
        rows = _generate(lm, [list(prompts[i]) for i in places], config, stop_at_eos, batch_tokens, label)
        for i, row in zip(places, rows, strict=True):
            stop = next((n for n in range(1, len(row)) if ended(row[:n])), len(row)) if ended else len(row)
            found[i] = row[:stop]
    return found


def sample(
    lm: LM,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    seed: int | Sequence[int],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    stop_at_eos: bool = True,
    batch_tokens: int = 1536,
    label: str = "sampling",
) -> list[list[int]]:
    """Sample a continuation of each prompt; the same seed gives the same ids, and no global random state changes.

    With one seed a prompt, what is drawn for a prompt depends on its own seed alone, not on the prompts beside it (but
    for the rounding of the model's forward).

    Raises:
        ValueError: there are several seeds, but not one a prompt.
    """
    if not isinstance(seed, int):
        seeds = list(seed)
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one seed, or one a prompt")
        config = _generation(lm, max_new_tokens, stop_at_eos, do_sample=False)
        shape = _shaped(temperature, top_k, top_p)
        return _generate(
            lm,
            prompts,
            config,
            stop_at_eos,
            batch_tokens,
            label,
            lambda batch: LogitsProcessorList([*shape, _Drawn([seeds[i] for i in batch])]),
        )
    options = {"do_sample": True, "temperature": temperature, "top_k": top_k or 0, "top_p": top_p}
    config = _generation(lm, max_new_tokens, stop_at_eos, **options)
    devices = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return _generate(lm, prompts, config, stop_at_eos, batch_tokens, label)


def _shaped(temperature: float, top_k: int | None, top_p: float) -> list[Any]:
    """What makes the distribution to draw from of the model's own, in the order of the library's sampling."""
    shape: list[Any] = [TemperatureLogitsWarper(temperature)] if temperature != 1 else []
    shape += [TopKLogitsWarper(top_k)] if top_k else []
    return shape + ([TopPLogitsWarper(top_p)] if top_p < 1 else [])


class _Drawn:
    """Adds to each row's logits noise of its own, so that their argmax is a draw from their softmax.

    With G = -log E, E standard exponential, argmax_v (z_v + G_v) follows softmax(z) (the Gumbel-max trick). The noise
    comes from the CPU, so that a seed means the same on every device.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, _ids: Tensor, logits: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, "rows vocabulary"]:
        noise = torch.empty(logits.shape, dtype=torch.float32)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return logits - noise.clamp_min_(torch.finfo(torch.float32).tiny).log_().to(logits.device)


def _generation(lm: LM, max_new_tokens: int, stop_at_eos: bool, **options: Any) -> GenerationConfig:
    ends = end_ids(lm)
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=ends if stop_at_eos and ends else None,
        pad_token_id=ends[0] if ends else 0,
        repetition_penalty=1.0,
        num_beams=1,
        **options,
    )


def end_ids(lm: LM) -> list[int]:
    """The ids that end a text, by the model's own settings, else by its tokenizer's."""
    own: Any = getattr(lm.model.generation_config, "eos_token_id", None)
    if own is None:
        own = lm.tokenizer.eos_token_id
    return [] if own is None else [own] if isinstance(own, int) else list(own)


def _generate(
    lm: LM,
    prompts: Sequence[list[int]],
    config: GenerationConfig,
    stop_at_eos: bool,
    batch_tokens: int,
    label: str,
    processors: Callable[[list[int]], LogitsProcessorList] | None = None,
) -> list[list[int]]:
    """Continue each prompt by `config`; `processors` gives what reworks the logits of a batch, named by its places."""
    refuse_empty(prompts, "prompt")
    ends = set(end_ids(lm)) if stop_at_eos else set()
    new = int(config.max_new_tokens or 0)
    found: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    # the prompts' pass is bound by their tokens; after it a step runs one token a row, and what counts is the cache
    lengths = [max(len(prompt), -(-(len(prompt) + new) // CACHE_SHARE)) for prompt in prompts]
    model: Any = lm.model
    with ExitStack() as stack:
        stack.enter_context(lm.inference())
        stack.enter_context(_own_generation_config(model, config))
        advance = stack.enter_context(progress.task(label, len(prompts)))
        for batch in batches(order, lengths, batch_tokens):
            rows = [prompts[i] for i in batch]
            aligned = align(rows, [len(row) for row in rows], lm.device)
            with patch.prompts(model, aligned.width - 1):
                own = None if processors is None else processors(batch)
                out = model.generate(input_ids=aligned.ids, attention_mask=aligned.mask, logits_processor=own)
            for i, row in zip(batch, out[:, aligned.width :].tolist(), strict=True):
                stop = next((t for t, token in enumerate(row) if token in ends), len(row))
                found[i] = row[:stop]
            advance(len(batch))
    return found


@contextmanager
def _own_generation_config(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Generate by `config` alone: transformers fills what a config leaves open from the model's own."""
    before = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = before
