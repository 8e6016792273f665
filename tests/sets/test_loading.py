"""From a name or a path to a list with its provenance."""

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from retcon.errors import RequestError
from retcon.requests import Case
from retcon.sets import SETS, LoadedSet, cases, export, load, load_cases, load_edits
from retcon.sets import questions as load_questions
from retcon.storage import file_sha256

FRANCE = {"prompt": "The capital of {} is", "subject": "France", "target_new": "Rome"}
SPAIN = {"prompt": "The capital of {} is", "subject": "Spain", "target_new": "Oslo", "target_true": "Madrid"}
PUBLISHED = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "target_new": {"str": "English"},
        "target_true": {"str": "French"},
        "subject": "Anne Dubois",
    },
    "neighborhood_prompts": ["The mother tongue of Léa Petit is"],
}
QUESTION = {"question": "Who wrote it?", "answer": "Jo Doe"}


def jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_a_file_of_our_own_schema_keeps_its_hash_and_lists_bad_lines(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "mine.jsonl", FRANCE, {"prompt": "no subject", "target_new": 3}, "text", SPAIN)
    found = cases(path)
    assert [case.edit.subject for case in found.items] == ["France", "Spain"]
    assert [sentence.partition(":")[0] for sentence in found.skipped] == ["mine.jsonl line 3", "mine.jsonl line 2"]
    assert found.sha256 == file_sha256(path) == found.provenance["files"][0]["sha256"]
    assert (found.format, found.info) == ("ours", None)
    with pytest.raises(RequestError, match="mine.jsonl line"):
        cases(path, skip_bad=False)


def test_gzip_and_csv_are_read_too(tmp_path: Path) -> None:
    packed = tmp_path / "mine.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(FRANCE).encode()))
    assert cases(packed).sha256 == hashlib.sha256(packed.read_bytes()).hexdigest()
    rows = tmp_path / "mine.csv"
    rows.write_text("prompt,subject,target_new\nThe capital of {} is,France,Rome\n")
    assert cases(rows).items[0].edit.target == "Rome"
    asked = tmp_path / "asked.csv"
    asked.write_text("question,answer\nWho wrote it?,Jo Doe\n")
    assert load_questions(asked).items[0].forget.answer == "Jo Doe"


def test_a_named_set_is_found_below_its_root_and_carries_licence_and_citation(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    jsonl(tmp_path / "deep" / "wiki_recent.jsonl", FRANCE)
    found = load("wiki_recent", root=tmp_path)
    told = found.provenance
    assert (told["name"], told["split"], told["format"], told["licence"]) == ("wiki_recent", "train", "ours", "MIT")
    assert "zhang2024comprehensive" in told["citation"]
    assert json.loads(json.dumps(told)) == told


def test_the_root_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonl(tmp_path / "factual.jsonl", QUESTION)
    monkeypatch.setenv("RETCON_DATA", str(tmp_path))
    assert len(load("factual").items) == 1


def test_a_split_chooses_its_file(tmp_path: Path) -> None:
    jsonl(tmp_path / "forget10.jsonl", QUESTION)
    jsonl(tmp_path / "retain90.jsonl", QUESTION, QUESTION | {"question": "Who sang it?"})
    assert len(load("tofu", root=tmp_path).items) == 1
    assert len(load("tofu", root=tmp_path, split="retain90").items) == 2
    with pytest.raises(RequestError, match="tofu has no split 'forget99'; choose from forget10, "):
        load("tofu", root=tmp_path, split="forget99")


def test_a_set_in_a_format_that_it_is_not_published_in_is_refused(tmp_path: Path) -> None:
    jsonl(tmp_path / "factual.jsonl", FRANCE)
    with pytest.raises(RequestError, match="factual is in no known format; its first record has prompt, subject"):
        load("factual", root=tmp_path)


def test_a_set_smaller_than_asked_for_says_so(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "mine.jsonl", FRANCE, SPAIN)
    assert cases(path, limit=10_000).warnings == ["mine.jsonl has 2 good records, fewer than the 10000 asked for"]
    assert cases(path, limit=1).warnings == []
    assert len(cases(path, limit=1).items) == 1
    with pytest.raises(RequestError, match="take at least 1"):
        cases(path, limit=0)


def test_contradictions_keep_the_last_and_say_so_or_are_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "mine.jsonl", FRANCE, FRANCE | {"target_new": "Lima"})
    found = cases(path)
    assert [case.edit.target for case in found.items] == ["Lima"]
    assert "mine.jsonl line 2 overrules mine.jsonl line 1" in found.warnings[0]
    with pytest.raises(RequestError, match="different targets"):
        cases(path, conflicts="error")


