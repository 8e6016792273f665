"""What a run of WISE replays of earlier edits, and what its margins hold apart."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from retcon import tokens
from retcon.errors import RequestError
from retcon.lm import LM
from retcon.methods.wise import WISE, WISEConfig
from retcon.methods.wise.rows import Replay, Row, Site, edit_rows, read_clean
from retcon.methods.wise.shards import Margins
from retcon.methods.wise.train import train
from retcon.patch import Gated, Patch
from retcon.requests import Edit
from retcon.testing import tiny_edits
from retcon.testing.checks import difference

TinyLM = Callable[..., LM]
QUICK: dict[str, Any] = {"templates": 0, "steps": 8, "lr": 0.3, "save_freq": 1, "merge_freq": None}
EDITS = tiny_edits(4)
ORDINARY = ("The teacher wrote a book", "My favourite city", "1, 2, 3, 5")


def wise(**options: Any) -> WISE:
    return WISE(WISEConfig(**(QUICK | options)))


def entry_of(made: Patch) -> Gated:
    (entry,) = made.entries.values()
    assert isinstance(entry, Gated)
    return entry


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[Replay]:
    """What each edit was trained with."""
    seen: list[Replay] = []

    def watched(*arguments: Any) -> Any:
        seen.append(arguments[-1])
        return train(*arguments)

    monkeypatch.setattr("retcon.methods.wise.run.train", watched)
    return seen


def prompts(lm: LM, groups: Sequence[Sequence[Row]]) -> list[str]:
    """The bare prompt of each group's edit."""
    return [tokens.decode(lm, group[0].prompt) for group in groups]


def test_nothing_is_replayed_unless_it_is_asked_for(tiny_lm: TinyLM, replayed: list[Replay]) -> None:
    wise().edit(tiny_lm("llama"), EDITS[:3])
    assert replayed == [Replay()] * 3


def test_an_edit_of_each_closed_memory_is_replayed_and_one_of_its_own(tiny_lm: TinyLM, replayed: list[Replay]) -> None:
    lm = tiny_lm("llama")
    edits = tiny_edits(6)
    wise(replay=True, save_freq=2, steps=2, templates=2).edit(lm, edits)
    texts = [edit.text for edit in edits]
    others = [prompts(lm, replay.others) for replay in replayed]
    own = [prompts(lm, [replay.own]) if replay.own else [] for replay in replayed]
    assert others[:2] == [[], []]
    assert own[:2] == [[], []], "as long as no memory is closed nothing is replayed"
    for number in (2, 3):
        assert len(others[number]) == 1
        assert others[number][0] in texts[:2]
    for number in (4, 5):
        assert len(others[number]) == 2
        assert others[number][0] in texts[:2]
        assert others[number][1] in texts[2:4]
    assert own[2:] == [[], [texts[2]], [], [texts[4]]]
    assert all(len(group) == 3 for replay in replayed for group in replay.others), "with its templates"


def test_merged_memories_are_one_group(tiny_lm: TinyLM, replayed: list[Replay]) -> None:
    wise(replay=True, merge_freq=2, steps=2).edit(tiny_lm("llama"), EDITS)
    assert [len(replay.others) for replay in replayed] == [0, 1, 1, 2]


