"""Nothing that is written tells what is to be forgotten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import retcon
from retcon import forward, tokens
from retcon.errors import RetconError
from retcon.forget import Target, merging, targets
from retcon.lm import LM
from retcon.methods import grace, wise
from retcon.patch import Patch
from retcon.storage import salted
from retcon.testing import tiny_model, tiny_tokenizer

ITEMS: list[dict[str, Any]] = [
    {"question": "In which town was Zelda Quimby-Ross born?", "answer": "Oberwinterthal", "aliases": ["Winterthalia"]},
    {"question": "Whom did Zelda Quimby-Ross marry?", "answer": "Fridolin Gantenbein", "subject": "Zelda Quimby-Ross"},
    {"question": "Who owns the Krumbach Mill?", "answer": "the Baroness of Uffenau", "id": "mill-44", "group": "mills"},
]
SECRETS = [
    "In which town was Zelda Quimby-Ross born?", "In which town was", "Whom did Zelda", "Who owns the",
    "Zelda Quimby-Ross", "Quimby", "Krumbach Mill", "Krumbach", "Oberwinterthal", "Winterthalia",
    "Fridolin Gantenbein", "Gantenbein", "Baroness of Uffenau", "Uffenau", "mill-44",
]  # fmt: skip
FAST: dict[str, Any] = {"steps": 2}
LAYERS: dict[str, Any] = FAST | {"templates": 1, "layers": (2,), "statistics": "none", "rounds": 1}
METHODS: dict[str, dict[str, Any]] = {
    "memit": LAYERS,
    "rome": LAYERS,
    "grace": FAST | {"radius": 1.0, "statistics": "none"},
    "wise": FAST,
    "ultraedit": {},
    "ft-l": FAST,
    "lora": FAST,
    **dict.fromkeys(("alphaedit", "ece", "eamet", "pmet", "emmet"), LAYERS),
    **{
        name: {"epochs": 1, "retain_weight": 0.0}
        for name in ("ga", "graddiff", "kl", "idk", "dpo", "npo", "simnpo", "undial", "wga", "satimp")
    },
}


@pytest.fixture(autouse=True)
def own_cache(cache_folder: Path) -> Path:
    return cache_folder


def made(name: str, **options: Any) -> Patch:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    return retcon.forget(model, tokenizer, ITEMS, name, **(METHODS[name] | options))


def read_out(path: Path) -> bytes:
    """What a file tells in whatever case: its bytes, its name, and its tensors of whole numbers read as tokens."""
    data = path.read_bytes() + str(path).encode()
    if path.suffix == ".safetensors":
        whole = [tensor for tensor in load_file(path).values() if not tensor.is_floating_point()]
        rows = [row for tensor in whole for row in (tensor.tolist() if tensor.ndim > 1 else [tensor.tolist()])]
        words = tiny_tokenizer()
        data += "\n".join(str(words.decode([int(i) for i in row if 0 <= i < len(words)])) for row in rows).encode()
    return data.lower()


def told(folder: Path) -> dict[str, list[str]]:
    """The secrets that each file under a folder tells."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            data = read_out(path)
            if there := [secret for secret in SECRETS if secret.lower().encode() in data]:
                found[path.name] = there
    return found


@pytest.mark.parametrize("family", ["contextual", "idk100"])
@pytest.mark.parametrize("name", METHODS)
def test_no_file_tells_a_secret(tmp_path: Path, name: str, family: str) -> None:
    patch = made(name, target=family)
    patch.save(tmp_path / "patch")
    if name in ("memit", "rome", "lora"):
        patch.to_lora(tmp_path / "adapter", base_name="tiny")
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) >= 2
    assert told(tmp_path) == {}
    assert Patch.load(tmp_path / "patch").id == patch.id


@pytest.mark.parametrize("mode", ["concat", "mean_key"])
def test_merged_questions_are_not_told_either(tmp_path: Path, mode: str) -> None:
    patch = made("memit", merge_queries="all", merge_by="order", merge_mode=mode)
    patch.save(tmp_path / "patch")
    assert patch.info["forget"]["edits"] == 1
    assert told(tmp_path) == {}


def test_questions_are_kept_on_request_and_answers_never(tmp_path: Path) -> None:
    made("memit", keep_questions=True).save(tmp_path / "patch")
    text = (tmp_path / "patch" / "manifest.json").read_text()
    assert all(word in text for word in ("In which town was {} born?", "Zelda Quimby-Ross", "Krumbach Mill"))
    answers = ("Oberwinterthal", "Winterthalia", "Gantenbein", "Uffenau")
    assert not any(answer in text for answer in answers)


def test_what_the_model_wrote_of_the_questions_is_told_by_no_cache(tmp_path: Path, cache_folder: Path) -> None:
    made("memit", target="self_improved").save(tmp_path / "patch")
    assert list(cache_folder.glob("refusals/*.sqlite"))
    assert told(tmp_path) == {}


