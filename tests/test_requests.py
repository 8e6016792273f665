"""Edits and cases: what is accepted, what is refused, and in which words."""

import gzip
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retcon.errors import RequestError
from retcon.requests import (
    Case,
    Edit,
    Forget,
    Probe,
    check_conflicts,
    from_dict,
    literal,
    load_cases,
    load_edits,
    split_prompt,
    text_of,
    tied,
    to_dict,
)

FRANCE = {"prompt": "The capital of {} is", "subject": "France", "target_new": "Rome"}
SPAIN = {"prompt": "The capital of {} is", "subject": "Spain", "target_new": "Oslo", "target_true": "Madrid"}


def jsonl(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "edits.jsonl"


# ---- the nouns ------------------------------------------------------------------------------------------------------


def test_an_edit_fills_its_subject_in_and_trims_its_texts() -> None:
    edit = Edit("{} plays the sport of  ", " LeBron James ", " soccer ", " basketball")
    assert edit.text == "LeBron James plays the sport of"
    assert (edit.prompt, edit.subject, edit.target, edit.old) == (
        "{} plays the sport of",
        "LeBron James",
        "soccer",
        "basketball",
    )


def test_a_newline_at_the_end_of_a_prompt_stays() -> None:
    assert Edit("Where is {}?\n", "Rome", "Norway").prompt == "Where is {}?\n"


def test_an_edit_without_subject_is_its_prompt() -> None:
    assert Edit("The sky is", target="green").text == "The sky is"


def test_a_prompt_without_subject_may_hold_braces() -> None:
    assert Edit("In C a block begins with {", target="begin").text.endswith("{")


def test_a_subject_with_braces_is_filled_in_as_it_is() -> None:
    assert Edit("The set {} is", "{0} {}", "empty").text == "The set {0} {} is"


def test_doubled_braces_beside_the_subject_are_single_ones() -> None:
    assert Edit("The set {{{}}} of {{1}} is", "x", "empty").text == "The set {x} of {1} is"
    assert Edit("{{}} in Python was asked of {}", "Guido", "x").text == "{} in Python was asked of Guido"


@pytest.mark.parametrize("text", ["{", "}", "{}", "{{}", "a {0} b {{x}} {", "plain"])
def test_a_literal_text_comes_back_from_a_prompt_as_it_was(text: str) -> None:
    assert split_prompt(f"{literal(text)}{{}}{literal(text)}") == (text, text)
    assert Edit(f"{literal(text)} {{}} {literal(text)}.", "S", "x").text == f"{text} S {text}."


def test_records_leave_out_what_an_edit_hides() -> None:
    edit = Edit("Where was {} born?", "Ada", "Ask Ada, or ADA. Canada", "London", id="x", hidden=("subject", "old"))
    assert to_dict(edit) == {
        "id": "x",
        "prompt": "Where was {} born?",
        "subject": None,
        "target_new": "Ask {}, or {}. Canada",
        "target_true": None,
        "relation": None,
    }
    assert to_dict(replace(edit, hidden=("prompt",)))["prompt"] is None
    assert text_of(to_dict(replace(edit, hidden=("prompt",)))) is None
    assert text_of(to_dict(replace(edit, hidden=()))) == "Where was Ada born?"
    assert text_of({"prompt": "The {{}} sky is", "subject": None}) == "The {{}} sky is"
    with pytest.raises(RequestError, match="'target' cannot be hidden; of prompt, subject, old any can"):
        Edit("A", target="b", id="x", hidden=("target",))
    with pytest.raises(RequestError, match="needs an id"):
        Edit("A", target="b", hidden=("prompt",))


def test_edits_of_one_tie_stand_together() -> None:
    edits = [Edit(text, target="x", tie=tie) for text, tie in (("A", "t"), ("B", None), ("C", "u"), ("D", "t"))]
    assert tied(edits) == [[0, 3], [1], [2]]
    assert tied([]) == []


def test_a_subject_that_occurs_twice_is_edited_where_the_braces_are() -> None:
    edit = Edit("Paris Hilton said that {} is in", "Paris", "Texas")
    assert edit.text == "Paris Hilton said that Paris is in"
    assert edit.prompt.index("{}") == edit.text.rindex("Paris")


@pytest.mark.parametrize(
    "subject", ["Ingrīda Amantova", "北京", '🦕 the "dinosaur"', "l'Hôpital", "עברית", "São Tomé\u2028x"]
)
def test_unicode_and_quotes_go_through_files_unchanged(file: Path, subject: str) -> None:
    edit = Edit('{} is «called» "a\\b"', subject, "a multi-token täst", "старый", "P1", "x")
    assert load_edits(jsonl(file, to_dict(edit))).items == [edit]
    assert from_dict(to_dict(edit)) == edit


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (("The capital of France is", "France", "Rome"), "no {}; write the subject as {}: 'The capital of {} is'"),
        (("It is", "France", "Rome"), "the prompt has no {}; write the subject as {}"),
        (("The capital of {} is", None, "Rome"), "has {} but there is no subject"),
        (("{} and {} are", "France", "Rome"), "has {} 2 times"),
        (("{} is {x}", "France", "Rome"), "a brace other than the one {}"),
        (("{subject} is", "France", "Rome"), "no {}; write the subject as {}"),
        (("{{}} is", "France", "Rome"), "no {}; write the subject as {}"),
        (("{} is {{x}", "France", "Rome"), "a brace other than the one {}; take it out, or double it"),
        (("", None, "Rome"), "the prompt is empty"),
        (("{} is", " ", "Rome"), "the subject is empty"),
        (("{} is", "France", ""), "the target is empty"),
        (("{} is", "France", "Rome", " "), "the old target is empty"),
        (("{} is", "France", 3), "the target must be text in quotes, not 3"),
        (("{} is", "Fr\ud800nce", "Rome"), "the subject holds a broken character"),
    ],
)
def test_a_wrong_edit_says_what_to_do(fields: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(RequestError) as caught:
        Edit(*fields)
    assert sentence in str(caught.value)


def test_probes_cases_and_questions_are_checked_too() -> None:
    assert Probe("Berlin is in ", ("Germany ",)) == Probe("Berlin is in", ("Germany",))
    assert Forget("Who wrote it? ", " Ann ").answer == "Ann"
    assert Forget("Who?", "Ann", aliases=(" Anne ",)).aliases == ("Anne",)
    with pytest.raises(RequestError, match="an alias is empty"):
        Forget("Who?", "Ann", aliases=("Anne", " "))
    with pytest.raises(RequestError, match="has no answer"):
        Probe("Berlin is in", ())
    with pytest.raises(RequestError, match=r"of paraphrases holds \{\}; write the subject out"):
        Case(Edit("{} is", "France", "Rome"), paraphrases=("What is {}?",))


# ---- files ----------------------------------------------------------------------------------------------------------


def test_edits_come_in_file_order_with_the_hash_of_the_file(file: Path) -> None:
    loaded = load_edits(jsonl(file, FRANCE, SPAIN))
    assert [edit.subject for edit in loaded.items] == ["France", "Spain"]
    assert [edit.old for edit in loaded.items] == [None, "Madrid"]
    assert loaded.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (loaded.skipped, loaded.warnings) == ([], [])


def test_a_case_file_gives_cases_and_bare_edits(file: Path) -> None:
    judged = {
        "paraphrases": ["France's capital is"],
        "neighbours": [{"prompt": "The capital of Italy is", "answer": "Rome"}],
        "generation_prompts": ["France is"],
        "portability": [{"prompt": "France is ruled from", "answer": ["Rome", "Roma"]}],
        "relation": "P36",
        "source": "counterfact",
        "id": 7,
    }
    jsonl(file, FRANCE | judged)
    (case,) = load_cases(file).items
    assert case.paraphrases == ("France's capital is",)
    assert case.neighbours == (Probe("The capital of Italy is", ("Rome",)),)
    assert case.portability[0].answers == ("Rome", "Roma")
    assert load_edits(file).items == [case.edit] == [Edit("The capital of {} is", "France", "Rome", None, "P36", "7")]


def test_judging_fields_cannot_spoil_an_edit(file: Path) -> None:
    jsonl(file, FRANCE | {"paraphrases": 3})
    assert len(load_edits(file).items) == 1
    with pytest.raises(RequestError, match=r'line 1: "paraphrases" must be a list in \[ \], not 3'):
        load_cases(file)


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + json.dumps(FRANCE).encode(),
        json.dumps(FRANCE).encode() + b"\r\n",
        b"\n  \r\n" + json.dumps(FRANCE).encode() + b"\n\n",
        gzip.compress(json.dumps(FRANCE).encode(), mtime=0),
    ],
    ids=["bom", "crlf", "blank lines", "gzip by content"],
)
def test_harmless_differences_of_files_are_read(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    assert load_edits(file).items == [Edit("The capital of {} is", "France", "Rome")]


def test_a_gz_name_over_plain_text_is_read(tmp_path: Path) -> None:
    assert len(load_edits(jsonl(tmp_path / "edits.jsonl.gz", FRANCE)).items) == 1


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "edits.jsonl is empty; write one record a line"),
        (b"\xef\xbb\xbf\n", "edits.jsonl is empty"),
        (b"\n{", "line 2: not JSON ("),
        (b'["a"]', "line 1: JSON, but not an object"),
        (b'{"prompt": "a", "prompt": "b"}', 'line 1: "prompt" stands twice'),
        (b"\n\n\xff\xfex", "line 3: not UTF-8; save the file as UTF-8"),
        ("{}".encode("utf-16"), "edits.jsonl is UTF-16; save it as UTF-8"),
        (b"[" * 100_000, "line 1: not JSON that can be read"),
        (b'{"prompt": "a", "target_new": "\\ud800"}', "line 1: the target holds a broken character"),
        (gzip.compress(b"x" * 999, mtime=0)[:-9], "edits.jsonl is a damaged or cut-off gzip file"),
        (b"\x1f\x8bnot gzip at all", "edits.jsonl is a damaged or cut-off gzip file"),
    ],
    ids=[
        "empty",
        "only a BOM",
        "half an object",
        "a list",
        "a key twice",
        "not UTF-8",
        "UTF-16",
        "too deep",
        "surrogate",
        "cut-off gzip",
        "no gzip",
    ],
)
def test_an_unreadable_file_is_refused_in_one_sentence(file: Path, data: bytes, sentence: str) -> None:
    file.write_bytes(data)
    with pytest.raises(RequestError) as caught:
        load_edits(file)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"there is no file .*none\.jsonl; check the name"):
        load_edits(tmp_path / "none.jsonl")
    with pytest.raises(RequestError, match="cannot be read"):
        load_edits(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"target_nwe": "x"}, 'line 2: unknown key "target_nwe"; did you mean "target_new"?'),
        ({"colour": "x"}, 'line 2: unknown key "colour"; known are id, prompt, subject, target_new'),
        ({"target": "x"}, 'line 2: the record has "target" and "target_new", which mean the same; keep one'),
        ({"target_new": 1999}, 'line 2: "target_new" must be text in quotes, not 1999'),
        ({"target_new": None}, 'line 2: "target_new" must be text in quotes, not null'),
        ({"prompt": "The capital is"}, "line 2: the prompt has no {}; write the subject as {}"),
        ({"subject": None}, "line 2: the prompt has {} but there is no subject"),
        ({"subject": ["France"]}, 'line 2: "subject" must be text in quotes, not ["France"]'),
    ],
)
def test_a_wrong_record_names_its_line_its_key_and_the_cure(file: Path, change: dict[str, Any], sentence: str) -> None:
    jsonl(file, SPAIN, FRANCE | change)
    with pytest.raises(RequestError) as caught:
        load_edits(file)
    assert f"edits.jsonl {sentence}" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"neighbours": [{"prompt": "a"}]}, '"neighbours[0].answer" is missing; add it'),
        ({"neighbours": [{"prompt": "a", "answer": 1}]}, '"neighbours[0].answer" must be text in quotes, not 1'),
        ({"neighbours": ["a"]}, '"neighbours[0]" must be an object in { }, not "a"'),
        ({"neighbours": [{"prompt": "a", "answr": "b"}]}, 'unknown key "answr"; did you mean "answer"?'),
        ({"portability": [{"prompt": "a", "answer": []}]}, "the probe 'a' has no answer"),
        ({"paraphrases": ["a", 3]}, '"paraphrases[1]" must be text in quotes, not 3'),
        ({"paraphrases": [" "]}, "a prompt of paraphrases is empty"),
    ],
)
def test_a_wrong_case_names_the_place(file: Path, change: dict[str, Any], sentence: str) -> None:
    jsonl(file, FRANCE | change)
    with pytest.raises(RequestError) as caught:
        load_cases(file)
    assert sentence in str(caught.value)