def test_rows_of_another_format_than_the_first_are_listed(tmp_path: Path) -> None:
    found = load(jsonl(tmp_path / "mixed.jsonl", {"text": "?"}, FRANCE, QUESTION))
    assert len(found.items) == 1
    assert [sentence.split(":")[0] for sentence in found.skipped] == ["mixed.jsonl line 1", "mixed.jsonl line 3"]
    assert "not of the format ours, which has `prompt`, `target_new`" in found.skipped[1]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("counterfat", "there is no file or set counterfat; known sets are builtin, counterfact"),
        ("folder/none.jsonl", "there is no file folder/none.jsonl; check the name"),
    ],
)
def test_what_is_not_there_is_refused_in_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        load(name)


def test_a_file_without_records_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.json"
    empty.write_text("[]")
    with pytest.raises(RequestError, match=r"empty.json has no record"):
        load(empty)
    with pytest.raises(RequestError, match=r"all.jsonl has no good record; the first of 1 is"):
        load(jsonl(tmp_path / "all.jsonl", {"prompt": "", "target_new": "x"}))


def test_builtin_has_the_hash_of_its_export_and_no_splits(tmp_path: Path) -> None:
    found = cases("builtin")
    assert export(found.items, tmp_path / "b.jsonl") == found.sha256 == file_sha256(tmp_path / "b.jsonl")
    assert cases(tmp_path / "b.jsonl").items == found.items
    few = cases("builtin", limit=5)
    assert (few.items, few.sha256) == (found.items[:5], found.sha256)
    assert cases("builtin", limit=5, seed=1).items != few.items
    assert "fewer than" in cases("builtin", limit=10**6).warnings[0]
    with pytest.raises(RequestError, match="builtin has no splits"):
        load("builtin", split="test")


def test_files_of_edits_and_cases_are_read_as_ever_and_names_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = jsonl(tmp_path / "mine.jsonl", FRANCE)
    assert isinstance(load_cases(path).items[0], Case)
    assert load_edits(path).items == [case.edit for case in load_cases(path).items]
    assert load_edits("builtin", limit=3).items == [case.edit for case in load_cases("builtin", limit=3).items]
    with pytest.raises(RequestError, match=r"there is no file nowhere.jsonl; check the name"):
        load_edits("nowhere.jsonl")
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "builtin", FRANCE)
    assert len(load_edits("builtin").items) == 1  # a file of that name comes before the set


def test_a_published_file_is_read_by_its_path_and_tells_whose_it_is(tmp_path: Path) -> None:
    path = tmp_path / "counterfact.json"
    path.write_text(json.dumps([PUBLISHED]), encoding="utf-8")
    found, edits = load_cases(path), load_edits(path)
    assert (found.items[0].edit.target, len(found.items[0].neighbours)) == ("English", 1)
    assert edits.items == [found.items[0].edit]
    for loaded in (found, edits):
        assert isinstance(loaded, LoadedSet)
        told = loaded.provenance
        assert (told["name"], told["split"], told["format"]) == ("counterfact", "full", "counterfact")
        assert (told["licence"], told["files"][0]["sha256"]) == ("MIT", file_sha256(path))
        assert "meng2022locating" in told["citation"]


def test_a_published_format_under_another_name_claims_no_licence(tmp_path: Path) -> None:
    found = load_cases(jsonl(tmp_path / "mine.jsonl", PUBLISHED, {"text": "?"}), skip_bad=True)
    assert isinstance(found, LoadedSet)
    assert (found.provenance["format"], found.provenance["name"], found.provenance["licence"]) == (
        "counterfact",
        None,
        None,
    )
    assert len(found.skipped) == 1
    with pytest.raises(RequestError, match=r"mine.jsonl line 2: not of the format counterfact"):
        load_cases(tmp_path / "mine.jsonl")


def test_our_records_as_a_list_are_read_and_questions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps([FRANCE, SPAIN]))
    assert len(load_edits(path).items) == 2
    assert not isinstance(load_cases(jsonl(tmp_path / "mine.jsonl", FRANCE)), LoadedSet)
    with pytest.raises(RequestError, match="holds questions to forget, not edits"):
        load_cases(jsonl(tmp_path / "asked.jsonl", QUESTION))


def test_every_set_but_ours_tells_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    for info in SETS.values():
        if info.name != "builtin":
            with pytest.raises(RequestError, match=f"download .* from {info.url} and give its path"):
                load(info.name, root=tmp_path)
