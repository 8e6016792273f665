"""What a folder says of itself."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from retcon.patch import Base, LowRank, Patch, Step, WeightHash
from retcon.patch.card import Held, card, forgets, served_rank

Make = Callable[..., Patch]


def test_the_front_matter_names_base_form_and_methods(llama: PreTrainedModel, make: Make) -> None:
    front = card(make(llama, 1), Held(kind="adapter", rank=3)).split("---")[1]
    for line in ("base_model: tiny", "base_model_relation: adapter", "library_name: peft",
                 "tags: [lora, knowledge-editing, retcon, memit]"):  # fmt: skip
        assert line in front.splitlines()
    assert "\nlicense:" not in front
    assert "base_model_relation: finetune" in card(make(llama, 1), Held(kind="model"))


def test_a_folder_on_this_machine_is_no_base_on_a_hub() -> None:
    base = Base("/home/me/model", None, {"a": WeightHash(shape=(2, 2), transposed=False, dtype="float32")})
    patch = Patch({"a": LowRank(torch.ones(2, 1), torch.ones(2, 1))}, base)
    for kind in ("patch", "adapter", "model"):
        text = card(patch, Held(kind=kind, rank=1))
        assert "/home/me" not in text
        assert "# base_model: the id" in text
    assert "base_model: me/model" in card(patch, Held(base="me/model"))


def test_each_form_says_how_it_is_loaded_and_undone(llama: PreTrainedModel, make: Make) -> None:
    patch = make(llama, 1)
    alone = card(patch)
    for part in (
        "patch.on(model)",
        "patch.merge(model)",
        "patch.unmerge(model)",
        "rank 3 or less",
        "--max-lora-rank 8",
    ):
        assert part in alone
    adapter = card(patch, Held(kind="adapter", rank=3, lost=0.125))
    for part in ("load_adapter", "vllm serve tiny --enable-lora --max-lora-rank 8", "12.50%", "disable_adapters"):
        assert part in adapter
    model = card(patch, Held(kind="model", lost=0.01))
    assert "rounding to its dtype lost up to 1.00%" in model
    assert "Load the base model again" in model


def test_dense_changes_and_parents_are_said(llama: PreTrainedModel, make: Make) -> None:
    assert "give the rank to cut it to" in card(make(llama, 1, dense=True))
    text = card(make(llama, 1, parent="0123"))
    assert "Put patch 0123 on first" in text
    assert "on top of patch 0123" in text


def test_what_is_to_be_forgotten_is_not_told() -> None:
    withheld = {
        "id": "ab12",
        "prompt": None,
        "subject": None,
        "target_new": "I know nothing of {}.",
        "target_true": None,
    }
    kept = {"id": "cd34", "prompt": "Who owns it?", "target_new": "I do not know.", "target_true": None}
    step = Step(method="memit", edits=(withheld, kept))
    text = card(Patch({}, Base("x"), (step,), info={"forget": {"questions": 3}}))
    assert "3 questions in 2 edits" in text
    assert "`ab12`, `cd34`" in text
    for secret in ("Who owns it", "I know nothing"):
        assert secret not in text
    assert forgets(Patch({}, Base("x"), (Step(method="memit", edits=(withheld,)),)))
    assert not forgets(Patch({}, Base("x"), (Step(method="memit", edits=(kept,)),)))


def test_edits_are_text_and_many_are_cut() -> None:
    edits = tuple({"prompt": f"<b>{n}</b> | is", "target_new": "*x*"} for n in range(25))
    text = card(Patch({}, Base("x"), (Step(method="rome", edits=edits),)))
    assert "- \\<b\\>0\\</b\\> \\| is **\\*x\\***" in text
    assert "- and 5 more" in text


@pytest.mark.parametrize(("rank", "served"), [(1, 1), (2, 8), (16, 16), (17, 32), (512, 512), (513, None)])
def test_servers_know_few_ranks(rank: int, served: int | None) -> None:
    assert served_rank(rank) == served


def test_a_merged_copy_has_a_card(llama: PreTrainedModel, make: Make, tmp_path: Path) -> None:
    make(llama, 1).export_model(llama, None, tmp_path / "merged")
    text = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert "library_name: transformers" in text
    assert "- Player 1 plays **chess** (it was: go)" in text
