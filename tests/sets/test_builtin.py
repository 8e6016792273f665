"""The set that ships with Retcon: enough of it, consistent, and what its second hops say follows from its tables."""

from collections import Counter, defaultdict
from functools import cache

import pytest

from retcon.errors import RequestError
from retcon.metrics.texts import normal
from retcon.requests import Case, case_from_dict, case_to_dict, check_conflicts
from retcon.sets.builtin import Relation, Tables, compose, parse, tables
from retcon.sets.export import lines

KNOWN = tables()


@cache
def cases(seed: int = 0) -> list[Case]:
    return compose(seed)


def subjects(relation: Relation) -> dict[str, str]:
    """How a sentence calls a subject -> its name in the tables."""
    return {KNOWN.said(name): name for name in relation.answers}


def edited(seed: int = 0) -> dict[tuple[str, str], str]:
    """Relation and subject -> new answer, of all edits of the set."""
    found = {}
    for case in cases(seed):
        relation = KNOWN.relations[str(case.edit.relation)]
        found[relation.name, subjects(relation)[str(case.edit.subject)]] = case.edit.target
    return found


def test_there_are_enough_facts_of_enough_relations_with_enough_questions() -> None:
    counts = Counter(case.edit.relation for case in cases())
    assert len(cases()) >= 500
    assert len(counts) >= 10
    assert min(counts.values()) >= 20
    assert all(len(case.paraphrases) >= 2 for case in cases())
    assert all(len(case.neighbours) >= 3 for case in cases())
    assert all(case.generation_prompts for case in cases())
    assert sum(bool(case.portability) for case in cases()) >= 500
    assert {probe.kind for case in cases() for probe in case.portability} == {"two-hop"}


def test_a_short_beginning_of_the_set_has_many_relations() -> None:
    assert len({case.edit.relation for case in cases()[:50]}) >= 10


def test_every_case_comes_back_from_its_record_and_nothing_contradicts() -> None:
    for case in cases():
        assert case_from_dict(case_to_dict(case)) == case
    kept, warnings = check_conflicts([case.edit for case in cases()])
    assert (len(kept), warnings) == (len(cases()), [])
    assert len({case.edit.id for case in cases()}) == len(cases())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_new_answer_is_another_of_the_relation_and_never_true(seed: int) -> None:
    for (name, subject), target in edited(seed).items():
        relation = KNOWN.relations[name]
        assert target in relation.answers.values()
        true = {relation.answers[subject]} | relation.also[subject]
        said = {normal(wording) for answer in true for wording in KNOWN.names(answer)}
        assert not said & {normal(wording) for wording in KNOWN.names(target)}, (name, subject, target)


@pytest.mark.parametrize("seed", [0, 1])
def test_neighbours_are_true_unedited_and_tell_the_new_answer_apart(seed: int) -> None:
    changed = edited(seed)
    texts = {case.edit.text for case in cases(seed)}
    for case in cases(seed):
        relation = KNOWN.relations[str(case.edit.relation)]
        by_prompt = {relation.prompt.replace("{}", said): name for said, name in subjects(relation).items()}
        for probe in case.neighbours:
            other = by_prompt[probe.prompt]
            assert probe.prompt not in texts
            assert (relation.name, other) not in changed
            assert probe.answers == KNOWN.names(relation.answers[other])
            assert case.edit.target not in {*probe.answers, *relation.also[other]}


def test_neighbours_with_the_same_old_answer_come_first() -> None:
    for case in cases():
        same = [case.edit.old in probe.answers for probe in case.neighbours]
        assert same == sorted(same, reverse=True)
    shared = [case for case in cases() if case.edit.relation in ("continent", "animal_class")]
    assert all(case.edit.old in case.neighbours[0].answers for case in shared)


@pytest.mark.parametrize("seed", [0, 1])
def test_second_hops_hold_after_all_edits_together(seed: int) -> None:
    """The world after all edits is looked up afresh, with nothing of the composer's own bookkeeping."""
    world = {name: dict(relation.answers) for name, relation in KNOWN.relations.items()}
    for (name, subject), target in edited(seed).items():
        world[name][subject] = target
    asked = 0
    for case in cases(seed):
        relation = KNOWN.relations[str(case.edit.relation)]
        name = subjects(relation)[str(case.edit.subject)]
        answers = {prompt.replace("{}", KNOWN.said(name)): via for prompt, via in relation.hops}
        for probe in case.portability:
            first = world[relation.name][name]
            tables_of = [world.get(source, KNOWN.maps.get(source, {})) for source in answers[probe.prompt]]
            said = next(found[first] for found in tables_of if first in found)
            assert probe.answers == KNOWN.names(said)
            before = [found[relation.answers[name]] for found in _before(answers[probe.prompt], relation.answers[name])]
            assert said not in before[:1], (probe.prompt, said)
            asked += 1
    assert asked >= 700


def _before(via: tuple[str, ...], subject: str) -> list[dict[str, str]]:
    sources = [KNOWN.relations[name].answers if name in KNOWN.relations else KNOWN.maps[name] for name in via]
    return [dict(source) for source in sources if subject in source]


def test_the_set_is_the_same_each_time_and_another_with_another_seed() -> None:
    assert lines(compose(0)) == lines(cases(0))
    assert [case.edit.id for case in cases(0)[:50]] != [case.edit.id for case in cases(1)[:50]]
    assert edited(0) != edited(1)


def test_every_name_in_the_tables_is_used() -> None:
    answers = {answer for relation in KNOWN.relations.values() for answer in relation.answers.values()}
    answers |= {answer for table in KNOWN.maps.values() for answer in table.values()}
    assert set(KNOWN.aliases) <= answers
    names = {subject for relation in KNOWN.relations.values() for subject in relation.answers}
    assert set(KNOWN.articles) <= names
    used = {name for relation in KNOWN.relations.values() for _, via in relation.hops for name in via}
    assert used <= {*KNOWN.relations, *KNOWN.maps}
    assert set(KNOWN.maps) <= used
    for relation in KNOWN.relations.values():
        assert all(text.count("{}") == 1 for text in (relation.prompt, *relation.paraphrases, *relation.openings))
        others: dict[str, set[str]] = defaultdict(set)
        for subject, also in relation.also.items():
            others[relation.answers[subject]] |= also
        assert all(answer not in also for answer, also in others.items())


def table(facts: str) -> Tables:
    texts = {"prompt": "{} is", "paraphrases": ["so {} is"], "openings": ["{}"]}
    return parse({"relations": {"colour": texts | {"facts": facts}}})


def test_a_subject_that_stands_twice_and_a_line_without_an_answer_are_refused() -> None:
    with pytest.raises(RequestError, match="colour: 'sky' stands twice"):
        table("blue: sky, sea\ngrey: sky")
    with pytest.raises(RequestError, match="is no line of facts"):
        table("blue sky")


def test_what_is_also_true_is_not_drawn() -> None:
    known = table("blue: sky (grey/red), sea\ngrey: stone\nred: rose\ngreen: grass")
    drawn = {case.edit.target for seed in range(20) for case in compose(seed, known) if case.edit.subject == "sky"}
    assert drawn == {"green"}
