"""Asking each question once, and remembering on disk what was said."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from retcon import forward
from retcon.caches import Store
from retcon.evaluate import answers, generating
from retcon.evaluate.answers import Answers, place
from retcon.evaluate.gradients import gradient_scores
from retcon.forward import Scored
from retcon.lm import LM
from retcon.testing import tiny_model, tiny_tokenizer

PROMPT, OTHER = (1, 20, 21, 22), (1, 30, 31)


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM.wrap(tiny_model("llama"), tiny_tokenizer())


class Counting:
    """Counts what reaches the model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.items: list[Any] = []
        for name in ("score", "greedy", "sample"):
            monkeypatch.setattr(forward, name, self._counted(getattr(forward, name)))

    def _counted(self, function: Any) -> Any:
        def counted(lm: LM, items: Sequence[Any], **options: Any) -> Any:
            self.items += items
            return function(lm, items, **options)

        return counted


def test_a_prompt_runs_once_with_all_its_distinct_continuations(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Counting(monkeypatch)
    asker = Answers(lm)
    asker.score([(PROMPT, (5,)), (OTHER, (6,)), (PROMPT, (7, 8)), (PROMPT, (5,))])
    assert seen.items == [(list(PROMPT), [[5], [7, 8]]), (list(OTHER), [[6]])]
    assert asker.tokens == 4 + 1 + 2 + 3 + 1
    assert asker.seconds > 0


def test_scores_are_those_of_the_model(lm: LM) -> None:
    found = Answers(lm).score([(PROMPT, (5,)), (PROMPT, (7, 8))])
    expected = forward.score(lm, [(list(PROMPT), [[5], [7, 8]])])[0]
    assert found[PROMPT, (7, 8)].logprobs == pytest.approx(expected[1].logprobs, abs=1e-5)
    assert found[PROMPT, (5,)].hits == expected[0].hits


def test_a_second_time_only_new_questions_reach_the_model(
    lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Counting(monkeypatch)
    store = Store(tmp_path / "answers.sqlite")
    first = Answers(lm, store).score([(PROMPT, (5,)), (PROMPT, (7, 8))])
    seen.items.clear()
    again = Answers(lm, store)
    assert again.score([(PROMPT, (7, 8)), (PROMPT, (5,))]) == first
    assert (seen.items, again.cached, again.tokens) == ([], 2, 0)
    again.score([(PROMPT, (5,)), (PROMPT, (9,))])
    assert seen.items == [(list(PROMPT), [[9]])]


def test_generations_come_back_from_the_store(lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Counting(monkeypatch)
    store = Store(tmp_path / "answers.sqlite")
    greedy = Answers(lm, store).greedy([PROMPT, OTHER, PROMPT], 4, stop_at_eos=False)
    drawn = Answers(lm, store).sample([PROMPT, OTHER, PROMPT], 4, top_k=50, seed=3)
    assert len(seen.items) == 2 + 3
    assert greedy[PROMPT] == tuple(forward.greedy(lm, [list(PROMPT)], max_new_tokens=4, stop_at_eos=False)[0])
    seen.items.clear()
    assert Answers(lm, store).greedy([OTHER, PROMPT], 4, stop_at_eos=False) == greedy
    assert Answers(lm, store).sample([PROMPT, OTHER, PROMPT], 4, top_k=50, seed=3) == drawn
    assert seen.items == []
    Answers(lm, store).greedy([PROMPT], 5, stop_at_eos=False)
    Answers(lm, store).greedy([PROMPT], 4, stop_at_eos=True)
    Answers(lm, store).sample([PROMPT, OTHER, PROMPT], 4, top_k=50, seed=4)
    assert len(seen.items) == 1 + 1 + 3


def test_what_is_written_freely_comes_back_from_the_store_by_its_length(
    lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    real = generating.written

    def counted(lm: LM, prompts: Sequence[Any], most: Sequence[int]) -> Any:
        asked.extend(zip(prompts, most, strict=True))
        return real(lm, prompts, most)

    monkeypatch.setattr(answers, "written", counted)
    store = Store(tmp_path / "answers.sqlite")
    first = Answers(lm, store).free({PROMPT: 4, OTHER: 6})
    assert [len(row) for row in first.values()] == [4, 6]
    assert Answers(lm, store).free({OTHER: 6, PROMPT: 4}) == first
    assert asked == [(PROMPT, 4), (OTHER, 6)]
    Answers(lm, store).free({PROMPT: 5})
    assert asked[2:] == [(PROMPT, 5)]


def test_scores_survive_the_store_exactly(lm: LM, tmp_path: Path) -> None:
    scored = Scored([-0.1234567890123, -1e-9, -700.5], [True, False, True])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "score", lambda *_, **__: [[scored]])
        Answers(lm, Store(tmp_path / "a.sqlite")).score([(PROMPT, (1, 2, 3))])
    assert Answers(lm, Store(tmp_path / "a.sqlite")).score([(PROMPT, (1, 2, 3))]) == {(PROMPT, (1, 2, 3)): scored}


def test_details_come_back_from_the_store(lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "answers.sqlite")
    pairs = [(PROMPT, (5, 6)), (OTHER, (7,))]
    first = Answers(lm, store).detailed(pairs)
    assert [len(detail.ranks) for detail in first.values()] == [2, 1]
    monkeypatch.setattr(answers, "details", lambda *_: pytest.fail("asked again"))
    again = Answers(lm, store)
    assert again.detailed(pairs) == first
    assert again.cached == 2


def test_gradients_come_back_from_the_store(lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "answers.sqlite")
    pairs = [(PROMPT, (5, 6)), (OTHER, (7,)), (PROMPT, (5, 6))]
    first = Answers(lm, store).gradients(pairs)
    assert list(first.values()) == pytest.approx(gradient_scores(lm, pairs[:2]), rel=1e-6)
    monkeypatch.setattr(answers, "gradient_scores", lambda _lm, missing: [math.nan for _ in missing])
    again = Answers(lm, store)
    assert again.gradients(pairs) == first
    assert again.cached == 2
    Answers(lm, store).gradients([(OTHER, (8,))])
    monkeypatch.setattr(answers, "gradient_scores", lambda *_: pytest.fail("asked again"))
    assert math.isnan(Answers(lm, store).gradients([(OTHER, (8,))])[OTHER, (8,)])


def test_answers_are_kept_by_weights_and_what_is_on(lm: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path))
    other = LM.wrap(tiny_model("llama", seed=1), tiny_tokenizer())
    assert place(lm) == place(lm)
    assert len({place(lm), place(lm, "forgetting"), place(other)}) == 3
