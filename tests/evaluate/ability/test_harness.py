"""lm-evaluation-harness: a stand-in shows what it is asked; the real one, where it is installed, must agree with us."""

import json
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from retcon.errors import RetconError
from retcon.evaluate.ability import harness
from retcon.evaluate.ability.tasks import TASKS, load, right
from retcon.evaluate.answers import Answers
from retcon.lm import LM
from retcon.testing import tiny_model, tiny_tokenizer

INSTALLED = find_spec("lm_eval") is not None


@pytest.fixture
def lm() -> LM:
    return LM.wrap(tiny_model("llama"), tiny_tokenizer())


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Modules that look like the harness, and what they were given."""
    seen: dict[str, Any] = {}

    class Manager:
        def __init__(self, include_path: list[str]) -> None:
            seen["paths"] = include_path
            read = [json.loads(path.read_text("utf-8")) for path in Path(include_path[0]).glob("*.yaml")]
            seen["tasks"] = {task["task"]: task for task in read}
            self.all_tasks = [*seen["tasks"], "hellaswag"]

    def model(**options: Any) -> Any:
        seen["model"] = options
        return "the model"

    def simple_evaluate(**options: Any) -> Any:
        seen["asked"] = options
        rows = [
            {"doc_id": 1, "acc": 0.0, "doc_hash": "b", "filter": "none"},
            {"doc_id": 0, "acc": 1.0, "doc_hash": "a", "filter": "none"},
            {"doc_id": 0, "acc": 0.0, "doc_hash": "a", "filter": "flexible-extract"},
        ]
        return {"samples": dict.fromkeys(options["tasks"], rows)}

    contents: dict[str, dict[str, Any]] = {
        "lm_eval": {"simple_evaluate": simple_evaluate, "__spec__": SimpleNamespace()},
        "lm_eval.tasks": {"TaskManager": Manager},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": model},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(metadata, "version", lambda _: "0.0")
    return seen


def test_the_model_in_memory_is_asked_and_the_tokenizer_is_a_copy(lm: LM, stand_in: dict[str, Any]) -> None:
    found = harness.run(lm, ["hellaswag", "arithmetic"])
    assert stand_in["model"]["pretrained"] is lm.model
    assert stand_in["model"]["tokenizer"] is not lm.tokenizer
    assert stand_in["asked"]["tasks"] == ["hellaswag", "retcon_arithmetic"]
    assert stand_in["asked"]["model"] == "the model"
    assert {name: (one.hits, one.version, one.metric, one.filter) for name, one in found.items()} == {
        "hellaswag": ([1.0, 0.0], "lm-eval 0.0", "acc", "none"),
        "arithmetic": ([1.0, 0.0], "lm-eval 0.0", "acc", "none"),
    }


def test_our_tasks_and_a_folder_of_the_users_are_named_to_it(lm: LM, stand_in: dict[str, Any], tmp_path: Path) -> None:
    harness.check(["arithmetic", "hellaswag"], tmp_path)
    assert set(stand_in["tasks"]) == {f"retcon_{name}" for name in TASKS}
    assert stand_in["paths"][1:] == [str(tmp_path)]
    assert not Path(stand_in["paths"][0]).exists()  # what was written for it is gone
    with pytest.raises(RetconError, match="knows no task 'helaswag'"):
        harness.check(["helaswag"])
    with pytest.raises(RetconError, match="there is no folder"):
        harness.check(["arithmetic"], tmp_path / "none")


def test_a_task_without_a_share_of_right_items_is_refused() -> None:
    with pytest.raises(RetconError, match="no share of right items"):
        harness._scored("perplex", [{"doc_id": 0, "word_perplexity": 3.0}], "lm-eval 0.0")


@pytest.mark.parametrize(
    ("filters", "chosen"),
    [
        (["flexible-extract", "strict-match"], "strict-match"),
        (["custom", "flexible-extract", "none"], "none"),
        (["second", "first"], "second"),
        ([None], None),
    ],
)
def test_the_strictest_filter_of_a_task_counts_and_is_recorded(filters: list[str | None], chosen: str | None) -> None:
    rows = [
        {"doc_id": n, "exact_match": float(name == chosen), "doc_hash": "a", "filter": name}
        for name in filters
        for n in (1, 0)
    ]
    found = harness._scored("gsm8k", rows, "lm-eval 0.0")
    assert (found.hits, found.metric, found.filter) == ([1.0, 1.0], "exact_match", chosen)


def test_written_tasks_hold_every_item_and_need_no_network(tmp_path: Path) -> None:
    paths = harness.write_tasks(tmp_path)
    assert [path.name for path in paths] == [f"retcon_{name}.yaml" for name in TASKS]
    for name, path in zip(TASKS, paths, strict=True):
        task = json.loads(path.read_text("utf-8"))
        assert task["dataset_path"] == "json"
        items = Path(task["dataset_kwargs"]["data_files"]["test"]).read_text("utf-8")
        rows = [json.loads(line) for line in items.splitlines()]
        assert [(row["prompt"], tuple(row["choices"]), row["answer"]) for row in rows] == [
            (item.prompt, item.choices, item.answer) for item in load(name)
        ]


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="the extra lm-eval is not installed")
@pytest.mark.filterwarnings("ignore")
def test_the_harness_and_our_scorer_agree_and_leave_the_model_as_it_was(lm: LM, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: "
        + str(tmp_path / "mine.jsonl")
        + "\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: a\ndoc_to_target: i\n"
        "metric_list:\n  - metric: acc\n",
        encoding="utf-8",
    )
    (tmp_path / "mine.jsonl").write_text('{"q": "Rome is", "a": ["old", "a river"], "i": 0}\n' * 3, encoding="utf-8")
    harness.check(["arithmetic", "mine"], tmp_path)
    training, pad = lm.model.training, lm.tokenizer.pad_token
    found = harness.run(lm, ["word_order", "common_sense", "mine"], tmp_path)
    assert (lm.model.training, lm.tokenizer.pad_token) == (training, pad)
    assert len(found["mine"].hits) == 3
    for name in ("word_order", "common_sense"):
        ours = right(lm, load(name), Answers(lm))
        assert sum(one != other for one, other in zip(ours, found[name].hits, strict=True)) <= 1  # rounding
