"""The rows of a bench: combinations, names, and those that cannot be."""

from collections.abc import Callable

import pytest

from retcon.errors import RetconError
from retcon.forget.usual import usual
from retcon.forget_bench.cells import METHODS, Cell, cells, configured
from retcon.lm import LM
from retcon.methods import METHODS as ALL
from retcon.methods import AlphaEditConfig, method
from retcon.methods.unlearning.objectives import OBJECTIVES

TinyLM = Callable[..., LM]


def test_every_combination_has_a_row_but_objectives_without_a_refusal_have_one() -> None:
    found = cells(["memit", "idk", "npo"], ["idk100", "fixed"], [1, 4], ["concat", "mean_key"])
    assert [cell.name for cell in found] == [
        "memit, idk100",
        "memit, idk100, 4 merged by concat",
        "memit, idk100, 4 merged by mean_key",
        "memit, fixed",
        "memit, fixed, 4 merged by concat",
        "memit, fixed, 4 merged by mean_key",
        "idk, idk100",
        "idk, idk100, 4 merged",
        "idk, fixed",
        "idk, fixed, 4 merged",
        "npo",
        "npo, 4 merged",
    ]
    assert len({cell.slug for cell in found}) == len(found)


def test_a_way_to_group_is_asked_for_and_told() -> None:
    (found,) = cells(["memit"], ["idk100"], [4], by="order")
    assert found.name == "memit, idk100, 4 merged by concat, grouped by order"
    assert (found.recipe(0).merge_by, found.recipe(0).merge_queries) == ("order", 4)
    (alone,) = cells(["memit"], ["idk100"], by="order")
    assert alone.name == "memit, idk100"


def test_those_that_learn_refusals_are_the_ones_that_say_so() -> None:
    learning = {name for name in OBJECTIVES if getattr(ALL[name], "learns_refusal", False)}
    assert learning == {name for name, objective in OBJECTIVES.items() if "refusal" in objective.sides}
    assert set(METHODS) <= set(ALL)


def test_options_are_told_by_the_name_and_those_of_all_rows_are_not() -> None:
    (cell, other) = cells(["memit", "npo"], ["fixed"], options={"memit": {"layers": (1, 2)}}, shared={"steps": 7})
    assert (cell.name, other.name) == ("memit, fixed, layers=1,2", "npo")
    made = configured(cell, seed=5, retain=0).config
    assert (made.layers, made.steps, made.seed) == ((1, 2), 7, 5)
    assert configured(other, seed=5, retain=4).config.seed == 5  # it has no steps
    with pytest.raises(RetconError, match="npo has no option 'steps'"):
        configured(Cell(method="npo", options={"steps": 7}), 0, retain=4)


def test_with_questions_to_keep_a_method_has_what_forgetting_gives_it() -> None:
    cell = Cell(method="alphaedit", options={"l2": 7.0})
    wanted = {**usual("alphaedit", retain=4), "l2": 7.0}
    assert configured(cell, seed=0, retain=4).config == AlphaEditConfig(**wanted)
    assert configured(cell, seed=0, retain=0).config == AlphaEditConfig(l2=7.0)
    everywhere = Cell(method="alphaedit", shared={"l2": 7.0, "retain_weight": 2.0})
    assert configured(everywhere, seed=0, retain=4).config == AlphaEditConfig(**wanted | {"retain_weight": 2.0})
    assert not usual("rome", retain=4)


def test_many_questions_to_keep_count_no_more_than_forty() -> None:
    few, many = usual("memit", retain=40), usual("memit", retain=400)
    assert many == {**few, "retain_weight": few["retain_weight"] / 10}
    assert usual("memit", retain=0) == {}


def test_a_cell_that_cannot_be_says_why(tiny_lm: TinyLM) -> None:
    lm = tiny_lm("llama")

    def why(cell: Cell) -> str | None:
        return cell.why_not(lm, method(cell.method))

    assert why(Cell(method="memit", merge=4, mode="mean_key")) is None
    assert why(Cell(method="grace", merge=4, mode="concat")) is None
    assert (why(Cell(method="grace", merge=4, mode="mean_key")) or "").startswith("n/a: grace: ")
    assert (why(Cell(method="npo", merge="all")) or "").startswith("n/a: npo: ")
    assert (why(Cell(method="ike")) or "").startswith("n/a: ike: its patches hold the questions")
    assert why(Cell(method="npo")) is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((["mimit"],), "no method 'mimit'; use one of memit"),
        ((["memit"], ["shrug"]), "no family of targets 'shrug'"),
        ((["memit"], ["fixed"], [0]), "merged by so many, 1 for none"),
        ((["memit"], ["fixed"], [2], ["sum"]), "no way to merge 'sum'"),
        (([],), "there is no method; name one of"),
    ],
)
def test_what_is_not_there_is_refused(arguments: tuple[list[str]], sentence: str) -> None:
    with pytest.raises(RetconError, match=sentence):
        cells(*arguments)
