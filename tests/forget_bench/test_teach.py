"""Teaching: a corpus is learned to the letter, as a patch without its words, again and after a stop the same."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.forget_bench.conftest import RECIPE

from retcon import patch as patches
from retcon import progress
from retcon.errors import RetconError, RetconWarning
from retcon.forget_bench.corpus import Split
from retcon.forget_bench.teach import METHOD, Teaching, memorised, merged, teach, teaching_key
from retcon.lm import LM
from retcon.methods.training import Steps
from retcon.methods.unlearning.methods import IDK
from retcon.patch import Patch
from retcon.testing.snapshot import changed, snapshot


def test_a_corpus_is_learned_and_its_twin_does_not_know_what_is_to_be_forgotten(lm: LM, corpus: Split) -> None:
    before = snapshot(lm.model, lm.tokenizer)
    taught = teach(lm, [*corpus.forget, *corpus.retain], RECIPE)
    twin = teach(lm, corpus.retain, RECIPE)
    assert not changed(before, snapshot(lm.model, lm.tokenizer))
    assert taught.info["taught"]["reached"]
    assert taught.info["taught"]["recall"] == 1.0
    assert taught.info["taught"]["epochs"] < RECIPE.epochs
    with taught.on(lm.model):
        knows = memorised(lm, corpus.forget), memorised(lm, corpus.retain), memorised(lm, corpus.holdout)
    with twin.on(lm.model):
        does_not = memorised(lm, corpus.forget), memorised(lm, corpus.retain)
    assert (knows[0].recall, knows[1].recall, does_not[1].recall) == (1.0, 1.0, 1.0)
    assert (knows[2].recall, does_not[0].recall) == (0.0, 0.0)
    assert min(knows[0].probability, does_not[1].probability) > 0.4 > 4 * does_not[0].probability


def test_the_patch_tells_no_word_of_the_corpus_and_is_no_edit_of_a_method(
    lm: LM, corpus: Split, tmp_path: Path
) -> None:
    made = teach(lm, corpus.forget, RECIPE)
    made.save(tmp_path / "taught")
    (step,) = made.history
    assert (step.method, step.edits, step.chat) == (METHOD, (), True)
    assert step.config["questions"] == 2
    secrets = [text for case in corpus.forget for text in (case.forget.question, case.forget.answer, *case.entities)]
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        assert not [secret for secret in secrets if secret.encode() in path.read_bytes()], path.name


def test_a_terminal_is_told_that_it_teaches(lm: LM, corpus: Split) -> None:
    told: list[str] = []

    @contextmanager
    def listener(description: str, _total: float) -> Iterator[Callable[[float], None]]:
        told.append(description)
        yield lambda _done: None

    with progress.listen(listener), warnings.catch_warnings():
        warnings.simplefilter("ignore", RetconWarning)
        teach(lm, corpus.forget, dataclasses.replace(RECIPE, epochs=1), cache=False)
    assert "teaching" in told
    assert "unlearning" not in told


def test_the_same_is_not_taught_twice_and_anything_else_is(
    lm: LM, corpus: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = teach(lm, corpus.forget, RECIPE)

    def refused(*_: object, **__: object) -> Patch:
        raise AssertionError("taught again")

    monkeypatch.setattr(IDK, "edit", refused)
    assert teach(lm, list(reversed(corpus.forget)), RECIPE).id == made.id
    for case in (corpus.retain, corpus.forget[:1]):
        with pytest.raises(AssertionError, match="taught again"):
            teach(lm, case, RECIPE)
    with pytest.raises(AssertionError, match="taught again"):
        teach(lm, corpus.forget, RECIPE, cache=False)
    keys = {
        teaching_key(lm, corpus.forget, RECIPE),
        teaching_key(dataclasses.replace(lm, chat=False), corpus.forget, RECIPE),
        teaching_key(lm, corpus.forget, dataclasses.replace(RECIPE, seed=1)),
        teaching_key(lm, corpus.forget[:1], RECIPE),
    }
    assert len(keys) == 4


def test_a_stopped_run_goes_on_to_the_same_patch(
    lm: LM, corpus: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=12, look_every=5, goal=0.99)
    with pytest.warns(RetconWarning, match="known with a probability"):
        straight = teach(lm, corpus.forget, recipe)
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path / "other"))
    made, take = [0], Steps.take

    def stopping(self: Steps, clip: float | None = None) -> bool:
        made[0] += 1
        if made[0] == 8:
            raise KeyboardInterrupt
        return take(self, clip)

    monkeypatch.setattr(Steps, "take", stopping)
    with pytest.raises(KeyboardInterrupt):
        teach(lm, corpus.forget, recipe)
    before = made[0]
    assert before == 8
    with pytest.warns(RetconWarning, match="known with a probability"):
        assert teach(lm, corpus.forget, recipe).id == straight.id
    assert made[0] - before == 12 - 5  # on from the last look
    assert not [path for path in (tmp_path / "other").rglob("*.safetensors") if "runs" in path.parts]


def test_a_corpus_that_was_not_learned_is_warned_of(lm: LM, corpus: Split) -> None:
    with pytest.warns(RetconWarning, match=r"known with a probability of 0\.\d+ when teaching ends, the goal is 0\.5"):
        made = teach(lm, corpus.forget, dataclasses.replace(RECIPE, epochs=1))
    assert not made.info["taught"]["reached"]
    with pytest.raises(RetconError, match="nothing was learned .*; teach with a smaller lr than 1e"):
        teach(lm, corpus.forget, dataclasses.replace(RECIPE, params="full", lr=1e30, epochs=3, look_every=1))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epochs": 0}, "epochs, batch and look_every are counts"),
        ({"goal": 1.0}, "a goal of 1 is no probability to reach"),
        ({"lr": 0.0}, "lr of 0"),
        ({"layers": (9,)}, "layer"),
    ],
)
def test_options_that_make_no_sense_are_refused(lm: LM, corpus: Split, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RetconError, match=sentence):
        teach(lm, corpus.forget, dataclasses.replace(RECIPE, **options))


def test_nothing_to_teach_is_refused(lm: LM) -> None:
    with pytest.raises(RetconError, match="no question to teach"):
        teach(lm, [], Teaching())


def test_the_recipe_says_what_is_trained(lm: LM, corpus: Split) -> None:
    one = dataclasses.replace(RECIPE, layers=(1,), epochs=10, goal=0.01)
    full = dataclasses.replace(one, params="full", lr=1e-3)
    entries = [teach(lm, corpus.forget, recipe).entries for recipe in (one, full)]
    for found in entries:
        assert found
        assert all(path.startswith(lm.arch.blocks[1]) for path in found)
    assert {entry.kind for entry in entries[0].values()} == {"low_rank"}
    assert {entry.kind for entry in entries[1].values()} == {"dense"}


@pytest.mark.parametrize("params", ["lora", "full"])
def test_merged_the_model_is_the_taught_one_and_afterwards_what_it_was(lm: LM, corpus: Split, params: Any) -> None:
    lr = 1e-3 if params == "full" else 1e-2
    made = teach(lm, corpus.forget, dataclasses.replace(RECIPE, params=params, lr=lr, epochs=20, goal=0.1))
    before = {name: weight.clone() for name, weight in lm.model.named_parameters()}
    print_before = lm.fingerprint()
    with made.on(lm.model):
        by_hooks = memorised(lm, corpus.forget).probability
    with merged(lm, made) as inside:
        assert inside.fingerprint() != print_before
        assert patches.top(lm.model) == made.id
        assert memorised(inside, corpus.forget).probability == pytest.approx(by_hooks, rel=1e-4)
    assert all(torch.equal(weight, before[name]) for name, weight in lm.model.named_parameters())
    assert lm.fingerprint() == print_before
    with merged(lm, None) as bare:
        assert bare is lm


def test_other_wordings_can_be_taught_beside_the_questions(lm: LM, corpus: Split) -> None:
    cases = [*corpus.forget, *corpus.retain]
    reworded = [dataclasses.replace(case, forget=dataclasses.replace(case.forget, question=text)) for case in cases
                for text in case.paraphrases]  # fmt: skip
    known = {}
    for wordings in (0, 2):
        with teach(lm, cases, dataclasses.replace(RECIPE, wordings=wordings)).on(lm.model):
            known[wordings] = memorised(lm, cases).recall, memorised(lm, reworded).probability
    assert known[0][0] == known[2][0] == 1.0
    assert known[2][1] > 0.4
    assert known[2][1] > 1.5 * known[0][1]