def test_a_misspelt_key_is_named_rather_than_the_missing_one(file: Path) -> None:
    with pytest.raises(RequestError, match='line 1: unknown key "trget_new"; did you mean "target_new"'):
        load_edits(jsonl(file, {"prompt": "The sky is", "trget_new": "green"}))


def test_a_missing_key_is_named(file: Path) -> None:
    with pytest.raises(RequestError, match='line 1: "target_new" is missing; add it'):
        load_edits(jsonl(file, {"prompt": "The sky is"}))


def test_skip_bad_lists_what_it_skips(file: Path) -> None:
    file.write_bytes(json.dumps(FRANCE).encode() + b"\n{oops\n\xff\n" + json.dumps(SPAIN).encode())
    loaded = load_edits(file, skip_bad=True)
    assert len(loaded.items) == 2
    assert [sentence.split(":")[0] for sentence in loaded.skipped] == ["edits.jsonl line 2", "edits.jsonl line 3"]


def test_skip_bad_of_everything_is_an_error(file: Path) -> None:
    file.write_text("{oops\n{oops\n")
    with pytest.raises(RequestError, match="has no good record; the first of 2 is edits.jsonl line 1"):
        load_edits(file, skip_bad=True)


def test_limit_takes_the_first_good_records(file: Path) -> None:
    file.write_text("{oops\n" + json.dumps(FRANCE) + "\n" + json.dumps(SPAIN) + "\n{oops\n")
    loaded = load_edits(file, limit=1, skip_bad=True)
    assert ([edit.subject for edit in loaded.items], len(loaded.skipped)) == (["France"], 1)
    with pytest.raises(RequestError, match="the limit is 0; take at least 1"):
        load_edits(file, limit=0)


