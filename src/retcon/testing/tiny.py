"""Tiny random models of every supported family, made from a config alone: nothing is downloaded.

They are small enough to run all families in seconds, and random in a way that shows mistakes. Weights are drawn so
that each projection keeps the size of what it reads, and biases and norm weights are random too: under the usual
initialisation (std 0.02, zero biases, unit norms) the blocks add next to nothing, and a forgotten block, bias or
norm would pass every test.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from retcon.testing import tokenizers as _tokenizers

if TYPE_CHECKING:
    from retcon.requests import Edit

VOCAB_SIZE = _tokenizers.VOCAB_SIZE
"""Rows of every tiny model's embedding; every tiny tokenizer's ids are below it."""

D_MODEL, D_MLP, HEADS, KV_HEADS, WINDOW, POSITIONS = 64, 112, 4, 2, 8, 256


def _settings(layers: int) -> dict[str, dict[str, Any]]:
    """The config of each family in small, by the names that the family uses."""
    plain = {
        "hidden_size": D_MODEL,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "max_position_embeddings": POSITIONS,
    }
    whole = plain | {"intermediate_size": D_MLP}
    grouped = whole | {"num_key_value_heads": KV_HEADS}
    gpt = {"n_embd": D_MODEL, "n_layer": layers, "n_head": HEADS, "n_inner": D_MLP, "n_positions": POSITIONS}
    gemma = {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": WINDOW,
        "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)],
    }
    granite = {"embedding_multiplier": 3.0, "attention_multiplier": 0.25, "logits_scaling": 2.0}
    neo_attention = [[["local" if i % 2 else "global"], 1] for i in range(layers)]
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return {
        "llama": grouped,
        "mistral": grouped | {"sliding_window": WINDOW},
        "qwen2": grouped,
        "qwen3": grouped | {"head_dim": 16},
        "gemma2": grouped | gemma,
        "gemma3": grouped | gemma,
        "gpt2": gpt,
        "gptj": gpt | {"rotary_dim": 8},
        "gpt_neox": whole,
        "opt": plain | {"ffn_dim": D_MLP, "word_embed_proj_dim": D_MODEL},
        "phi": whole,
        "falcon": plain | {"ffn_hidden_size": D_MLP},
        "bloom": {"hidden_size": D_MODEL, "n_layer": layers, "n_head": HEADS},
        "stablelm": grouped,
        "olmo2": grouped,
        "cohere": grouped | {"logit_scale": 0.5},
        "granite": grouped | granite | {"residual_multiplier": 0.5},
        "gpt_neo": {
            "hidden_size": D_MODEL,
            "num_layers": layers,
            "num_heads": HEADS,
            "intermediate_size": D_MLP,
            "max_position_embeddings": POSITIONS,
            "attention_types": neo_attention,
            "window_size": WINDOW,
        },
        "mpt": {"d_model": D_MODEL, "n_layers": layers, "n_heads": HEADS, "max_seq_len": POSITIONS},
        "mixtral": grouped | {"num_local_experts": 4, "num_experts_per_tok": 2},
        "qwen2_moe": grouped | experts | {"shared_expert_intermediate_size": D_MLP},
    }


FAMILIES: tuple[str, ...] = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "gpt2",
    "gptj",
    "gpt_neox",
    "opt",
    "phi",
    "falcon",
    "bloom",
    "stablelm",
    "olmo2",
    "cohere",
    "granite",
    "gpt_neo",
    "mpt",
)
"""The dense families that Retcon is proven on."""

MOE_FAMILIES: tuple[str, ...] = ("mixtral", "qwen2_moe")
"""Mixture-of-experts families, which Retcon refuses."""


def tiny_model(
    family: str,
    *,
    seed: int = 0,
    layers: int = 4,
    tie: bool | None = None,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """A random causal language model of `family` with hidden size 64 and 512 tokens, in eval mode.

    The same arguments give the same weights, in every dtype (drawn in fp32, then rounded); the global random state
    is left alone. Windows (mistral, gemma2, gemma3, gpt_neo) are eight tokens long, so that short prompts reach over
    them.

    Args:
        family: one of `FAMILIES` or `MOE_FAMILIES`.
        seed: of the weights.
        layers: the number of blocks.
        tie: whether input and output embeddings share their weight; None is the family's own choice.
        dtype: of the weights.

    Raises:
        ValueError: the family is unknown.
    """
    if family not in FAMILIES + MOE_FAMILIES:
        raise ValueError(f"no tiny model of {family!r}; the families are {', '.join(FAMILIES + MOE_FAMILIES)}")
    settings = _settings(layers)[family] | {
        "vocab_size": VOCAB_SIZE,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    if tie is not None:
        settings["tie_word_embeddings"] = tie
    config = CONFIG_MAPPING["gemma3_text" if family == "gemma3" else family](**settings)
    with torch.random.fork_rng(devices=[]):
        auto: Any = AutoModelForCausalLM  # its methods have no types
        model: PreTrainedModel = auto.from_config(config, dtype=dtype)
    model.train(False)
    _draw_weights(model, seed)
    return model


@torch.no_grad()
def _draw_weights(model: PreTrainedModel, seed: int) -> None:
    """Draw every parameter: projections with std 1/sqrt(d_in), embeddings 0.5, biases and norms with std 0.1.

    Tied embeddings are drawn smaller, or each token would predict itself.
    """
    embedding_std = 0.2 if model.config.tie_word_embeddings else 0.5
    generator = torch.Generator().manual_seed(seed)
    drawn: set[int] = set()  # a tied weight is met twice and drawn once
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in drawn:
                continue
            drawn.add(id(parameter))
            noise = torch.randn(parameter.shape, generator=generator)  # fp32 whatever the dtype
            if isinstance(module, nn.Embedding):
                parameter.copy_(embedding_std * noise)
            elif parameter.dim() == 1:  # a bias or a norm; keep the norm's own centre, which is 0 in gemma, else 1
                parameter.copy_(parameter.float().mean().round() + 0.1 * noise)
            else:  # (d_out, d_in), experts (n, d_out, d_in); Conv1D stores (d_in, d_out)
                d_in = parameter.shape[0] if isinstance(module, Conv1D) else parameter.shape[-1]
                parameter.copy_(noise / math.sqrt(d_in))


def tiny_tokenizer(kind: str = "fast") -> PreTrainedTokenizerBase:
    """A small tokenizer whose ids fit every tiny model: see `retcon.testing.tokenizers.KINDS`.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind not in _tokenizers.KINDS:
        raise ValueError(f"no tiny tokenizer {kind!r}; the kinds are {', '.join(_tokenizers.KINDS)}")
    return _tokenizers.KINDS[kind]()


