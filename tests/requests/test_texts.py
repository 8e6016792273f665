"""Files of texts to keep: plain lines and records, what is taken from each, and what is refused."""

import gzip
import json
from pathlib import Path

import pytest

from retcon.errors import RequestError
from retcon.requests import to_dict
from retcon.requests.texts import load_texts
from retcon.testing import tiny_edits


def test_plain_lines_are_texts_and_a_repeated_one_counts_once(tmp_path: Path) -> None:
    file = tmp_path / "keep.txt"
    file.write_text("The sea is\r\n\n  [not a record\nThe sea is\nMálaga\n", encoding="utf-8")
    assert load_texts(file).items == ["The sea is", "[not a record", "Málaga"]
    assert load_texts(file, limit=2).items == ["The sea is", "[not a record"]
    assert len(load_texts(file).sha256) == 64
    packed = tmp_path / "keep.txt.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert load_texts(packed).items == load_texts(file).items


def test_records_give_their_text_their_prompt_or_their_question(tmp_path: Path) -> None:
    file = tmp_path / "keep.jsonl"
    edit = tiny_edits(1)[0]
    records = [
        {"text": "The sea is", "source": "me"},
        {"prompt": "{} is in", "subject": "Rome"},
        {"prompt": "The set {1} is"},
        to_dict(edit) | {"paraphrases": ["Where?"]},
        {"question": "Where was Ada born?", "answer": "London"},
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    wanted = ["The sea is", "Rome is in", "The set {1} is", edit.text, "Where was Ada born?"]
    assert load_texts(file).items == wanted


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", "\n \n", "a.txt is empty; write one text to keep a line"),
        ("a.jsonl", '{"text": "x"}\n{"answer": "x"}\n', 'a.jsonl line 2: the record has no "text", "prompt" or'),
        ("a.jsonl", '{"text": 3}\n', 'a.jsonl line 1: "text" must be a text'),
        ("a.jsonl", '{"text": "x"}\n{oops\n', "a.jsonl line 2: not JSON"),
        ("a.csv", "text\nx\n", "a.csv is a CSV"),
    ],
)
def test_what_holds_no_texts_is_refused_by_line_and_cure(
    tmp_path: Path, name: str, content: str, sentence: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RequestError) as caught:
        load_texts(tmp_path / name)
    assert sentence in str(caught.value)


def test_bad_lines_are_skipped_where_that_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "x"}\n{oops\n{"answer": "x"}\n{"text": "y"}\n')
    found = load_texts(file, skip_bad=True)
    assert found.items == ["x", "y"]
    assert [line.split(":")[0] for line in found.skipped] == ["a.jsonl line 2", "a.jsonl line 3"]
    file.write_text("{oops\n")
    with pytest.raises(RequestError, match="no good line"):
        load_texts(file, skip_bad=True)
    with pytest.raises(RequestError, match="limit is 0"):
        load_texts(file, limit=0)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no file"):
        load_texts(tmp_path / "none.txt")
