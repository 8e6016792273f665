"""AlphaEdit writes in the null space alone, says how free it is, and holds on to what is to stay."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from retcon import solve, stats, tokens
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.methods import MEMIT, AlphaEdit, AlphaEditConfig, MEMITConfig
from retcon.patch import Patch
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.checks import difference

QUICK: dict[str, Any] = {"templates": 0, "steps": 5, "layers": (1, 2), "rounds": 1, "precision": "float32"}
SENTENCES = (
    "The river is in the north of the country, near the sea.",
    "She was born in a small town by the river, and she worked there for most of her life.",
    "The company that made the plane is located in the city of Chicago.",
    "My favourite city is in the south, and the capital of Peru is Lima.",
)

pytestmark = pytest.mark.usefixtures("cache_folder")


@cache
def lm(family: str = "llama") -> LM:
    return LM.wrap(tiny_model(family), tiny_tokenizer())


@pytest.fixture
def text(tmp_path: Path) -> str:
    """Enough text for a null space: it has 1120 tokens and what may be held out."""
    file = tmp_path / "text.txt"
    file.write_text("".join(f"{i} {line}\n" for i in range(50) for line in SENTENCES), encoding="utf-8")
    return str(file)


def alphaedit(**options: Any) -> AlphaEdit:
    return AlphaEdit(AlphaEditConfig(**{**QUICK, **options}))


def change(patch: Patch, path: str) -> Tensor:
    return patch.entries[path].delta().double()


@pytest.mark.parametrize(
    ("rule", "threshold"), [("leakage", 0.2), ("energy", 0.1), ("relative", 0.01), ("absolute", 0.05)]
)
def test_nothing_is_written_outside_the_null_space(text: str, rule: solve.NullSpaceRule, threshold: float) -> None:
    patch = alphaedit(statistics=text, null_space=rule, threshold=threshold).edit(lm(), tiny_edits(3))
    known = stats.moments(lm(), list(patch.entries), text)
    unseen = stats.held_out(lm(), list(patch.entries), text)
    for path, told in patch.info["null_space"].items():
        basis = solve.null_space(known[path].second, threshold, rule, unseen[path])
        found = change(patch, path)
        assert found.norm() > 1e-2
        assert (found - found @ basis @ basis.T).norm() < 1e-6 * found.norm()
        assert told["directions"] == basis.shape[1] < told["of"] == lm().arch.d_mlp
        assert told["leakage"] == pytest.approx(solve.leakage(basis, unseen[path]), abs=1e-6)
        if rule == "leakage":
            assert 0 < told["leakage"] <= threshold


def test_ordinary_keys_are_left_alone(text: str) -> None:
    """More so the smaller the null space; a key's part in it is all that a change can read."""
    path = lm().arch.mlp_out[1]
    unseen = stats.held_out(lm(), [path], text)[path]
    moved = []
    for threshold in (1.0, 0.3, 0.1):
        found = change(alphaedit(statistics=text, threshold=threshold, layers=(1,)).edit(lm(), tiny_edits(3)), path)
        moved.append(float((found @ unseen).norm(dim=0).mean() / torch.linalg.matrix_norm(found, 2)))
    assert moved[0] > moved[1] > moved[2]


def test_without_statistics_every_direction_is_free_and_it_is_memit_without_them() -> None:
    patch = alphaedit(statistics="none", l2=3.0).edit(lm(), tiny_edits(3))
    plain = MEMIT(MEMITConfig(**QUICK, statistics="none", ridge=3.0)).edit(lm(), tiny_edits(3))
    assert difference(plain, patch) < 1e-6
    assert all(told == {"directions": 112, "of": 112, "leakage": 1.0} for told in patch.info["null_space"].values())
    more, plain_more = (
        kind.edit(lm(), tiny_edits(6)[3:], state=state)
        for kind, state in (
            (alphaedit(statistics="none", l2=3.0), patch),
            (MEMIT(MEMITConfig(**QUICK, statistics="none", ridge=3.0)), plain),
        )
    )
    assert difference(plain_more, more) < 1e-3  # the second search begins where rounding left the first


