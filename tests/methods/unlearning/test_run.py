"""A run: its steps against plain training of the weights, what it watches, how it ends, and how it goes on."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from retcon import progress, tokens
from retcon.errors import RetconWarning
from retcon.lm import LM
from retcon.methods.training_rows import Row
from retcon.methods.unlearning import run as unlearning_run
from retcon.methods.unlearning.batches import Material, drawn, nlls, order_of
from retcon.methods.unlearning.journal import FOLDER, Journal
from retcon.methods.unlearning.objectives import OBJECTIVES
from retcon.methods.unlearning.run import Outcome, Run
from retcon.patch import Patch
from retcon.patch.base import projection
from retcon.requests import Edit
from retcon.targets import Store
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.checks import difference
from retcon.testing.contract import RETAIN, knowing, quick

TinyLM = Callable[..., LM]
F64 = torch.float64
TEXTS = RETAIN


@pytest.fixture(scope="session")
def taught() -> LM:
    """A tiny model that knows the old answers of six edits."""
    return knowing(quick("npo"), LM.wrap(tiny_model("llama"), tiny_tokenizer()), tiny_edits(6))


def made(name: str, **options: Any) -> Any:
    return quick(name, **options)


def forgotten(patch: Patch) -> tuple[float, float]:
    """The mean probability of the answers, before and after."""
    facts = patch.info["facts"]
    before, after = (sum(fact[key] for fact in facts) / len(facts) for key in ("before", "probability"))
    return before, after


# ------------------------------------------------------------------------------------------------- steps


def ids_of(lm: LM, edit: Edit, answer: str) -> tuple[list[int], list[int]]:
    text = lm.render(edit.text)
    return tokens.encode(lm, text), [*tokens.target_ids(lm, text, answer), lm.tokenizer.eos_token_id]


@pytest.mark.parametrize(("name", "family"), [("graddiff", "llama"), ("npo", "gpt2"), ("kl", "gptj")])
def test_a_run_is_adamw_on_the_weights_themselves(name: str, family: str, tiny_lm: TinyLM) -> None:
    """Three passes over all questions; losses by hand, on rows run one by one, on a copy whose weights are trained."""
    lm, edits, lr, n_texts = tiny_lm(family, F64), tiny_edits(3), 1e-4, 4
    found = made(name, params="full", epochs=3, lr=lr, warmup=0.0, retain_batch=n_texts, layers=(1, 2)).edit(
        lm, edits, retain=TEXTS
    )
    bare, model = lm.model, copy.deepcopy(lm.model).requires_grad_(False)
    weights: dict[str, Any] = {path: model.get_submodule(path).weight for path in found.entries}
    for weight in weights.values():
        weight.requires_grad_()
    before: dict[str, Any] = {path: weight.detach().clone() for path, weight in weights.items()}
    adam = torch.optim.AdamW(weights.values(), lr=lr, weight_decay=0.0)

    def logits(of: Any, ids: Sequence[int]) -> Any:
        return of(input_ids=torch.tensor([list(ids)])).logits[0]

    def sums(of: Any) -> list[Any]:
        rows = [ids_of(lm, edit, edit.old or "") for edit in edits]
        return [
            F.cross_entropy(logits(of, [*p, *y])[len(p) - 1 : -1], torch.tensor(y), reduction="sum") for p, y in rows
        ]

    answer_tokens = sum(len(ids_of(lm, edit, edit.old or "")[1]) for edit in edits)
    with torch.no_grad():
        start = sums(bare)
    for number in range(3):
        texts = [tokens.encode(lm, TEXTS[i]) for i in drawn(3, n_texts, number, 0, "replace")]
        if name == "npo":
            excess = torch.stack(sums(model)) - torch.stack(start)
            loss = -20 * F.logsigmoid(0.1 * excess).mean()
        else:
            loss = -torch.stack(sums(model)).sum() / answer_tokens
        n = sum(len(ids) - 1 for ids in texts)
        for ids in texts:
            now = logits(model, ids)[:-1].log_softmax(-1)
            with torch.no_grad():
                old = logits(bare, ids)[:-1].log_softmax(-1)
            drift, nll = (old.exp() * (old - now)).sum(), F.nll_loss(now, torch.tensor(ids[1:]), reduction="sum")
            loss = loss + (drift if name == "kl" else nll) / n
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        adam.step()
    assert len(found.entries) == 2 * {"llama": 7, "gpt2": 4, "gptj": 6}[family]
    for path, weight in weights.items():
        wanted = weight.detach() - before[path]
        wanted = wanted.T if projection(lm.model, path)[2] else wanted
        assert (found.entries[path].delta().double() - wanted).norm() < 1e-3 * wanted.norm()


@pytest.mark.parametrize("name", ["npo", "ga", "rmu", "undial", "dpo"])
def test_a_batch_that_is_cut_for_memory_gives_the_same_steps(
    name: str, tiny_lm: TinyLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, edits = tiny_lm("llama", F64), tiny_edits(4)
    whole = made(name, epochs=2).edit(lm, edits, retain=TEXTS)
    monkeypatch.setattr(unlearning_run, "BATCH_TOKENS", 1)
    assert difference(whole, made(name, epochs=2).edit(lm, edits, retain=TEXTS)) < 1e-5


def test_the_joint_mean_weighs_by_tokens_also_where_a_batch_is_cut(
    tiny_lm: TinyLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, edits = tiny_lm("llama", F64), tiny_edits(4)
    joint = made("idk", epochs=2, joint_mean=True).edit(lm, edits, retain=TEXTS)
    assert difference(joint, made("idk", epochs=2).edit(lm, edits, retain=TEXTS)) > 1e-3
    monkeypatch.setattr(unlearning_run, "BATCH_TOKENS", 1)
    assert difference(joint, made("idk", epochs=2, joint_mean=True).edit(lm, edits, retain=TEXTS)) < 1e-5


def run_of(lm: LM, name: str, n: int, **options: Any) -> Run:
    method = made(name, **options)
    material = Material.of(lm, tiny_edits(n), TEXTS, method.config, OBJECTIVES[name].sides)
    return Run(lm, OBJECTIVES[name], method.config, method.change(lm), material, Journal([], ""))


def test_each_question_comes_once_a_pass_in_an_order_of_the_passs_own(tiny_lm: TinyLM) -> None:
    run = run_of(tiny_lm("llama"), "ga", 7, batch=3, epochs=3)
    passes = [[i for step in range(3 * k, 3 * k + 3) for i in run._batch(step)] for k in range(3)]
    assert [len(run._batch(step)) for step in range(3)] == [3, 3, 1]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert passes[0] == order_of(7, 0, "forget", 0)


@pytest.mark.parametrize(
    ("warmup", "decay", "wanted"),
    [
        (0.0, "constant", [1, 1, 1, 1, 1, 1]),
        (2.0, "constant", [0.25, 0.5, 0.75, 1, 1, 1]),
        (1.0, "linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        (0.0, "linear", [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        (9.0, "linear", [k / 18 for k in range(1, 7)]),
    ],
)
def test_the_learning_rate_rises_then_stays_or_falls(
    warmup: float, decay: str, wanted: list[float], tiny_lm: TinyLM
) -> None:
    run = run_of(tiny_lm("llama"), "ga", 4, batch=2, epochs=3, warmup=warmup, decay=decay)
    assert [run._rate(number) for number in range(6)] == pytest.approx(wanted)


def test_progress_ends_at_its_total_also_where_training_stops_early(taught: LM) -> None:
    told: dict[str, list[float]] = {}

    @contextmanager
    def listener(name: str, total: float) -> Iterator[Callable[[float], None]]:
        done = told[name] = [total, 0.0]

        def advance(units: float) -> None:
            done[1] += units

        yield advance

    with progress.listen(listener):
        made("ga", epochs=9, eval_every=2, goal=1.0).edit(taught, tiny_edits(3))
    assert told["unlearning"] == [9, 9]


# ------------------------------------------------------------------------------------------------- how it ends


def test_answers_are_forgotten_and_texts_are_kept(taught: LM) -> None:
    found = made("npo", epochs=20, tolerance=0.1, most_perplexity=2.0).edit(taught, tiny_edits(6), retain=TEXTS)
    before, after = forgotten(found)
    assert after < 0.5 * before
    told = found.info["unlearning"]
    assert told["stopped"] == "all steps are made"
    assert told["steps"] == 20
    first, *rest = told["readings"]
    assert first["step"] == 0
    assert first["loss"] is None
    best = next(reading for reading in rest if reading["step"] == told["best"])
    assert best["forget"] == min(reading["forget"] for reading in rest)
    assert best["utility"] >= 0.9 * first["utility"]
    assert best["forget"] == pytest.approx(after, abs=1e-4)
    assert told["tokens"]["retain"] > told["tokens"]["forget"] > 0


def test_a_learning_rate_that_is_far_too_high_is_stopped_by_what_is_to_stay(taught: LM) -> None:
    with pytest.warns(RetconWarning, match="never forgot without harm"):
        found = made("ga", lr=0.3, eval_every=2, tolerance=0.1).edit(taught, tiny_edits(6), retain=TEXTS)
    told = found.info["unlearning"]
    assert "what is to stay has lost more than 10% of its probability" in told["stopped"]
    assert told["steps"] == 2
    assert told["best"] == 0
    assert all(not entry.delta().any() for entry in found.entries.values())
    assert forgotten(found)[0] == forgotten(found)[1]


def test_what_is_handed_back_is_the_best_of_the_looks_before_the_harm(taught: LM) -> None:
    """The same run, ended where it was best, is the same patch but for its options."""
    long = made("ga", lr=2e-3, epochs=30, eval_every=1, warmup=0.0, tolerance=0.1)
    found = long.edit(taught, tiny_edits(6), retain=TEXTS)
    told = found.info["unlearning"]
    assert "what is to stay" in told["stopped"]
    assert 0 < told["best"] < told["steps"] < 30
    short = made("ga", lr=2e-3, epochs=told["best"], eval_every=1, warmup=0.0).edit(taught, tiny_edits(6), retain=TEXTS)
    assert difference(found, short) == 0


def test_perplexity_alone_can_stop_it(taught: LM) -> None:
    with pytest.warns(RetconWarning, match="times its perplexity"):
        made("ga", lr=0.3, eval_every=2, most_perplexity=2.0).edit(taught, tiny_edits(6), retain=TEXTS)


def test_with_nothing_to_keep_ordinary_text_stops_it(taught: LM) -> None:
    with pytest.warns(RetconWarning, match="ordinary text has more than 1.1 times its perplexity"):
        found = made("ga", lr=0.3, eval_every=2, most_perplexity=1.1).edit(taught, tiny_edits(6))
    told = found.info["unlearning"]
    assert told["best"] == 0
    assert told["readings"][-1]["perplexity"] > 1.1 * told["readings"][0]["perplexity"]
    assert {reading["utility"] for reading in told["readings"]} == {None}
    assert told["tokens"]["retain"] == 0  # it is looked at, and never trained on


def test_it_ends_where_the_answers_are_forgotten(taught: LM) -> None:
    start = forgotten(made("ga", epochs=1).edit(taught, tiny_edits(6)))[0]
    found = made("ga", epochs=50, eval_every=1, goal=0.5 * start).edit(taught, tiny_edits(6))
    told = found.info["unlearning"]
    assert "less likely than" in told["stopped"]
    assert told["steps"] == told["best"] < 50
    assert told["readings"][-1]["forget"] < 0.5 * start <= told["readings"][-2]["forget"]
    assert told["readings"][-1]["utility"] is None


def test_a_loss_that_is_not_finite_ends_it_with_the_last_good_change(
    taught: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = made("npo", epochs=2, eval_every=2).edit(taught, tiny_edits(3), retain=TEXTS)
    add, calls = Run._add_forget, list[int]()

    def spoilt(self: Any, batch: Sequence[int], weight: float) -> float:
        calls.append(1)
        return math.nan if len(calls) > 2 else add(self, batch, weight)

    monkeypatch.setattr(Run, "_add_forget", spoilt)
    found = made("npo", epochs=9, eval_every=2, warmup=1.0).edit(taught, tiny_edits(3), retain=TEXTS)
    assert "not finite" in found.info["unlearning"]["stopped"]
    assert found.info["unlearning"]["best"] == 2
    assert difference(good, found) == 0


def test_refusals_are_watched_where_no_answer_is_known(taught: LM) -> None:
    edits = [replace(edit, old=None) for edit in tiny_edits(3)]
    found = made("idk", epochs=8).edit(taught, edits, retain=TEXTS)
    readings = found.info["unlearning"]["readings"]
    assert readings[-1]["forget"] < readings[0]["forget"] <= 1
    assert all(fact.keys() == {"refusal_before", "refusal_probability"} for fact in found.info["facts"])
    assert all(fact["refusal_probability"] > fact["refusal_before"] for fact in found.info["facts"])


def test_no_more_than_is_asked_for_is_watched(taught: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Row]] = []

    def counted(lm: LM, rows: Sequence[Row], entries: Any) -> Any:
        seen.append(list(rows))
        return nlls(lm, rows, entries)

    monkeypatch.setattr(unlearning_run, "nlls", counted)
    made("ga", epochs=2, eval_every=1, watched=2).edit(taught, tiny_edits(6), retain=TEXTS)
    assert [len(rows) for rows in seen] == [2] * 6
    assert seen[0] == seen[2] == seen[4]
    assert seen[1] == seen[3] == seen[5]


# ------------------------------------------------------------------------------------------------- going on


def test_equal_seeds_give_equal_bits_and_another_seed_another_patch(taught: LM) -> None:
    one = made("npo", batch=2).edit(taught, tiny_edits(5), retain=TEXTS)
    torch.rand(3)
    assert made("npo", batch=2).edit(taught, tiny_edits(5), retain=TEXTS).id == one.id
    back = made("npo", batch=2).edit(taught, tiny_edits(5)[::-1], retain=TEXTS)
    assert difference(one, back) == 0
    assert [fact["before"] for fact in back.info["facts"]] == [fact["before"] for fact in one.info["facts"]][::-1]
    assert difference(one, made("npo", batch=2, seed=1).edit(taught, tiny_edits(5), retain=TEXTS)) > 1e-3


class Killed(Exception):  # noqa: N818 - what stands for a user's Ctrl-C
    """Raised in the middle of a run."""


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Patch], int], None]:
    """Run something, and fail in the step of that number."""
    step = Run._step

    def run(call: Callable[[], Patch], at: int) -> None:
        def killed(self: Run, number: int) -> float | None:
            if number == at:
                raise Killed
            return step(self, number)

        with monkeypatch.context() as patched:
            patched.setattr(Run, "_step", killed)
            with pytest.raises(Killed):
                call()

    return run


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the steps that are made from now on."""
    step, numbers = Run._step, list[int]()

    def told(self: Run, number: int) -> float | None:
        numbers.append(number)
        return step(self, number)

    monkeypatch.setattr(Run, "_step", told)
    return numbers


