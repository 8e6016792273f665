"""Rows of questions and of what is to stay, what is drawn of them, and what an objective is handed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from retcon import forward, tokens
from retcon.errors import RequestError
from retcon.lm import LM
from retcon.methods import training_rows
from retcon.methods.lora import Factors
from retcon.methods.training_rows import Row, misses, rows_of
from retcon.methods.unlearning import batches as unlearning_batches
from retcon.methods.unlearning.base import linear_paths
from retcon.methods.unlearning.batches import Kept, Material, drawn, labels_of, nlls, order_of, packed, read
from retcon.methods.unlearning.config import UnlearningConfig
from retcon.methods.unlearning.objectives import IGNORED, OBJECTIVES, LossInputs
from retcon.requests import Edit
from retcon.testing import tiny_edits

TinyLM = Callable[..., LM]
OPTIONS = UnlearningConfig()
BOTH = ("forget", "refusal")


def answers(edits: list[Edit]) -> list[Edit]:
    return [replace(edit, target=edit.old or "") for edit in edits]


# ------------------------------------------------------------------------------------------------- rows


def test_old_is_the_answer_target_the_refusal_and_both_end_with_the_end_token(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(5)
    found = Material.of(lm, edits, [], OPTIONS, BOTH)
    assert found.answers == [rows_of(lm, answers(edits), eos=True)[i] for i in found.order]
    assert found.refusals == [rows_of(lm, edits, eos=True)[i] for i in found.order]
    assert all(row.target[-1] == lm.tokenizer.eos_token_id for row in (*found.answers, *found.refusals))
    bare = Material.of(lm, edits, [], replace(OPTIONS, eos=False), BOTH)
    assert bare.answers == [rows_of(lm, answers(edits))[i] for i in bare.order]


def test_the_order_of_the_list_has_no_part_in_the_order_of_rows(tiny_lm: TinyLM) -> None:
    lm, edits = tiny_lm("llama"), tiny_edits(6)
    there, back = (Material.of(lm, some, [], OPTIONS, BOTH) for some in (edits, edits[::-1]))
    assert there.answers == back.answers
    assert there.refusals == back.refusals
    assert [edits[i] for i in there.order] == [edits[::-1][i] for i in back.order]


def test_an_answer_that_is_needed_and_missing_is_refused_and_one_that_is_not_needed_is_done_without(
    tiny_lm: TinyLM,
) -> None:
    lm, edits = tiny_lm("llama"), [*tiny_edits(2), Edit(prompt="The capital is", target="unknown to me")]
    with pytest.raises(RequestError, match="'The capital is' is not told; give it as old"):
        Material.of(lm, edits, [], OPTIONS, ("forget",))
    found = Material.of(lm, edits, [], OPTIONS, ("refusal",))
    assert not found.answers
    assert len(found.refusals) == 3


def test_of_a_text_all_tokens_count_and_of_a_pair_the_answers(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama")
    text, pair = "Boats left the harbour.", ("Who left the harbour?", "The boats")
    found = Material.of(lm, tiny_edits(1), [text, pair], OPTIONS, BOTH).kept
    ids = tokens.encode(lm, text)
    assert found[0] == Row(ids[:-1], list(range(len(ids) - 1)), ids[1:], len(ids) - 2)
    prompt, end = tokens.encode(lm, pair[0]), lm.tokenizer.eos_token_id
    answer = [*tokens.target_ids(lm, pair[0], pair[1]), end]
    assert found[1].target == answer
    assert found[1].ids == [*prompt, *answer[:-1]]
    whole = Material.of(lm, tiny_edits(1), [pair], replace(OPTIONS, retain_prompts=True), BOTH).kept[0]
    assert whole.ids == found[1].ids
    assert whole.target == [*prompt[1:], *answer]
    assert whole.end == found[1].end == len(prompt) - 1


def test_what_is_to_stay_may_be_what_the_model_says_by_itself(tiny_lm: TinyLM) -> None:
    lm, own = tiny_lm("llama"), replace(OPTIONS, retain_answers="own", retain_tokens=6)
    kept: list[Kept] = ["Boats left the harbour.", ("Who left the harbour?", "The boats")]
    prompts = [tokens.encode(lm, text) for text in ("Boats left the harbour.", "Who left the harbour?")]
    said = forward.greedy(lm, prompts, max_new_tokens=6)
    found = Material.of(lm, tiny_edits(1), kept, own, BOTH).kept
    for row, prompt, answer in zip(found, prompts, said, strict=True):
        ended = [lm.tokenizer.eos_token_id] if len(answer) < 6 else []
        assert row.target == answer + ended
        assert row.ids == (prompt + row.target)[:-1]
        assert row.at == list(range(len(prompt) - 1, len(row.ids)))
    whole = Material.of(lm, tiny_edits(1), kept, replace(own, retain_prompts=True), BOTH).kept
    assert [row.ids for row in whole] == [row.ids for row in found]
    assert [row.target for row in whole] == [row.ids[1:] + row.target[-1:] for row in whole]
    assert not Material.of(lm, tiny_edits(1), kept, replace(own, retain_tokens=0), BOTH).kept


def test_what_is_forgotten_may_be_what_the_model_says_by_itself(tiny_lm: TinyLM) -> None:
    lm, own = tiny_lm("llama"), replace(OPTIONS, forget_answers="own", retain_tokens=6)
    edits = [*tiny_edits(2), Edit(prompt="The capital is", target="unknown to me")]
    found = Material.of(lm, edits, [], own, BOTH)
    prompts = [tokens.encode(lm, edit.text) for edit in edits]
    for place, i in enumerate(found.order):
        (said,) = forward.greedy(lm, [prompts[i]], max_new_tokens=6)
        ended = [lm.tokenizer.eos_token_id] if len(said) < 6 else []
        assert found.answers[place].target == said + ended
        assert found.answers[place].at[0] == len(prompts[i]) - 1
    watched = Material.of(lm, edits, [], own, ("refusal",))
    assert watched.answers == found.answers


def test_where_the_model_says_nothing_the_given_answer_is_forgotten(tiny_lm: TinyLM) -> None:
    lm, mute = tiny_lm("llama"), replace(OPTIONS, forget_answers="own", retain_tokens=0, eos=False)
    found = Material.of(lm, tiny_edits(2), [], mute, BOTH)
    assert found.answers == Material.of(lm, tiny_edits(2), [], replace(OPTIONS, eos=False), BOTH).answers
    with pytest.raises(RequestError, match="'The capital is' is not told"):
        Material.of(lm, [Edit(prompt="The capital is", target="unknown to me")], [], mute, BOTH)


def test_a_long_text_to_keep_is_cut(tiny_lm: TinyLM) -> None:
    (row,) = Material.of(tiny_lm("llama"), tiny_edits(1), ["word " * 999], OPTIONS, BOTH).kept
    assert len(row.target) == 255


# ------------------------------------------------------------------------------------------------- drawn


def test_an_order_depends_on_what_is_named_and_on_nothing_else() -> None:
    found = order_of(9, 0, "forget", 3)
    torch.rand(5)
    assert order_of(9, 0, "forget", 3) == found
    assert sorted(found) == list(range(9))
    assert len({tuple(order_of(9, *what)) for what in ((0, "forget", 3), (0, "forget", 4), (1, "forget", 3))}) == 3


def test_with_replacement_every_step_draws_for_itself() -> None:
    steps = [drawn(5, 4, number, 0, "replace") for number in range(50)]
    assert [drawn(5, 4, number, 0, "replace") for number in range(50)] == steps
    assert {i for step in steps for i in step} == set(range(5))
    assert any(len(set(step)) < 4 for step in steps)


def test_in_turn_none_comes_again_before_all_have_come() -> None:
    flat = [i for number in range(10) for i in drawn(5, 3, number, 0, "cycle")]
    passes = [flat[start : start + 5] for start in range(0, 30, 5)]
    assert all(sorted(one) == list(range(5)) for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    assert sorted(drawn(2, 5, 0, 0, "cycle")) in ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])


# ------------------------------------------------------------------------------------------------- in places


def test_what_is_handed_on_has_each_label_one_place_after_what_predicts_it() -> None:
    rows = [Row([1, 2, 3], [1, 2], [7, 8]), Row([4], [0], [9])]
    assert labels_of(rows).tolist() == [[IGNORED, 7, 8], [IGNORED, 9, IGNORED]]
    values = torch.tensor([[1.0], [2.0], [3.0]])
    assert packed(rows, values)[..., 0].tolist() == [[1, 2, 0], [3, 0, 0]]


def change(lm: LM) -> Any:
    made = Factors.drawn(lm, linear_paths(lm, range(lm.arch.n_layers)), 2, 2.0, 0)
    with torch.no_grad():
        for B in made.B.values():
            B += 0.2
    return made


def nlls_of(lm: LM, rows: list[Row], entries: Any) -> list[float]:
    return [float(miss.detach().sum()) for miss in misses(lm, rows, entries)]


def test_an_objective_is_handed_what_rows_say_with_the_change_on_and_off(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama", torch.float64)
    rows, entries = rows_of(lm, tiny_edits(4), eos=True), change(lm).entries()
    side = read(lm, rows, entries, compared=True)
    now, before = nlls_of(lm, rows, entries), nlls_of(lm, rows, {})
    found, _ = OBJECTIVES["ga"](LossInputs(side), UnlearningConfig(retain_weight=0))
    tokens_of = sum(len(row.target) for row in rows)
    assert float(found.detach()) == pytest.approx(-sum(now) / tokens_of)
    old, _ = OBJECTIVES["ga"](
        LossInputs(replace(side, logits=side.reference_logits)), UnlearningConfig(retain_weight=0)
    )
    assert float(old.detach()) == pytest.approx(-sum(before) / tokens_of)
    assert nlls(lm, rows, entries).tolist() == pytest.approx(now)
    assert side.reference_logits is not None
    assert not side.reference_logits.requires_grad
    assert (found - old).abs() > 1e-3


def test_states_are_handed_on_in_the_places_that_predict_labels(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama", torch.float64)
    rows = rows_of(lm, tiny_edits(3), eos=True)
    side = read(lm, rows, change(lm).entries(), layer=1, compared=True)
    assert side.logits is None
    assert side.states is not None
    assert side.reference_states is not None
    for r, row in enumerate(rows):
        with lm.inference():
            wanted = lm.model(input_ids=torch.tensor([row.ids]), output_hidden_states=True).hidden_states[2][0]
        torch.testing.assert_close(side.reference_states[r, : len(row.target)], wanted[row.at])
        assert (side.states[r, 0] - wanted[row.at[0]]).abs().max() > 1e-3


def test_sums_are_the_same_however_rows_are_batched(tiny_lm: TinyLM, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2", torch.float64)
    rows = rows_of(lm, tiny_edits(6), eos=True)
    whole = nlls(lm, rows, {})
    monkeypatch.setattr(unlearning_batches, "BATCH_TOKENS", 1)
    assert training_rows.BATCH_TOKENS > 1
    torch.testing.assert_close(nlls(lm, rows, {}), whole)