# ------------------------------------------------------------------------------------------- too few tokens

SHORT = {"statistics_tokens": 1119}


@pytest.mark.parametrize("source", ["text", "self"])
def test_statistics_of_too_few_tokens_are_refused_at_once(source: str, text: str) -> None:
    """Before anything is sought."""
    rule = alphaedit(statistics=text if source == "text" else "self", steps=10**6, **SHORT)
    with pytest.raises(RetconError, match="mlp.down_proj: 1119 tokens of statistics are too few .* takes 1120"):
        rule.edit(lm(), tiny_edits(3))


def test_too_few_tokens_will_do_where_that_is_said(text: str) -> None:
    patch = alphaedit(statistics=text, few_tokens=True, **SHORT).edit(lm(), tiny_edits(1))
    assert all(told["directions"] > 1 for told in patch.info["null_space"].values())


def test_the_models_own_text_is_enough_by_default() -> None:
    patch = AlphaEdit(AlphaEditConfig(templates=0, steps=2, layers=(1,))).edit(lm(), tiny_edits(1))
    (told,) = patch.info["null_space"].values()
    assert 0 < told["leakage"] <= AlphaEditConfig().threshold


def test_a_null_space_without_a_direction_names_layer_and_cure(text: str) -> None:
    with pytest.raises(RetconError, match=r"layers.1.mlp.down_proj: no direction .* give a higher threshold"):
        alphaedit(statistics=text, threshold=1e-12).edit(lm(), tiny_edits(1))


# --------------------------------------------------------------------------------------------- texts to retain

KEPT = ("The river is in the north of the country.", "Chess is a sport too.")


@pytest.mark.parametrize("statistics", ["none", "text"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_texts_to_retain_keep_their_outputs(family: str, statistics: str, text: str) -> None:
    """At the edited projections, and so, up to the ridge, to the end of the model."""
    model, options = lm(family), {"statistics": text if statistics == "text" else "none", "l2": 1e-4}
    free = alphaedit(**options).edit(model, tiny_edits(3))
    held = alphaedit(**options, retain_tokens=0).edit(model, tiny_edits(3), retain=KEPT)
    rows = [tokens.encode(model, kept) for kept in KEPT]
    path = model.arch.mlp_out[1]
    keys = stats.keys(model, [path], rows)[path]
    assert (change(held, path) @ keys).norm() < 0.05 * (change(free, path) @ keys).norm()

    def drift(patch: Patch) -> float:
        total = 0.0
        for row in rows:
            ids = torch.tensor([row])
            with model.inference():
                before = model.model(input_ids=ids).logits
                with patch.on(model.model):
                    total += float((model.model(input_ids=ids).logits - before).norm())
        return total

    assert drift(held) < 0.3 * drift(free)
    assert max(fact["left"] for fact in held.info["facts"]) < 0.5


# ------------------------------------------------------------------------------------------------- the bases


def test_batches_in_sequence_share_their_bases(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as the weights and the statistics are the same; a method object on another model finds new ones."""
    found: list[int] = []
    whole = solve.null_space

    def counted(*args: Any) -> Tensor:
        found.append(1)
        return whole(*args)

    monkeypatch.setattr(solve, "null_space", counted)
    rule = alphaedit(statistics=text, threshold=0.3)
    first = rule.edit(lm(), tiny_edits(2))
    second = rule.edit(lm(), tiny_edits(4)[2:], state=first)
    assert len(found) == 2
    assert second.info["null_space"] == first.info["null_space"]
    rule.edit(LM.wrap(tiny_model("llama", seed=1), tiny_tokenizer()), tiny_edits(2))
    assert len(found) == 4
    fresh = alphaedit(statistics=text, threshold=0.3).edit(lm(), tiny_edits(4)[2:], state=first)
    assert difference(second, fresh) == 0
