"""ROME: the closed form against dense fp64 matrices, what sets its two forms apart, and when it warns or refuses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from retcon import hooks, solve, stats, tokens, values
from retcon.errors import RetconError, RetconWarning
from retcon.lm import LM
from retcon.methods import ROME, ROMEConfig
from retcon.methods.family import Problem, search_config
from retcon.requests import Edit
from retcon.sweep import Reading
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer
from retcon.testing.checks import difference

Tiny = Callable[..., LM]

F64 = torch.float64
LAYER = 2
QUICK: dict[str, Any] = {
    "layers": (LAYER,), "statistics": "none", "templates": 3, "steps": 5, "precision": "float32", "rounds": 1
}  # fmt: skip
TEXT = (
    "The river is in the north of the country, near the sea.",
    "She was born in a small town by the river, and she worked there for most of her life.",
    "The company that made the plane is located in the city of Chicago.",
    "My favourite city is in the south, and the capital of Peru is Lima.",
) * 8
families = pytest.mark.parametrize("family", ["llama", "gpt2", "granite"])
"""Linear; Conv1D with a bias; a residual multiplier, which a target at the projection's output does not see."""
variants = pytest.mark.parametrize("variant", ["r-rome", "rome"])


class Watched(ROME):
    """Keeps what its rule was asked and said."""

    def __init__(self, **options: Any) -> None:
        super().__init__(ROMEConfig(**QUICK | options))
        self.seen: list[tuple[Problem, solve.Factors]] = []

    def rule(self, problem: Problem) -> solve.Factors:
        factors = super().rule(problem)
        self.seen.append((problem, factors))
        return factors


@pytest.fixture
def text(tmp_path: Path, cache_folder: Path) -> str:
    """A file to take statistics from; they are kept in the test's own folder."""
    file = tmp_path / "text.txt"
    file.write_text("\n".join(TEXT), encoding="utf-8")
    return str(file)


def read(lm: LM, edit: Edit, texts: Sequence[str], what: Any = "input") -> Tensor:
    """What the projection is given (or says) at the subject after each text, one plain forward each; a row a text."""
    path, rows = lm.arch.mlp_out[LAYER], []
    for prefix in texts:
        row = tokens.locate_subject(lm, edit.prompt, edit.subject or "", prefix)
        with lm.inference(), hooks.record({path: lm.module(path)}, what) as seen:
            lm.model(input_ids=torch.tensor([row.ids]))
        rows.append(seen[path].view(len(row.ids), -1)[row.site].clone())
    return torch.stack(rows)


def dense(lm: LM) -> tuple[Tensor, Tensor]:
    """W in (out, in) orientation, and the bias."""
    module: Any = lm.projection(LAYER)
    weight = module.weight.detach().T if lm.arch.conv1d else module.weight.detach()
    return weight, torch.zeros(len(weight), dtype=weight.dtype) if module.bias is None else module.bias.detach()