_SUBJECTS = (
    "Ada Lovelace",
    "the Blue Tower",
    "Niccolò Paganini",
    "Danielle Darrieux",
    "iPhone 5",
    "Málaga",
    "LeBron James",
    "São Tomé",
    "Big Ben",
    "O'Hare Airport",
)
_RELATIONS = (
    ("{} is located in the city of", ("Paris", "Rome", "Lima", "Cairo")),
    ("The mother tongue of {} is", ("French", "Danish", "Greek", "Thai")),
    ("People say that {} plays the sport of", ("soccer", "basketball", "chess", "water polo")),
    ("{} was made by", ("Apple", "Nokia", "the city council", "Boeing")),
)


def tiny_edits(n: int) -> list[Edit]:
    """The first `n` of forty small edits: subjects of one to many tokens, at the start and in the middle, some unicode.

    Raises:
        ValueError: more than forty are asked for.
    """
    from retcon.requests import Edit  # here, so that the models are of use without the rest of the package

    most = len(_SUBJECTS) * len(_RELATIONS)
    if n > most:
        raise ValueError(f"there are {most} tiny edits, not {n}")
    edits = []
    for i in range(n):
        prompt, targets = _RELATIONS[(i + i // len(_SUBJECTS)) % len(_RELATIONS)]
        target, old = targets[i % len(targets)], targets[(i + 1) % len(targets)]
        subject = _SUBJECTS[i % len(_SUBJECTS)]
        edits.append(Edit(prompt=prompt, subject=subject, target=target, old=old, id=f"tiny-{i}"))
    return edits
