"""The whole evaluation: what the model writes by itself, running text, tasks, several facts a subject."""

import pytest
from tests.evaluate.conftest import TEXT, Slow, average

from retcon import tokens
from retcon.evaluate import Report, evaluate
from retcon.evaluate.prefixes import passages
from retcon.lm import LM
from retcon.metrics.match import gen_start
from retcon.patch import Patch
from retcon.requests import Case, Edit, Probe


def test_free_running_figures_are_those_of_the_definitions(lm: LM, cases: list[Case], patch: Patch) -> None:
    slow = Slow(lm)

    def said(prompt: str) -> str:
        return tokens.decode(lm, slow.says(prompt, 10)).strip().partition("\n")[0]

    def begins(prompt: str, answers: tuple[str, ...]) -> float:
        return float(gen_start(said(prompt), answers) or 0.0)

    def whole(prompt: str) -> str:
        """What the model says but for the last word, which may go on."""
        return " ".join(said(prompt).split()[:-1])

    free = []
    for n, case in enumerate(cases[:5]):  # what the model says anyway counts as an alias, or as right
        own = (whole(case.edit.text) if n % 2 else "") or "nothing"
        near = tuple(Probe(one.prompt, (whole(one.prompt) or "nothing",)) for one in case.neighbours[:2])
        hop = f"{case.edit.text} a"
        probes = (Probe(hop, (whole(hop) or "nothing",), "two-hop"), Probe("In the", ("x",), "alias"))
        free.append(Case(case.edit, case.paraphrases, near, portability=probes, aliases=(own,)))
    known = {one.prompt for case in free for one in case.neighbours if begins(one.prompt, one.answers)}
    wanted = ["efficacy_gen", "generalization_gen", "portability_gen", "two_hop_gen", "specificity_gen"]

    def defined() -> dict[str, float]:
        names = {case.edit.text: (case.edit.target, *case.aliases) for case in free}
        return {
            "efficacy_gen": average(begins(c.edit.text, names[c.edit.text]) for c in free),
            "generalization_gen": average(begins(text, names[c.edit.text]) for c in free for text in c.paraphrases),
            "portability_gen": average(begins(one.prompt, one.answers) for c in free for one in c.portability),
            "two_hop_gen": average(begins(c.portability[0].prompt, c.portability[0].answers) for c in free),
            "specificity_gen": average(
                average(begins(one.prompt, one.answers) for one in near)
                for near in ([one for one in c.neighbours if one.prompt in known] for c in free)
                if near
            ),
        }

    before = defined()
    with patch.on(lm.model):
        after = defined()
    report = evaluate(lm, free, patch=patch, metrics=wanted)
    assert report.before == pytest.approx(before)
    assert report.metrics == pytest.approx(after)
    assert 0 < before["efficacy_gen"] < 1 == before["specificity_gen"]
    assert after != before
    assert report.details["specificity_gen"] == {"neighbours": 10, "answered_right_before": len(known)}
    assert len(known) > 5
    assert report.details["portability"]["two-hop"]["before"] == before["two_hop_gen"]
    assert str(report.cases[1]["written"]["before"]).startswith(whole(free[1].edit.text))
    assert [one["kind"] for one in report.cases[0]["portability"]] == ["two-hop", "alias"]


def test_running_text_gives_strict_efficacy_by_its_length(lm: LM, cases: list[Case], patch: Patch) -> None:
    report = evaluate(lm, cases, patch=patch, metrics=["efficacy"], prefix_tokens=(0, 20), text=TEXT)
    found = report.details["prefix_tokens"]
    assert list(found) == ["0", "20"]
    assert found["0"]["efficacy_prefixed"] == report.metrics["efficacy"]
    slow, texts = Slow(lm), passages(lm, TEXT, (20,), 0)[20]
    with patch.on(lm.model):
        expected = average(slow.gives(f"{text}. {c.edit.text}", c.edit.target) for c in cases for text in texts)
    assert found["20"]["efficacy_prefixed"] == pytest.approx(expected)
    assert list(report.metrics) == ["efficacy"]


def test_tasks_are_figures_before_and_after(lm: LM, cases: list[Case], patch: Patch) -> None:
    report = evaluate(lm, cases[:2], patch=patch, metrics=["efficacy"], tasks=["common_sense"])
    assert list(report.metrics) == list(report.before) == ["efficacy", "ability_common_sense"]
    found = report.details["ability"]["common_sense"]
    assert report.metrics["ability_common_sense"] == pytest.approx(sum(found["hits"]) / 101)
    assert report.before["ability_common_sense"] == pytest.approx(sum(found["hits_before"]) / 101)
    assert found["hits"] != found["hits_before"]
    assert "ability_common_sense" in report.intervals
    assert Report.from_json(report.to_json()).details == report.details


def test_several_facts_of_a_subject_have_figures_by_their_number(lm: LM, cases: list[Case]) -> None:
    one = cases[0].edit
    more = [*cases[:2], Case(Edit("The mother tongue of {} is", one.subject, "Greek"))]
    report = evaluate(lm, more, metrics=["efficacy"])
    assert {count: group["facts"] for count, group in report.details["facts_of_the_subject"].items()} == {
        "1": 1,
        "2": 2,
    }