def near(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert (found - wanted).norm() <= tolerance * wanted.norm()


def apart(one: Tensor, other: Tensor) -> float:
    """1 - |cosine| of two vectors."""
    return 1 - abs(float(one @ other / (one.norm() * other.norm())))


# ------------------------------------------------------------------------------------------- the closed form


@variants
@families
def test_the_change_is_that_of_the_dense_equations(tiny_lm: Tiny, text: str, family: str, variant: Any) -> None:
    """1e-9 for the fp64 factors of the rule, 1e-6 for the fp32 ones that the patch keeps."""
    lm, (edit,) = tiny_lm(family, F64), tiny_edits(1)
    method, path = Watched(variant=variant, statistics=text), lm.arch.mlp_out[LAYER]
    patch = method.edit(lm, [edit])
    texts = ("", *method.texts(lm))
    seen = read(lm, edit, texts)
    bare, mean = seen[0], seen[0] / 2 + seen[1:].mean(0) / 2
    moments = stats.moments(lm, [path], text)[path]
    u = torch.linalg.inv(solve.shrunk(moments.second, moments.count)) @ mean
    wanted = values.search(lm, [edit], search_config(method.config, LAYER, "module_out"), texts).target[0]
    key = mean if variant == "r-rome" else bare
    weight, bias = dense(lm)
    change = torch.outer(wanted - weight @ key - bias, u) / (key @ u)
    near(method.seen[0][1].dense(), change, 1e-9)
    near(patch.entries[path].delta().double(), change, 1e-6)


@variants
@families
def test_the_key_is_sent_to_its_target_exactly(tiny_lm: Tiny, text: str, family: str, variant: Any) -> None:
    """W' k* + b = v* to 1e-12, k* being the averaged key or, as first published, the bare one; the other is missed."""
    lm, (edit,) = tiny_lm(family, F64), tiny_edits(1)
    method = Watched(variant=variant, statistics=text)
    method.edit(lm, [edit])
    ((problem, factors),) = method.seen
    wanted = problem.reading.outputs[0] + problem.residuals[:, 0]
    weight, bias = dense(lm)
    averaged, bare = (
        (weight + factors.dense()) @ key + bias for key in (problem.keys[:, 0], problem.reading.bare_keys[0])
    )
    met, missed = (averaged, bare) if variant == "r-rome" else (bare, averaged)
    near(met, wanted, 1e-12)
    assert (missed - wanted).norm() > 1e-3 * wanted.norm()


@variants
@families
def test_the_change_is_rank_one_along_the_keys_own_direction(
    tiny_lm: Tiny, text: str, family: str, variant: Any
) -> None:
    """Its rows are C^{-1} k*, k* the averaged key in both forms, so that any x with u . x = 0 keeps its output."""
    lm, method = tiny_lm(family, F64), Watched(variant=variant, statistics=text)
    method.edit(lm, tiny_edits(1))
    ((problem, factors),) = method.seen
    change = factors.dense()
    assert problem.moments is not None
    C, key = solve.shrunk(problem.moments.second, problem.moments.count), problem.keys[:, 0]
    u = torch.linalg.inv(C) @ key
    sizes = torch.linalg.svdvals(change)
    assert sizes[1] < 1e-12 * sizes[0]
    assert apart(change[sizes.argmax()], u) < 1e-12
    assert apart(u, key) > 1e-2  # statistics that say nothing would prove nothing
    x = torch.randn(len(u), 5, generator=torch.Generator().manual_seed(0), dtype=F64)
    x = x - torch.outer(u, u @ x) / (u @ u)
    assert (change @ x).norm() < 1e-12 * sizes[0] * x.norm()


@families
def test_the_model_says_the_target_at_the_subject_of_the_bare_prompt(tiny_lm: Tiny, text: str, family: str) -> None:
    """With the patch on, as first published; 1e-6, as the patch's factors are fp32."""
    lm, (edit,) = tiny_lm(family, F64), tiny_edits(1)
    method = ROME(ROMEConfig(**QUICK | {"variant": "rome", "statistics": text}))
    patch, config = method.edit(lm, [edit]), search_config(method.config, LAYER, "module_out")
    wanted = values.search(lm, [edit], config, ("", *method.texts(lm))).target[0]
    clean = read(lm, edit, ("",), "output")[0]
    with patch.on(lm.model):
        near(read(lm, edit, ("",), "output")[0], wanted, 1e-6)
    assert (wanted - clean).norm() > 1e-2 * clean.norm()


@variants
@pytest.mark.parametrize("bare_weight", [0.5, None])
def test_without_statistics_the_direction_is_the_mean_key(
    tiny_lm: Tiny, variant: Any, bare_weight: float | None
) -> None:
    """C = I: u is parallel to the mean of the keys, of which the bare one is a half, or, as published, one of many."""
    lm, (edit,) = tiny_lm("gpt2", F64), tiny_edits(1)
    method = Watched(variant=variant, bare_weight=bare_weight)
    method.edit(lm, [edit])
    seen = read(lm, edit, ("", *method.texts(lm)))
    half, each = seen[0] / 2 + seen[1:].mean(0) / 2, seen.mean(0)
    mean, other = (each, half) if bare_weight is None else (half, each)
    u = method.seen[0][1].V[:, 0]
    assert apart(u, mean) < 1e-12
    assert apart(u, other) > 1e-3
    assert apart(u, seen[0]) > 1e-3


@families
def test_both_forms_are_one_where_the_bare_prompt_is_the_only_template(tiny_lm: Tiny, text: str, family: str) -> None:
    """To 1e-9 of the change in fp64; with templates they are not."""
    lm, edits = tiny_lm(family, F64), tiny_edits(1)
    for templates in (0, 3):
        made = []
        for variant in ("r-rome", "rome"):
            method = Watched(variant=variant, statistics=text, templates=templates)
            method.edit(lm, edits)
            made.append(method.seen[0][1].dense())
        if templates:
            assert (made[0] - made[1]).norm() > 1e-3 * made[1].norm()
        else:
            near(made[0], made[1], 1e-9)


# --------------------------------------------------------------------------------- keys and directions apart


def problem(lm: LM, key: Tensor, bare: Tensor, second: Tensor | None = None) -> Problem:
    """One fact with these keys, a target one to the side of what the model says, and statistics of many tokens."""
    said: Tensor = lm.projection(LAYER)(bare[None]).detach()
    nothing, none = torch.zeros_like(said), torch.zeros(len(key), 0, dtype=F64)
    moments = None if second is None else stats.Moments(second, 10**6, {})
    reading = Reading(key[None], bare[None], said, nothing)
    residual = torch.ones_like(said).T
    return Problem(lm, LAYER, lm.arch.mlp_out[LAYER], key[:, None], residual, reading, moments, none, tiny_edits(1), ())


def unit(width: int, place: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(place), width).double()


def warned(rule: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rule()
    assert all(issubclass(item.category, RetconWarning) for item in caught)
    return [str(item.message) for item in caught]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("cosine", "count"), [(9.9e-3, 1), (1.01e-2, 0), (0.5, 0)])
def test_a_bare_key_at_right_angles_to_the_averaged_one_is_told_of(
    tiny_lm: Tiny, cosine: float, count: int, sign: int
) -> None:
    """As first published the quotient has both: below a cosine of 1e-2, of either sign. The default has one alone."""
    lm = tiny_lm("llama", F64)
    key, aside = (unit(lm.arch.d_mlp, place) for place in (0, 1))
    asked = problem(lm, 3 * key, sign * cosine * key + math.sqrt(1 - cosine**2) * aside)
    found = warned(lambda: ROME(ROMEConfig(variant="rome")).rule(asked))
    assert len(found) == count
    assert all(f"at right angles (cosine {sign * cosine:.1e})" in message for message in found)
    assert not warned(lambda: ROME(ROMEConfig(variant="r-rome")).rule(asked))


def test_an_update_that_is_told_of_is_a_huge_one(tiny_lm: Tiny) -> None:
    lm = tiny_lm("llama", F64)
    key, aside = (unit(lm.arch.d_mlp, place) for place in (0, 1))
    asked = problem(lm, key, 1e-3 * key + math.sqrt(1 - 1e-6) * aside)
    with pytest.warns(RetconWarning, match="this update is huge and may disable the model"):
        published = ROME(ROMEConfig(variant="rome")).rule(asked).dense()
    assert published.norm() > 100 * ROME(ROMEConfig(variant="r-rome")).rule(asked).dense().norm()


@pytest.mark.parametrize(("condition", "count"), [(5e4, 1), (3e4, 0)])
def test_a_key_at_right_angles_to_its_own_direction_is_told_of(tiny_lm: Tiny, condition: float, count: int) -> None:
    """In the default form, statistics of a condition of c may bring the cosine of k and C^{-1} k to 2 / sqrt(c)."""
    lm = tiny_lm("llama", F64)
    common, rare = (unit(lm.arch.d_mlp, place) for place in (0, 1))
    second = torch.eye(lm.arch.d_mlp, dtype=F64) + (condition - 1) * torch.outer(common, common)
    key = math.sqrt(condition) * common + rare
    found = warned(lambda: ROME().rule(problem(lm, key, key, second)))
    cosine = 2 * math.sqrt(condition) / (1 + condition)
    assert (cosine < 1e-2) == bool(count)
    assert len(found) == count
    assert all(f"(cosine {cosine:.1e})" in message for message in found)


# ----------------------------------------------------------------------------------- how many facts and layers


def test_more_than_fifty_facts_are_warned_of() -> None:
    """Fifty are not, and facts of one tie are one. So few steps that it costs next to nothing."""
    lm = LM.wrap(tiny_model("llama", layers=2), tiny_tokenizer())
    edits = [Edit("{} is in", f"Ada {i}", "Paris") for i in range(51)]
    method = ROME(ROMEConfig(**QUICK | {"layers": (1,), "templates": 0, "steps": 1, "kl": 0.0}))
    method.edit(lm, edits[:50])  # a warning would be an error here
    method.edit(lm, [replace(edit, tie="one" if i < 2 else None) for i, edit in enumerate(edits)])
    with pytest.warns(RetconWarning, match="wears out after tens; for 51 use memit"):
        method.edit(lm, edits)


def test_two_layers_are_refused(tiny_lm: Tiny) -> None:
    lm = tiny_lm("llama")
    with pytest.raises(RetconError, match=r"ROME edits one layer; name one of \[1, 2\]"):
        ROME(ROMEConfig(**QUICK | {"layers": (1, 2)})).edit(lm, tiny_edits(1))


def test_one_layer_is_edited_by_default_the_last_of_the_window() -> None:
    deep = LM.wrap(tiny_model("llama", layers=12), tiny_tokenizer())
    assert ROME().layers(deep) == (3,)
    assert ROME(ROMEConfig(layers=(5,))).layers(deep) == (5,)
    patch = ROME(ROMEConfig(**QUICK | {"layers": None, "templates": 0})).edit(deep, tiny_edits(1))
    assert list(patch.entries) == [deep.arch.mlp_out[3]]


def test_facts_are_written_one_after_the_other_and_those_of_a_tie_at_once(tiny_lm: Tiny) -> None:
    """A tie has one rank-one change, which sends the mean of its keys to the mean of its targets."""
    lm, edits = tiny_lm("llama", F64), tiny_edits(3)
    tied = [edits[0], *(replace(edit, tie="one") for edit in edits[1:])]
    method, path = Watched(), lm.arch.mlp_out[LAYER]
    together = method.edit(lm, tied)
    assert len(method.seen) == 2
    assert together.entries[path].rank == 2
    assert difference(together, method.edit(lm, tied[1:], state=method.edit(lm, tied[:1]))) < 1e-6
    asked, factors = method.seen[1]
    assert asked.keys.shape == (lm.arch.d_mlp, 2)
    first = method.seen[0][1].dense()
    weight, bias = dense(lm)
    said = (weight + first + factors.dense()) @ asked.keys.mean(1) + bias
    near(said, (asked.reading.outputs.T + asked.residuals).mean(1), 1e-6)  # the first change was on in fp32