def test_replay_lowers_what_earlier_prompts_score_in_the_new_memory(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama")
    scores = {}
    for replay in (False, True):
        options = {"steps": 40, "replay": replay, "margin_scale": 0.2, "mask_ratio": 0.6}
        entry = entry_of(wise(**options).edit(lm, EDITS[:2], retain=ORDINARY))
        path = lm.arch.mlp_out[WISE().layer(lm)]
        clean = read_clean(lm, _site(lm, path), edit_rows(lm, EDITS[0], []))
        scores[replay] = float(entry.scores(clean.read, clean.gave, clean.prompt)[0, 1])
    assert scores[True] < 0.8 * scores[False]


def _site(lm: LM, path: str) -> Site:
    return Site(
        layer=lm.arch.mlp_out.index(path), path=path, skipped=False, score="act", activation="silu",
        long_prompt="mean", margins=Margins(1, 2, 1), lr=1.0, steps=1, clip=1.0, stop=0.02, stop_change=1e-4,
        precision="float32",
    )  # fmt: skip


def test_with_replay_too_a_batch_is_its_fold(tiny_lm: TinyLM, tmp_path: Any) -> None:
    """Also where the patch has been on disk: what is drawn comes from the seed and the number of edits so far."""
    lm = tiny_lm("llama")
    together, folded = wise(replay=True, save_freq=2).edit(lm, EDITS), None
    for number, edit in enumerate(EDITS):
        folded = wise(replay=True, save_freq=2).edit(lm, [edit], state=folded)
        folded = Patch.load(folded.save(tmp_path / str(number)))
    assert folded is not None
    assert difference(together, folded) == 0
    assert difference(together, wise(replay=True, save_freq=2, seed=1).edit(lm, EDITS)) > 0


def test_an_edit_of_the_same_prompt_is_not_held_out(tiny_lm: TinyLM, replayed: list[Replay]) -> None:
    lm = tiny_lm("llama")
    again = replace(EDITS[0], target="Lima", id="again")
    wise(replay=True, steps=2).edit(lm, [*EDITS[:2], again])
    assert prompts(lm, replayed[-1].others) == [EDITS[1].text]


def test_edits_whose_prompts_are_withheld_are_not_replayed(tiny_lm: TinyLM, replayed: list[Replay]) -> None:
    lm = tiny_lm("llama")
    hidden = replace(EDITS[0], hidden=("prompt",))
    first = wise(replay=True, steps=2).edit(lm, [hidden])
    wise(replay=True, steps=2).edit(lm, EDITS[1:3], state=first)
    assert [prompts(lm, replay.others) for replay in replayed] == [[], [], [EDITS[1].text]]


# ------------------------------------------------------------------------------------------------ the margins' scope


def of_tokens(lm: LM, made: Patch, edit: Edit) -> tuple[Tensor, Tensor]:
    """How far the memory moves each token of the subject, and each other token of the prompt."""
    path = lm.arch.mlp_out[WISE().layer(lm)]
    (row,) = edit_rows(lm, edit, [], subject=True)
    clean = read_clean(lm, _site(lm, path), [row])
    added = clean.read[0] @ entry_of(made).dense(0).T
    act = torch.nn.functional.silu
    moved = (act(clean.gave[0] + added) - act(clean.gave[0])).norm(dim=-1)
    return moved[clean.subject[0]], moved[clean.prompt[0] & ~clean.subject[0]]


def test_in_the_subjects_scope_its_tokens_are_moved_and_the_others_less(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama")
    edit = EDITS[2]
    ratios = {}
    for scope in ("prompt", "subject"):
        made = wise(scope=scope, steps=60, mask_ratio=0.6).edit(lm, [edit], retain=ORDINARY)
        inside, outside = of_tokens(lm, made, edit)
        ratios[scope] = float(inside.mean() / outside.mean())
    assert ratios["subject"] > 1.5 * ratios["prompt"]


def test_an_ordinary_prompt_inside_the_edits_does_not_change_the_scope(
    tiny_lm: TinyLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The released code turns to the subject without a word where the ordinary prompt is a part of the edit's."""
    seen: list[str] = []

    def watched(*arguments: Any) -> Any:
        seen.append(arguments[1].scope)
        assert all(row.subject == (0, 0) for row in arguments[2])
        return train(*arguments)

    monkeypatch.setattr("retcon.methods.wise.run.train", watched)
    wise(steps=2).edit(tiny_lm("llama"), EDITS[:1], retain=[EDITS[0].text[:12]])
    assert seen == ["prompt"]


def test_the_threshold_is_that_of_the_whole_prompt_in_either_scope(tiny_lm: TinyLM) -> None:
    """Prompts are routed by all their tokens, as nothing tells their subjects."""
    lm = tiny_lm("llama")
    made = wise(scope="subject", steps=20).edit(lm, EDITS[:1])
    path = lm.arch.mlp_out[WISE().layer(lm)]
    clean = read_clean(lm, _site(lm, path), edit_rows(lm, EDITS[0], []))
    entry = entry_of(made)
    score = float(entry.scores(clean.read, clean.gave, clean.prompt)[0, 0])
    assert float(entry.thresholds[0]) == pytest.approx(score, rel=1e-4)
    assert entry.choose(clean.read, clean.gave, clean.prompt).tolist() == [0]


def test_the_subjects_scope_refuses_edits_without_one(tiny_lm: TinyLM) -> None:
    with pytest.raises(RequestError, match="has no subject"):
        wise(scope="subject").edit(tiny_lm("llama"), [Edit("The river is", target="far away")])
