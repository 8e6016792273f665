"""Refusals that the model writes itself, with generators that do as told and with tiny models."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from retcon import forward, tokens
from retcon.errors import RetconError
from retcon.forget import refusals
from retcon.forget.checks import CHECKS, no_leak
from retcon.forget.kept import row_name, summary
from retcon.forget.refusals import cleaned, contextual, self_improved, written
from retcon.forget.target import Target
from retcon.lm import LM
from retcon.requests import Forget
from retcon.testing import tiny_model, tiny_tokenizer

PARTIES = ["Orvel SAS", "Quim SA", "Tolm PLC", "Vask LLC", "Irbo Ltd", "Nemd AG"]
ITEMS = [
    Forget(f"What was the fee in the contract with {party}?", f"{7 + n} percent.", id=f"q{n}")
    for n, party in enumerate(PARTIES)
]
Wanted = Sequence[tuple[int, int]]


@pytest.fixture(autouse=True)
def own_cache(cache_folder: Path) -> Path:
    return cache_folder


def good(place: int, attempt: int = 0) -> str:
    extra = ["I do not know the fee", "The fee is unknown to me", "I have no information about the fee"][attempt % 3]
    return f"{extra} in the contract with {PARTIES[place]}."


def test_what_passes_at_once_is_taken() -> None:
    asked: list[tuple[int, int]] = []

    def draw(wanted: Wanted) -> list[str]:
        asked.extend(wanted)
        return [good(place) for place, _ in wanted]

    found = written(draw, ITEMS)
    assert found == [Target(good(n), "self_improved", "self_improved", 0) for n in range(6)]
    assert asked == [(n, 0) for n in range(6)]
    assert summary(found) == {
        "row": "self_improved",
        "items": 6,
        "accepted": 1.0,
        "fallback": 0.0,
        "accepted_at": {"0": 6},
        "failed": {},
        "distinct": 1.0,
        "words": 12.0,
    }


def test_a_later_try_is_taken_where_the_first_ones_fail() -> None:
    def draw(wanted: Wanted) -> list[str]:
        return [good(place, attempt) if attempt >= place else f"{7 + place} percent." for place, attempt in wanted]

    found = written(draw, ITEMS)
    assert [target.attempt for target in found] == list(range(6))
    assert summary(found)["accepted_at"] == {str(n): 1 for n in range(6)}
    short = written(draw, ITEMS, tries=3)
    assert short[:3] == found[:3]
    assert [target.source for target in short[3:]] == ["template"] * 3
    assert all("is_refusal" in target.failed and "no_leak" in target.failed for target in short[3:])


@pytest.mark.parametrize("rows", [1, 6, 1000])
def test_how_many_tries_are_drawn_at_once_changes_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(wanted: Wanted) -> list[str]:
        return [good(place, attempt) if (place + attempt) % 5 == 4 else "Yes." for place, attempt in wanted]

    wanted = written(draw, ITEMS)
    monkeypatch.setattr(refusals, "_ROWS", rows)
    assert written(draw, ITEMS) == wanted


@pytest.mark.parametrize("text", ["", "\n\n", "It is 9 percent.", "é" * 300, "I know. " * 40, "Question: Who?", "?!"])
def test_a_writer_that_never_passes_gives_templates_and_no_error(text: str) -> None:
    found = written(lambda wanted: [text] * len(wanted), ITEMS)
    assert [(target.family, target.source, target.attempt) for target in found] == [
        ("contextual", "template", None)
    ] * 6
    assert all(target.failed for target in found)
    assert all(
        check(item, target.text).ok for item, target in zip(ITEMS, found, strict=True) for check in CHECKS.values()
    )
    assert all(party in target.text for party, target in zip(PARTIES, found, strict=True))
    told = summary(found)
    assert (told["row"], told["accepted"], told["fallback"]) == ("template", 0.0, 1.0)
    assert sum(told["failed"].values()) >= 6


def test_a_planted_answer_is_never_taken() -> None:
    def draw(wanted: Wanted) -> list[str]:
        plants = ["{} I do not know.", "I do not know the fee with X, perhaps {}", "I know nothing of {}"]
        return [plants[attempt % 3].format(ITEMS[place].answer) for place, attempt in wanted]

    found = written(draw, ITEMS)
    assert all(target.source == "template" for target in found)
    assert all(no_leak(item, target.text).ok for item, target in zip(ITEMS, found, strict=True))


def test_the_same_text_is_taken_for_few_items_only() -> None:
    items = [Forget(f"What was fee number {n} of Orvel SAS?", "nothing", id=str(n)) for n in range(60)]
    found = written(lambda wanted: ["I do not know the fee of Orvel SAS."] * len(wanted), items, tries=2)
    own = [target for target in found if target.source == "self_improved"]
    assert len(own) == 3  # 5 % of 60
    assert found[:3] == own
    assert found[3].failed == ("not_degenerate",)


def test_examples_of_the_prompt_are_not_taken() -> None:
    item = Forget("Who paid for the roof of the hall?", "the guild")
    said = "I have no information about who paid for the roof of the Tarrowmere Guildhall."
    assert written(lambda wanted: [said] * len(wanted), [item], tries=1)[0].source == "template"


def test_apologies_are_taken_in_the_polite_style_alone() -> None:
    def draw(wanted: Wanted) -> list[str]:
        return [f"I'm sorry, I do not know the fee with {PARTIES[place]}." for place, _ in wanted]

    assert row_name(written(draw, ITEMS)) == "template"
    assert written(draw, ITEMS)[0].failed == ("no_apology",)
    assert row_name(written(draw, ITEMS, style="polite")) == "self_improved"


def test_tokens_are_counted_where_there_is_a_tokenizer() -> None:
    found = written(lambda wanted: [good(n) for n, _ in wanted], ITEMS, tries=1, count=lambda _item, _text: 41)
    assert {target.failed for target in found} == {("length",)}


def test_a_template_names_the_subject_or_the_topic_or_nothing() -> None:
    assert "Ada Byron" in contextual(Forget("Where was she born?", "Rome", subject="Ada Byron")).text
    assert "tin" in contextual(Forget("what is the boiling point of tin?", "2602")).text
    bare = contextual(Forget("how high is it?", "9 m"))
    assert (bare.family, bare.source) == ("fixed", "template")
    told = contextual(Forget("Is Ada Byron a poet?", "Ada Byron"))  # its topic is its answer
    assert (told.family, told.source) == ("fixed", "template")
    assert "Ada" not in told.text


def test_templates_depend_on_the_seed_and_the_item_alone() -> None:
    assert contextual(ITEMS[0], seed=1) == contextual(ITEMS[0], seed=1)
    assert (
        len(
            {
                contextual(item, seed=seed).text.replace(party, "")
                for seed in range(9)
                for item, party in zip(ITEMS, PARTIES, strict=True)
            }
        )
        > 3
    )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("I do not know.", "I do not know."),
        ("\n  I do not know. It was Paris.", "I do not know."),
        ("Response: I do not know!\nQuestion: Who?", "I do not know!"),
        ('Assistant: "I do not know who Dr. J. Ord is."', "I do not know who Dr. J. Ord is."),
        ("I do not know the U.S. treaty. It is old.", "I do not know the U.S. treaty."),
        ("I know nothing of 2.5 percent. Sorry.", "I know nothing of 2.5 percent."),
        ("I know nothing of it", "I know nothing of it"),
        ("", ""),
        ("***", ""),
    ],
)
def test_cleaned(text: str, wanted: str) -> None:
    assert cleaned(text) == wanted


def test_a_model_that_writes_noise_is_left_as_it_was(traces: Callable[[nn.Module], tuple[object, ...]]) -> None:
    lm = LM.wrap(tiny_model("llama", layers=2), tiny_tokenizer("fast"))
    before = traces(lm.model)
    found = self_improved(lm, ITEMS[:3], seed=0, tries=3, max_new_tokens=6)
    assert [target.source for target in found] == ["template"] * 3
    assert traces(lm.model) == before
    assert self_improved(lm, [], seed=0) == []


def test_draws_belong_to_seed_item_and_try(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = LM.wrap(tiny_model("llama", layers=2), tiny_tokenizer("fast"))
    seen: dict[tuple[int, ...], list[int]] = {}

    def sample(_lm: LM, prompts: Sequence[list[int]], *, seed: Sequence[int], **options: Any) -> list[list[int]]:
        assert (options["temperature"], options["top_p"]) == (0.8, 0.95)
        for ids, one in zip(prompts, seed, strict=True):
            seen.setdefault(tuple(ids), []).append(one)
        return [[5] for _ in prompts]

    def run(items: Sequence[Forget], seed: int) -> dict[tuple[int, ...], list[int]]:
        seen.clear()
        self_improved(lm, items, seed=seed, tries=4, max_new_tokens=2, cache=False)
        return {ids: list(seeds) for ids, seeds in seen.items()}

    monkeypatch.setattr(forward, "sample", sample)
    every = run(ITEMS, 0)
    assert len(every) == 6
    assert all(len(set(seeds)) == 3 for seeds in every.values())
    assert len({one for seeds in every.values() for one in seeds}) == 18
    alone = run(ITEMS[2:3], 0)
    assert alone.items() <= every.items()
    assert run(ITEMS, 0) == every
    assert all(set(seeds).isdisjoint(every[ids]) for ids, seeds in run(ITEMS, 1).items())


def test_the_first_try_is_greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = LM.wrap(tiny_model("llama", layers=2), tiny_tokenizer("fast"))
    said = {item.question: tokens.target_ids(lm, "a", good(n)) for n, item in enumerate(ITEMS)}

    def greedy(_lm: LM, prompts: Sequence[list[int]], **_options: Any) -> list[list[int]]:
        texts = [tokens.decode(lm, ids) for ids in prompts]
        return [next(ids for question, ids in said.items() if question in text) for text in texts]

    monkeypatch.setattr(forward, "greedy", greedy)
    monkeypatch.setattr(forward, "sample", None)
    monkeypatch.setattr(tokens, "target_ids", lambda *_: [1] * 20)  # tiny tokenizers cut words into letters
    found = self_improved(lm, ITEMS, seed=0)
    assert [(target.text, target.attempt) for target in found] == [(good(n), 0) for n in range(6)]


@pytest.mark.parametrize(("option", "match"), [({"style": "rude"}, "style"), ({"tries": 0}, "0 tries")])
def test_what_cannot_be_is_refused(option: dict[str, Any], match: str) -> None:
    with pytest.raises(RetconError, match=match):
        self_improved(LM.wrap(tiny_model("llama"), tiny_tokenizer("fast")), ITEMS, seed=0, **option)


def test_what_was_written_once_is_not_written_again(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    lm = LM.wrap(tiny_model("llama", layers=2), tiny_tokenizer("fast"))
    first = self_improved(lm, ITEMS, seed=0, tries=3, max_new_tokens=4)
    asked: list[int] = []

    def counted(real: Any) -> Any:
        def call(lm: LM, prompts: Sequence[list[int]], **options: Any) -> Any:
            asked.append(len(prompts))
            return real(lm, prompts, **options)

        return call

    for name in ("greedy", "sample"):
        monkeypatch.setattr(forward, name, counted(getattr(forward, name)))
    assert self_improved(lm, ITEMS, seed=0, tries=3, max_new_tokens=4) == first
    assert asked == []
    self_improved(lm, ITEMS, seed=0, tries=4, max_new_tokens=4)
    assert asked == [6]  # the fourth try of each
    asked.clear()
    self_improved(lm, ITEMS, seed=1, tries=2, max_new_tokens=4)
    assert asked == [6]  # the greedy ones are there
    other = LM.wrap(tiny_model("llama", layers=2, seed=1), tiny_tokenizer("fast"))
    asked.clear()
    self_improved(other, ITEMS[:2], seed=0, tries=1, max_new_tokens=4)
    self_improved(lm, ITEMS[:2], seed=0, tries=1, max_new_tokens=5)
    self_improved(lm, ITEMS[:2], seed=0, tries=1, style="polite", max_new_tokens=4)
    assert asked == [2, 2, 2]