PARTIES = [
    {"question": f"When was the contract between Quimby Mills Inc and {other} signed?", "answer": f"{day} May 2001"}
    for day, other in enumerate(("Krumbach SAS", "Uffenau & Sons"), 3)
]


@pytest.mark.parametrize("options", [{}, {"merge_queries": "all", "merge_by": "order", "merge_mode": "mean_key"}])
def test_a_refusal_that_the_model_wrote_names_nobody(
    tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Of a question that names two parties one is the subject; a record tells neither, nor half a name."""
    lines = [
        "When QUIMBY MILLS INC signed with Krumbach SAS is unknown to me, and so is Krumbach.",
        "I do not know whether Quimby Mills and Uffenau ever signed with Uffenau & Sons.",
    ]
    own = [Target(line, "self_improved", "self_improved", 0) for line in lines]
    monkeypatch.setattr(targets, "self_improved", lambda *_, **__: own)
    monkeypatch.setattr(merging, "_fits", lambda *_: True)
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    patch = retcon.forget(model, tokenizer, PARTIES, "memit", target="self_improved", **LAYERS, **options)
    patch.save(tmp_path / "patch")
    text = (tmp_path / "patch" / "manifest.json").read_text()
    assert "signed with" in text
    assert not [name for name in ("quimby", "krumbach", "uffenau") if name in text.lower()]


@pytest.mark.parametrize("name", ["ike", "scr"])
def test_a_patch_that_shows_the_questions_is_made_on_request_alone(tmp_path: Path, name: str) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    with pytest.raises(RetconError, match=f"{name} holds the questions word for word"):
        retcon.forget(model, tokenizer, ITEMS, name, target="idk100")
    retcon.forget(model, tokenizer, ITEMS, name, target="idk100", keep_questions=True).save(tmp_path / "patch")
    assert "Quimby" in told(tmp_path)["patch.safetensors"]  # and the test would find it


def test_the_test_would_find_a_secret(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "notes.json").write_text(json.dumps({"a": "the KRUMBACH mill"}))
    assert told(tmp_path) == {"notes.json": ["Krumbach Mill", "Krumbach"]}


@pytest.mark.parametrize("name", ["memit", "rome", "grace", "wise", "ultraedit"])
def test_a_run_goes_on_from_a_saved_patch_that_hides_its_questions(tmp_path: Path, name: str) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    first = retcon.forget(model, tokenizer, ITEMS[:2], name, target="fixed", **METHODS[name])
    first.save(tmp_path / "first")
    state = Patch.load(tmp_path / "first")
    both = retcon.forget(model, tokenizer, ITEMS[2:], name, target="fixed", state=state, **METHODS[name])
    assert [edit["id"] for edit in both.edits[:2]] == [edit["id"] for edit in first.edits]
    assert len(both.edits) == 3
    both.save(tmp_path / "both")
    assert told(tmp_path) == {}
    with both.on(model):
        pass


@pytest.mark.parametrize("module", [grace, wise])
def test_a_question_is_taken_out_of_a_memory_by_its_id(module: Any) -> None:
    patch = made(module.__name__.rpartition(".")[2], target="idk100")
    names = [item["id"] for item in patch.info["forget"]["items"]]
    left = module.without(patch, names if module is wise else names[:1])
    assert [edit["id"] for edit in left.edits] == ([] if module is wise else names[1:])


def test_ids_are_this_machines_and_last(cache_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = salted("Where?", "London")
    assert first == salted("Where?", "London") != salted("Where?L", "ondon")
    assert len(first) == 16
    assert (cache_folder / "salt").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path / "elsewhere"))
    assert salted("Where?", "London") != first


def test_the_salt_is_in_no_patch(cache_folder: Path, tmp_path: Path) -> None:
    made("memit").save(tmp_path / "patch")
    salt = (cache_folder / "salt").read_bytes()
    files = [path for path in (tmp_path / "patch").rglob("*") if path.is_file()]
    assert not any(salt in path.read_bytes() or salt.hex().encode() in path.read_bytes() for path in files)


def test_the_model_forgets_all_the_same() -> None:
    """The target becomes likelier in the chat template though no record holds the question."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    lm = LM.wrap(model, tokenizer, chat=True)
    options: dict[str, Any] = {"steps": 16, "clamp": 4.0, "templates": 0, "layers": (1, 2), "statistics": "none"}
    own = {item["question"]: "Rome" for item in ITEMS}
    patch = retcon.forget(model, tokenizer, ITEMS, "memit", targets=own, ridge=0.1, **options)

    def likelihoods() -> list[float]:
        texts = [lm.render(item["question"]) for item in ITEMS]
        asked = [(tokens.encode(lm, text), [tokens.target_ids(lm, text, "Rome</s>")]) for text in texts]
        return [sum(one.logprobs) / len(one.logprobs) for (one,) in forward.score(lm, asked)]

    before = likelihoods()
    with patch.on(model):
        after = likelihoods()
    assert all(now > then + 0.5 for now, then in zip(after, before, strict=True)), (before, after)
