"""Where files come from, and what a file holds."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import huggingface_hub
import pytest

from retcon.errors import RequestError
from retcon.sets import SETS, source
from retcon.sets.source import inside, local, records, remote


def read(path: Path) -> list[tuple[int, object]]:
    return [(line, str(found) if isinstance(found, RequestError) else found) for line, found in records(path)[0]]


def test_a_list_of_objects_gives_the_line_of_each(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text('[\n  {"a": 1},\n\n  {"a":\n 2}, 3,\n {"a": "x\\ny"}\n]\n')
    assert read(path) == [(2, {"a": 1}), (4, {"a": 2}), (5, "no object in { }"), (6, {"a": "x\ny"})]


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ('[{"a": 1},', "the list does not end"),
        ('[{"a": 1},\n {"a"', "not JSON from here on"),
        ('[{"a": 1},\n {"a": 1, "a": 2}]', '"a" stands twice'),
    ],
)
def test_a_damaged_list_gives_what_stands_before_the_damage(tmp_path: Path, text: str, last: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    first, second = read(path)
    assert first == (1, {"a": 1})
    assert last in str(second[1])


def test_jsonl_gives_the_line_of_each(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n{"a": 2}\n')
    assert [line for line, _ in read(path)] == [1, 3, 4]
    assert records(path)[2] == "line"


def test_several_files_that_could_be_meant_are_named(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "wiki_recent.jsonl").write_text("{}\n")
    with pytest.raises(RequestError, match=r"could be a/wiki_recent.jsonl or b/wiki_recent.jsonl in"):
        local(SETS["wiki_recent"], "train", tmp_path)


def test_the_better_name_comes_first_and_a_missing_folder_is_refused(tmp_path: Path) -> None:
    for name in ("counterfact_full.jsonl.gz", "counterfact.json"):
        (tmp_path / name).write_text("")
    assert [path.name for path in local(SETS["counterfact"], "full", tmp_path)] == ["counterfact.json"]
    assert local(SETS["counterfact"], "10k", tmp_path) == []
    with pytest.raises(RequestError, match="there is no folder"):
        local(SETS["counterfact"], "full", tmp_path / "none")


def test_a_folder_gives_its_data_files(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has no data file"):
        inside(tmp_path)
    for name in ("b.jsonl.gz", "a.json", "README.md", "run.py"):
        (tmp_path / name).write_text("")
    assert [path.name for path in inside(tmp_path)] == ["a.json", "b.jsonl.gz"]


def test_only_parquet_on_the_hub_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "find_spec", lambda name: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("fetched in vain"))
    with pytest.raises(RequestError, match=r"where it is Parquet, pip install 'retcon-lm\[datasets\]'"):
        remote(SETS["counterfact"], "full")
    with pytest.raises(RequestError, match="not on this machine and not on the hub"):
        remote(SETS["lume"], "forget")


def test_from_the_hub_come_data_files_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for name in ("forget10_perturbed.json", "forget10.json", "TOFU.py"):
        (tmp_path / name).write_text("[]")

    def download(repo: str, *, repo_type: str, allow_patterns: list[str]) -> str:
        asked.append((repo, repo_type, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(source, "find_spec", lambda name: None)  # nothing but huggingface_hub, which is always there
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert [path.name for path in remote(SETS["tofu"], "forget10")] == ["forget10_perturbed.json"]
    assert asked == [("locuslab/TOFU", "dataset", ["forget10_perturbed.json"])]
    with pytest.raises(RequestError, match=r"locuslab/TOFU has no file retain90.json any more"):
        remote(SETS["tofu"], "retain90")


def test_a_hub_out_of_reach_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        RequestError, match=r"locuslab/TOFU cannot be fetched from the hub \(ConnectionError\); download"
    ):
        remote(SETS["tofu"], "forget10")


def test_parquet_needs_the_extra_and_gives_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setattr(source, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"data.parquet is Parquet, which needs pip install"):
        records(path)
    monkeypatch.setattr(source, "find_spec", lambda name: SimpleNamespace(name=name))
    parquet = SimpleNamespace(read_table=lambda path: SimpleNamespace(to_pylist=lambda: [{"a": 1}, {"a": 2}]))
    library = ModuleType("pyarrow")
    library.parquet = parquet  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow", library)
    assert read(path) == [(1, {"a": 1}), (2, {"a": 2})]
    assert records(path)[2] == "row"