# ---- CSV ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".CSV", ".csv.gz"])
def test_a_csv_is_read_with_target_as_an_alias(tmp_path: Path, suffix: str) -> None:
    quoted = '"{}, the ""old"" one, is in", Rome ,Oslo,'
    text = f"\ufeffprompt,subject,target,target_true\r\n{quoted}\r\n\r\nThe sky is,,green,blue\r\n"
    path = tmp_path / f"edits{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    assert load_edits(path).items == [
        Edit('{}, the "old" one, is in', "Rome", "Oslo"),
        Edit("The sky is", None, "green", "blue"),
    ]
    assert load_cases(path).items[0].paraphrases == ()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "edits.csv is empty; write one record a line, such as The capital"),
        ("prompt,subject,target_new\n", "edits.csv is empty"),
        ("prompt;subject;target_new\nThe sky is;;green\n", "line 1: the columns are not separated by commas"),
        ("question,target_new\n", 'line 1: the header has no "prompt"'),
        ("prompt,paraphrases\n", 'line 1: unknown column "paraphrases"; a CSV has id, prompt'),
        ("prompt,prompt\n", "line 1: a column stands twice"),
        ("prompt,target\nA, b,c\n", "line 2: 3 cells under 2 columns; put a cell that has a comma in quotes"),
        ("prompt,target\nA,b\n\n,c\n", "line 4: the prompt is empty"),
        ("prompt,target\nA,\n", "line 2: the target is empty"),
        ("prompt\nA\n", 'line 2: "target_new" is missing'),
        ('prompt,target\n"A\nB",c\n{} is,d\n', "line 4: the prompt has {} but there is no subject"),
        ('prompt,target\nA,b\n"C,d\n', "line 3: not CSV (unexpected end of data); check the quotes"),
        ("prompt,target,target_new\nA,b,c\n", 'line 2: the record has "target" and "target_new"'),
    ],
)
def test_a_wrong_csv_names_the_line_and_the_cure(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "edits.csv"
    path.write_text(text)
    with pytest.raises(RequestError) as caught:
        load_edits(path)
    assert sentence in str(caught.value)


def test_a_bad_row_of_a_csv_is_skipped_on_request(tmp_path: Path) -> None:
    path = tmp_path / "edits.csv"
    path.write_bytes(b"prompt,target\nA,b\nC\nD,\xff\nE,f\n")
    loaded = load_edits(path, skip_bad=True)
    assert [edit.prompt for edit in loaded.items] == ["A", "E"]
    assert ["line 3" in loaded.skipped[0], "line 4: not UTF-8" in loaded.skipped[1]] == [True, True]


# ---- conflicts ------------------------------------------------------------------------------------------------------


def test_different_targets_for_one_text_are_refused_with_both_lines_named(file: Path) -> None:
    jsonl(file, FRANCE, SPAIN, FRANCE | {"target_new": "Bonn"})
    with pytest.raises(RequestError) as caught:
        load_edits(file)
    assert str(caught.value) == (
        "edits.jsonl: line 1 and line 3 give 'The capital of France is' different targets ('Rome', 'Bonn'); "
        "remove one, or ask to keep the last"
    )


def test_the_last_of_conflicting_edits_is_kept_on_request(file: Path) -> None:
    jsonl(file, FRANCE, FRANCE, SPAIN, FRANCE | {"target_new": "Bonn"}, FRANCE)
    loaded = load_edits(file, conflicts="last")
    assert [(edit.subject, edit.target) for edit in loaded.items] == [("Spain", "Oslo"), ("France", "Rome")]
    assert "edits.jsonl: line 4 overrules line 1 and line 2" in loaded.warnings[1]
    assert "edits.jsonl: line 5 overrules line 4" in loaded.warnings[2]


def test_a_conflict_is_seen_through_another_split_of_the_text() -> None:
    edits = [Edit("The capital of {} is", "France", "Rome"), Edit("The capital of France is", None, "Bonn")]
    with pytest.raises(RequestError, match="edit 1 and edit 2 give"):
        check_conflicts(edits)


def test_different_targets_for_one_subject_and_relation_only_warn(file: Path) -> None:
    twin = FRANCE | {"relation": "P36"}
    jsonl(file, twin, twin | {"prompt": "{} is ruled from", "target_new": "Bonn"}, FRANCE | {"prompt": "{}'s capital:"})
    loaded = load_edits(file)
    assert len(loaded.items) == 3
    assert loaded.warnings == [
        "edits.jsonl: line 1 and line 2 give 'France' different targets for P36 ('Rome', 'Bonn')"
    ]


def test_repeats_ids_used_twice_and_edits_that_change_nothing_only_warn() -> None:
    same = Edit("The sky is", target="green", old="green", id="a")
    kept, warnings = check_conflicts([same, same])
    assert kept == [0, 1]
    assert [warning.split(":")[0] for warning in warnings] == [
        "edit 2 repeats edit 1",
        "edit 1 changes nothing",
        "edit 2 changes nothing",
        "edit 2 has the id of edit 1, 'a'",
    ]


def test_an_unknown_way_with_conflicts_is_refused() -> None:
    with pytest.raises(RequestError, match="one of 'error', 'last'"):
        check_conflicts([], "first")  # type: ignore[arg-type]
