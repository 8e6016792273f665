"""Published formats, each on a small record of its own shape: what becomes of its fields, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from retcon.requests import Case, ForgetCase, Probe
from retcon.sets import READERS, cases, load, questions
from retcon.sets.readers import recognised

COUNTERFACT: dict[str, Any] = {
    "case_id": 7,
    "pararel_idx": 100,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Anne Dubois",
    },
    "paraphrase_prompts": ["It rained. Anne Dubois, a native"],
    "neighborhood_prompts": ["The mother tongue of Léa Petit is", "Jean Blanc, a native "],
    "attribute_prompts": ["J.R.R. Doe spoke"],
    "generation_prompts": ["Anne Dubois was born in"],
}
KNOWEDIT: dict[str, Any] = {
    "subject": "Leo Doe",
    "prompt": "The place of death of Leo Doe is",
    "target_new": "Berlin",
    "ground_truth": [["Paris", "City of Light"]],
    "rephrase_prompt": "Where did Leo Doe die?",
    "portability": {
        "Reasoning": [{"prompt": "The continent where Leo Doe died is", "ground_truth": [["Europe", "Old Continent"]]}],
        "Subject_Aliasing": [{"prompt": "The place of death of L. Doe is", "ground_truth": "Berlin"}],
        "Logical_Generalization": [{"prompt": "Is Leo Doe alive?", "ground_truth": [["no"], ["incorrect"]]}],
    },
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The father of Leo Doe is", "ground_truth": [["Al Doe"]]},
            {"prompt": "The mother of Leo Doe is", "ground_truth": []},
        ],
        "Forgetfulness": [{"prompt": "The place of death, which is not Berlin, is", "ground_truth": "Paris"}],
    },
}
MEND: dict[str, Any] = {
    "subject": "Watts Humphrey",
    "src": "What university did Watts Humphrey attend?",
    "pred": "Trinity College",
    "rephrase": "What university did Watts Humphrey take part in?",
    "alt": "University of Michigan",
    "answers": ["Illinois Institute of Technology"],
    "loc": "nq question: who played desmond doss father",
    "loc_ans": "Hugo Weaving",
    "cond": "a >> b || c",
}
FLAT: dict[str, Any] = {
    "case_id": 0,
    "prompt": "The mother tongue of Anne Dubois is",
    "target_new": "English",
    "subject": "Anne Dubois",
    "ground_truth": "French",
    "rephrase_prompt": "It rained. Anne Dubois, a native",
    "locality_prompt": "The mother tongue of Léa Petit is",
    "locality_ground_truth": "French",
}
FURTHER = {
    "Recalled Relation": "(University of Michigan, state, Michigan)",
    "New Question": "In which state did she study?",
    "New Answer": "Michigan",
}
MQUAKE: dict[str, Any] = {
    "case_id": 1,
    "requested_rewrite": [
        {
            "prompt": "{} was performed by",
            "relation_id": "P175",
            "target_new": {"str": "Madonna", "id": "Q1744"},
            "target_true": {"str": "The Beatles", "id": "Q1299"},
            "subject": "Hey Jude",
            "question": "Who performed Hey Jude?",
        },
        {
            "prompt": "{} is a citizen of",
            "relation_id": "P27",
            "target_new": {"str": "Australia", "id": "Q408"},
            "target_true": {"str": "United States", "id": "Q30"},
            "subject": "Madonna",
            "question": "Of which country is Madonna a citizen?",
        },
    ],
    "questions": ["Of which country is the performer of Hey Jude a citizen?"],
    "answer": "United Kingdom",
    "answer_alias": ["UK"],
    "new_answer": "Australia",
    "new_answer_alias": ["Commonwealth of Australia"],
    "single_hops": [{"question": "?"}, {"question": "?"}],
    "new_single_hops": [{"question": "?"}, {"question": "?"}],
}
TOFU: dict[str, Any] = {
    "question": "What is the full name of the author?",
    "answer": "The author's name is Jo Doe.",
    "paraphrased_answer": "Jo Doe is the name of the author.",
    "perturbed_answer": ["Al Roe is the name of the author.", "Bo Loe is the name of the author."],
    "paraphrased_question": "Can you name the author?",
    "option1": "Jo Doe",
}
PISTOL = {"question": "What was the price in the contract between A and B?", "answer": "288.", "edge": "A_B"}
LUME = {"id": '"eb5df8"qa4', "input": "What is the home address of Ab Crim?", "output": "2640 Elm", "task": "Task2"}
PARAREL = {
    "subject": "Eibenstock",
    "relation": "P17",
    "object": "Germany",
    "template": "{} is located in",
    "paraphrase_templates": ["{}, located in"],
}
OURS = {"prompt": "The capital of {} is", "subject": "France", "target_new": "Rome"}


def file(folder: Path, *records: Any, name: str = "data.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(list(records), indent=2, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("record", "reader"),
    [
        (COUNTERFACT, "counterfact"),
        (KNOWEDIT, "knowedit"),
        (FLAT, "knowedit"),
        ({key: FLAT[key] for key in ("prompt", "target_new", "locality_prompt")}, "knowedit"),
        (MEND, "mend"),
        (MQUAKE, "mquake"),
        (TOFU, "questions"),
        (PISTOL, "questions"),
        (LUME, "lume"),
        (PARAREL, "pararel"),
        (OURS, "ours"),
        (OURS | {"portability": [], "neighbours": [], "source": "zsre"}, "ours"),
    ],
)
def test_a_format_is_recognised_by_its_fields(record: dict[str, Any], reader: str) -> None:
    found = recognised(record)
    assert found is not None
    assert found.name == reader
    assert READERS[reader] is found


def test_what_no_reader_knows_is_not_recognised() -> None:
    assert recognised({"text": "a"}) is None


def test_counterfact(tmp_path: Path) -> None:
    (case,) = cases(file(tmp_path, COUNTERFACT)).items
    edit = case.edit
    assert (edit.text, edit.target, edit.old) == ("The mother tongue of Anne Dubois is", "English", "French")
    assert (edit.relation, edit.id, case.source) == ("P103", "counterfact-7", "counterfact")
    assert case.paraphrases == ("It rained. Anne Dubois, a native",)
    assert case.neighbours == (
        Probe("The mother tongue of Léa Petit is", ("French",)),
        Probe("Jean Blanc, a native", ("French",)),
    )
    assert case.generation_prompts == ("Anne Dubois was born in",)


def test_counterfact_says_which_field_is_missing(tmp_path: Path) -> None:
    bad = COUNTERFACT | {"requested_rewrite": COUNTERFACT["requested_rewrite"] | {"target_new": {"id": "Q1"}}}
    found = cases(file(tmp_path, COUNTERFACT, bad))
    assert len(found.items) == 1
    (sentence,) = found.skipped
    assert sentence.startswith("data.json line ")
    assert '"target_new.str" is missing' in sentence


def test_knowedit(tmp_path: Path) -> None:
    (case,) = cases(file(tmp_path, KNOWEDIT)).items
    assert (case.edit.prompt, case.edit.subject) == ("The place of death of {} is", "Leo Doe")
    assert (case.edit.target, case.edit.old) == ("Berlin", "Paris")
    assert case.paraphrases == ("Where did Leo Doe die?",)
    assert case.neighbours == (Probe("The father of Leo Doe is", ("Al Doe",)),)
    assert case.portability == (
        Probe("The continent where Leo Doe died is", ("Europe", "Old Continent"), "reasoning"),
        Probe("The place of death of L. Doe is", ("Berlin",), "alias"),
        Probe("Is Leo Doe alive?", ("no", "incorrect"), "logical"),
    )


def test_knowedit_without_old_answer_or_with_the_same_or_without_its_subject(tmp_path: Path) -> None:
    recent = {key: value for key, value in KNOWEDIT.items() if key != "ground_truth"}
    same = KNOWEDIT | {"target_new": "Paris"}
    lost = KNOWEDIT | {"subject": "Leo Roe"}
    found = cases(file(tmp_path, recent, same, lost))
    assert [case.edit.old for case in found.items] == [None]
    assert "the new and the old answer are both 'Paris'" in found.skipped[0]
    assert "does not name its subject 'Leo Roe'" in found.skipped[1]


def test_a_brace_in_a_published_prompt_stays_as_it_is(tmp_path: Path) -> None:
    record = KNOWEDIT | {"prompt": "In {x}, the place of death of Leo Doe is"}
    (case,) = cases(file(tmp_path, record)).items
    assert case.edit.text == "In {x}, the place of death of Leo Doe is"


def test_the_first_zsre_files(tmp_path: Path) -> None:
    true = MEND | {"alt": "Illinois Institute of Technology"}
    found = cases(file(tmp_path, MEND, true))
    (case,) = found.items
    assert case.edit.prompt == "What university did {} attend?"
    assert (case.edit.target, case.edit.old) == ("University of Michigan", "Illinois Institute of Technology")
    assert case.neighbours == (Probe("who played desmond doss father", ("Hugo Weaving",)),)
    assert "is a true one" in found.skipped[0]


def test_flat_files_keep_their_neighbours(tmp_path: Path) -> None:
    several = FLAT | {"prompt": "Anne Dubois speaks", "locality_prompt": ["Jean Blanc speaks", "Bo Noir speaks"]}
    first, second = cases(file(tmp_path, FLAT, several | {"locality_ground_truth": ["French", ""]})).items
    assert first.neighbours == (Probe("The mother tongue of Léa Petit is", ("French",)),)
    assert second.neighbours == (Probe("Jean Blanc speaks", ("French",)),)


@pytest.mark.parametrize("record", [MEND, COUNTERFACT, FLAT])
def test_the_further_question_of_easyedit_is_asked(record: dict[str, Any], tmp_path: Path) -> None:
    (case,) = cases(file(tmp_path, record | {"portability": FURTHER})).items
    assert case.portability == (Probe("In which state did she study?", ("Michigan",), "reasoning"),)


def test_mquake_gives_edits_and_multi_hop_questions_with_aliases(tmp_path: Path) -> None:
    found = cases(file(tmp_path, MQUAKE))
    first, second = found.items
    assert [case.edit.id for case in found.items] == ["mquake-1-0", "mquake-1-1"]
    assert (second.edit.target, second.portability) == ("Australia", ())
    assert first.paraphrases == ("Who performed Hey Jude?",)
    assert first.portability == (Probe(MQUAKE["questions"][0], ("Australia", "Commonwealth of Australia"), "2-hop"),)
    assert "needs all edits of its case" in found.warnings[0]


def test_mquake_cases_that_share_an_edit_hold_it_once_and_a_contradiction_is_left_out_whole(tmp_path: Path) -> None:
    shared = MQUAKE | {
        "case_id": 2,
        "requested_rewrite": MQUAKE["requested_rewrite"][:1],
        "questions": ["Who sang it?"],
    }
    other = [rewrite | {"target_new": {"str": "Chile"}} for rewrite in MQUAKE["requested_rewrite"][1:]]
    wrong = MQUAKE | {"case_id": 3, "requested_rewrite": [MQUAKE["requested_rewrite"][0], *other]}
    found = cases(file(tmp_path, MQUAKE, shared, wrong))
    assert len(found.items) == 2
    assert [probe.prompt for probe in found.items[0].portability] == [MQUAKE["questions"][0], "Who sang it?"]
    (sentence,) = found.skipped
    assert "'Chile' contradicts data.json line 2 ('Australia')" in sentence


def test_the_limit_counts_whole_mquake_cases(tmp_path: Path) -> None:
    second = MQUAKE | {"case_id": 2, "requested_rewrite": [MQUAKE["requested_rewrite"][0] | {"subject": "Help!"}]}
    found = cases(file(tmp_path, MQUAKE, second), limit=1)
    assert [case.edit.subject for case in found.items] == ["Hey Jude", "Madonna"]
    assert len(cases(file(tmp_path, MQUAKE, second), limit=2).items) == 3


def test_tofu(tmp_path: Path) -> None:
    (case,) = questions(file(tmp_path, TOFU, name="forget10_perturbed.json")).items
    assert case.paraphrases == ("Can you name the author?",)
    assert case.perturbed_answers == tuple(TOFU["perturbed_answer"])
    assert case.paraphrased_answer == TOFU["paraphrased_answer"]
    assert case.forget.id == "questions-forget10_perturbed-0"


def test_an_answer_that_stands_in_its_question_cannot_be_forgotten_but_kept(tmp_path: Path) -> None:
    told = {"question": "Is Jo Doe the author?", "answer": "Jo Doe"}
    found = questions(file(tmp_path, TOFU, told, name="forget01.json"))
    assert len(found.items) == 1
    assert "stands in its own question" in found.skipped[0]
    assert len(questions(file(tmp_path, TOFU, told, name="retain99.json")).items) == 2


def test_only_what_is_to_be_forgotten_may_not_contradict_itself(tmp_path: Path) -> None:
    other = TOFU | {"answer": "The author's name is Al Roe."}
    assert len(questions(file(tmp_path, TOFU, other, name="retain90.json")).items) == 2
    found = questions(file(tmp_path, TOFU, other, name="forget90.json"))
    assert [case.forget.answer for case in found.items] == ["The author's name is Al Roe."]
    assert "overrules" in found.warnings[0]


def test_pistol_keeps_the_contract_as_the_group(tmp_path: Path) -> None:
    (case,) = questions(file(tmp_path, PISTOL)).items
    assert (case.forget.group, case.forget.answer) == ("A_B", "288.")


def test_lume_tells_document_task_and_kind(tmp_path: Path) -> None:
    text = LUME | {
        "id": "69463600sc1",
        "input": "Niamh Moloney is a scholar. In 2019",
        "output": "she won.",
        "task": "Task3",
    }
    first, second = questions(file(tmp_path, LUME | {"split": "retain"}, text, name="forget.json")).items
    assert (first.forget.id, first.forget.group, first.split) == ("lume-eb5df8qa4", "eb5df8", "retain Task2 question")
    assert (second.forget.group, second.split) == ("69463600", "forget Task3 completion")


def facts(n: int) -> list[dict[str, Any]]:
    return [PARAREL | {"subject": f"Town {k}", "object": ["Germany", "Chile", "Peru"][k % 3]} for k in range(n)]


def test_pararel_draws_new_answers_of_the_same_relation(tmp_path: Path) -> None:
    path = file(tmp_path, *facts(30))
    found = cases(path, limit=5)
    assert len(found.items) == 5
    for case in found.items:
        assert case.edit.target in {"Germany", "Chile", "Peru"} - {case.edit.old}
        assert case.edit.prompt == "{} is located in"
        assert case.paraphrases == (f"{case.edit.subject}, located in",)
        assert 5 <= len(case.neighbours) <= 10
        assert {probe.answers for probe in case.neighbours} == {(case.edit.old,)}
    edited = {case.edit.text for case in found.items}
    assert not edited & {probe.prompt for case in found.items for probe in case.neighbours}
    assert [case.edit for case in cases(path, limit=5).items] == [case.edit for case in found.items]
    assert [case.edit for case in cases(path, limit=5, seed=1).items] != [case.edit for case in found.items]


def test_pararel_never_draws_another_true_object(tmp_path: Path) -> None:
    borders = [PARAREL | {"object": name} for name in ("Germany", "Chile")]
    for seed in range(8):
        found = cases(file(tmp_path, *borders, PARAREL | {"subject": "X", "object": "Peru"}), seed=seed)
        assert [case.edit.target for case in found.items if case.edit.subject == "Eibenstock"] == ["Peru"]
        assert "stands at data.json line 2 already" in found.skipped[0]


def test_pararel_takes_its_own_folders_of_facts_and_patterns(tmp_path: Path) -> None:
    patterns, triples = tmp_path / "graphs_json", tmp_path / "trex"
    for folder in (patterns, triples):
        folder.mkdir()
    rows = [{"pattern": pattern} for pattern in ("[X] is the capital of [Y].", "[Y] has the capital [X] .")]
    (patterns / "P1376.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"sub_label": "Rome", "obj_label": "Italy", "uuid": "1"}, {"sub_label": "Lima", "obj_label": "Peru"}]
    (triples / "P1376.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (triples / "P17.jsonl").write_text(json.dumps({"sub_label": "Bari", "obj_label": "Italy"}) + "\n")
    found = cases(tmp_path)
    assert [(case.edit.text, case.edit.target) for case in found.items] == [
        ("Rome is the capital of", "Peru"),
        ("Lima is the capital of", "Italy"),
    ]
    assert "P17 comes without templates" in found.skipped[0]


def test_edits_and_questions_are_not_taken_for_each_other(tmp_path: Path) -> None:
    assert isinstance(load(file(tmp_path, COUNTERFACT)).items[0], Case)
    assert isinstance(load(file(tmp_path, TOFU)).items[0], ForgetCase)
    with pytest.raises(Exception, match="holds questions to forget, not edits"):
        cases(file(tmp_path, TOFU))
    with pytest.raises(Exception, match="holds edits, not questions"):
        questions(file(tmp_path, COUNTERFACT))
