"""The tiny models and tokenizers are what the other tests take them for: alive, seeded, and of many kinds."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from retcon import testing
from retcon.testing import FAMILIES, MOE_FAMILIES, tiny_edits, tiny_model, tiny_tokenizer

KINDS = ("fast", "slow", "bos", "sentencepiece")
TEXTS = ("Niccolò Paganini plays the violin", "the city of 東京 is", "two  spaces\nand a “quote”", "a")


def ids(rows: int = 1, length: int = 13) -> torch.Tensor:
    return torch.randint(3, 500, (rows, length), generator=torch.Generator().manual_seed(1))


def positions(model: torch.nn.Module, mask: torch.Tensor, last: int) -> dict[str, torch.Tensor]:
    """Position ids of the last tokens, by the mask, for the families that take them."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return {}
    return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, -last:]}


def together(long: Any, short: Any) -> torch.Tensor:
    """Two rows of keys or values (1, heads, length, d), the short one padded at the left -> (2, heads, length, d)."""
    return torch.cat([long, torch.nn.functional.pad(short, (0, 0, long.shape[2] - short.shape[2], 0))])


@pytest.mark.parametrize("family", FAMILIES + MOE_FAMILIES)
@torch.no_grad()
def test_model_is_alive_and_eval(family: str) -> None:
    model = tiny_model(family)
    out = model(ids(), output_hidden_states=True)
    sizes = [float(h.std()) for h in out.hidden_states]
    assert not model.training
    assert all(0.1 < size < 10 for size in sizes)
    assert all(
        later.ne(earlier).any() for earlier, later in zip(out.hidden_states, out.hidden_states[1:], strict=False)
    )
    assert 0.3 < out.logits.std() < 5
    assert out.logits[0].argmax(-1).unique().numel() > 4  # not one answer to everything
    assert out.logits.softmax(-1).amax(-1).mean() < 0.9


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_parameter_matters(family: str) -> None:
    """Each block's weights are random, so that a forgotten bias or norm shows."""
    for name, parameter in tiny_model(family).named_parameters():
        assert parameter.numel() == 1 or parameter.std() > 0.01, name


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_left_padding_changes_nothing(family: str) -> None:
    model, tokens = tiny_model(family), ids()
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), tokens], 1)
    mask = torch.ones_like(padded)
    mask[:, :4] = 0
    out = model(padded, attention_mask=mask, **positions(model, mask, 17)).logits
    assert out.isfinite().all()  # the rows of the padding too: a NaN there would spread through the caches
    torch.testing.assert_close(out[:, 4:], model(tokens).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_goes_on_from_a_cache_filled_by_hand(family: str) -> None:
    """Two prompts of nine and five tokens, the second padded at the left in the cache; both go on with four tokens."""
    model, tokens = tiny_model(family), ids()
    long, short = DynamicCache(), DynamicCache()
    model(tokens[:, :9], past_key_values=long, use_cache=True)
    model(tokens[:, 4:9], past_key_values=short, use_cache=True)
    cache = DynamicCache()
    pairs: Any = zip(long.layers, short.layers, strict=True)
    for i, (a, b) in enumerate(pairs):
        cache.update(together(a.keys, b.keys), together(a.values, b.values), i)
    mask = torch.ones(2, 13, dtype=torch.long)
    mask[1, :4] = 0
    out = model(
        tokens[:, 9:].expand(2, -1),
        past_key_values=cache,
        attention_mask=mask,
        use_cache=True,
        **positions(model, mask, 4),
    ).logits
    torch.testing.assert_close(out[0], model(tokens).logits[0, 9:], atol=1e-4, rtol=0)
    torch.testing.assert_close(out[1], model(tokens[:, 4:]).logits[0, 5:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_tying_is_as_asked(family: str, tie: bool) -> None:
    model: Any = tiny_model(family, tie=tie, layers=2)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tie


def test_seeded_and_leaves_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    same = [tiny_model("llama", layers=2).state_dict() for _ in range(2)]
    other = tiny_model("llama", layers=2, seed=1).state_dict()
    half = tiny_model("llama", layers=2, dtype=torch.bfloat16).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    for name, weight in same[0].items():
        assert torch.equal(weight, same[1][name])
        assert not torch.equal(weight, other[name])
        assert torch.equal(weight.bfloat16(), half[name])


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("family", FAMILIES + MOE_FAMILIES)
def test_any_depth(family: str, layers: int) -> None:
    assert tiny_model(family, layers=layers).config.num_hidden_layers == layers


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no tiny model of 'rnn'; the families are llama"):
        tiny_model("rnn")
    with pytest.raises(ValueError, match=r"no tiny tokenizer 'word'; the kinds are fast"):
        tiny_tokenizer("word")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        testing.nothing  # noqa: B018
    assert set(testing.__all__) <= set(dir(testing))


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_round_trips(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    assert len(tokenizer) <= 512
    for text in TEXTS:
        tokens = tokenizer(text).input_ids
        assert max(tokens) < 512
        assert tokenizer.unk_token_id not in tokens
        assert tokenizer.decode(tokens, skip_special_tokens=True) == text


def test_tokenizers_differ_as_named() -> None:
    made = {kind: tiny_tokenizer(kind) for kind in KINDS}
    starts = {kind: t("the city").input_ids[0] == t.bos_token_id for kind, t in made.items()}
    assert starts == {"fast": False, "slow": False, "bos": True, "sentencepiece": True}
    assert {kind: t.is_fast for kind, t in made.items()} == dict.fromkeys(KINDS, True) | {"slow": False}
    pads = {kind: t.pad_token_id for kind, t in made.items()}
    assert pads == {"fast": None, "slow": 3, "bos": 2, "sentencepiece": None}
    assert made["sentencepiece"].tokenize("the city")[0] == "▁the"
    assert [kind for kind, t in made.items() if t.chat_template] == ["fast"]
    chat = made["fast"].apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == "<|user|>\nHi\n<|assistant|>\n"


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_is_the_same_each_time(kind: str) -> None:
    assert tiny_tokenizer(kind).get_vocab() == tiny_tokenizer(kind).get_vocab()


@pytest.mark.parametrize("kind", ["fast", "bos", "sentencepiece"])
def test_saved_and_loaded_by_plain_transformers(kind: str, tmp_path: Path) -> None:
    tiny_tokenizer(kind).save_pretrained(tmp_path)
    model = tiny_model("llama", layers=2)
    model.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert tokenizer(text).input_ids == tiny_tokenizer(kind)(text).input_ids
    again = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in model.state_dict().items())


def test_slow_tokenizer_saves_and_loads(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("slow")
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert [again(text).input_ids for text in TEXTS] == [tokenizer(text).input_ids for text in TEXTS]


def test_edits_are_distinct_and_seeded() -> None:
    edits = tiny_edits(40)
    assert len({(edit.prompt, edit.subject) for edit in edits}) == 40
    assert all(edit.target != edit.old for edit in edits)
    assert tiny_edits(3) == edits[:3]
    with pytest.raises(ValueError, match="there are 40 tiny edits, not 41"):
        tiny_edits(41)