@pytest.mark.parametrize(("params", "at"), [("lora", 1), ("lora", 3), ("lora", 4), ("full", 7)])
def test_a_run_that_is_stopped_goes_on_to_the_bits_of_the_straight_one(
    params: str, at: int, taught: LM, tmp_path: Path, killed_at: Callable[..., None], counted: list[int]
) -> None:
    method = made("npo", params=params, batch=2, epochs=4, eval_every=2, weight_decay=0.01, decay="linear", lr=3e-4)
    straight = method.edit(taught, tiny_edits(4), retain=TEXTS)
    assert counted == list(range(8))
    store = Store(tmp_path / "targets.sqlite")
    killed_at(lambda: method.edit(taught, tiny_edits(4), retain=TEXTS, stores=[store]), at)
    assert (tmp_path / FOLDER).exists() == (at >= 2)
    counted.clear()
    gone_on = method.edit(taught, tiny_edits(4), retain=TEXTS, stores=[store])
    assert counted == list(range(at // 2 * 2, 8))
    assert gone_on.id == straight.id
    assert gone_on.info["unlearning"] == straight.info["unlearning"]
    assert not (tmp_path / FOLDER).exists()


OTHERS: list[dict[str, Any]] = [{"lr": 2e-3}, {"seed": 1}, {"method": "wga"}, {"retain": TEXTS[:2]}, {"n": 3}]


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: str(next(iter(other))))
def test_another_run_does_not_go_on_from_it(
    other: dict[str, Any], taught: LM, tmp_path: Path, killed_at: Callable[..., None], counted: list[int]
) -> None:
    store = Store(tmp_path / "targets.sqlite")
    killed_at(lambda: made("npo", eval_every=2).edit(taught, tiny_edits(4), retain=TEXTS, stores=[store]), 3)
    counted.clear()
    options = {key: value for key, value in other.items() if key in ("lr", "seed")}
    name, retain, n = other.get("method", "npo"), other.get("retain", TEXTS), other.get("n", 4)
    made(name, eval_every=2, **options).edit(taught, tiny_edits(n), retain=retain, stores=[store])
    assert counted[0] == 0


def test_the_journal_and_the_outcome_hold_no_text(taught: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, kept = Store(tmp_path / "targets.sqlite"), list[bytes]()
    monkeypatch.setattr(Journal, "drop", lambda self: kept.extend(file.read_bytes() for file in self._files))
    found = made("npo", eval_every=1, epochs=2).edit(taught, tiny_edits(3), retain=TEXTS, stores=[store])
    (written,) = kept
    for edit in tiny_edits(3):
        for secret in (edit.old or "", edit.subject or "", edit.text, TEXTS[0]):
            assert secret
            assert secret.encode() not in written
            assert secret not in str(found.info)


def test_what_is_no_number_is_told_as_nothing() -> None:
    reading = unlearning_run.Reading(3, math.inf, 0.25, None, math.nan)
    assert not reading.finite
    told = Outcome([reading]).told()
    assert told["readings"] == [{"step": 3, "loss": None, "forget": 0.25, "utility": None, "perplexity": None}]
