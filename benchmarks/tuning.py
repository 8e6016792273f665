"""What options of the methods do, on facts that no other figure is taken on. One cell a method.

Their defaults are chosen by these rows; options whose defaults were changed by them are named in all rows of the
method, so that a row says what it is of. A cell goes on after the last row that is there.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks import common, quality
from retcon.evaluate import evaluate
from retcon.lm import LM
from retcon.requests import Case

FACTS = {"wise": 20}
"""Facts in one batch, by method; the others are given `MANY`."""
MANY, JUDGED = 100, 40
METRICS = tuple(name for name in quality.METRICS if name != "efficacy_prefixed")
Options = Mapping[str, Any]
GRIDS: dict[str, Sequence[Options]] = {
    "grace": (
        {},
        {"lr": 0.3},
        {"lr": 0.1, "steps": 100},
        {"layer": 20},
        {"layer": 28},
        {"radius": 2.0},
        {"end_token": True},
        {"radius": 14.0},
        {"radius": 19.0},
        {"retest": True},
    ),
    "wise": (
        *(
            {"stop_on": "loss", "lr": 1.0, "templates": 10} | options
            for options in (
                {},
                {"layer": 20},
                {"stop_change": 1.0},
                {"precision": "bfloat16"},
                {"stop_change": 1.0, "precision": "bfloat16", "templates": 4},
                {"stop_change": 1.0, "precision": "bfloat16", "lr": 2.0},
                {"stop_change": 1.0, "templates": 4, "lr": 2.0},
                {"stop_change": 1.0, "precision": "bfloat16", "act_ratio": 0.7},
                {"stop_change": 1.0, "precision": "bfloat16", "mask_ratio": 0.5},
                {"stop_change": 1.0, "precision": "bfloat16", "margin_scale": 1.0},
            )
        ),
        *(
            {"stop_on": "answer", "lr": 2.0, "templates": 4} | options
            for options in ({}, {"stop": 0.1}, {"stop": 0.01})
        ),
        {"stop_on": "answer", "lr": 1.0, "templates": 4},
    ),
    "wise_100": (*({"save_freq": size} for size in (20, 500, 10)), {"save_freq": 20, "replay": True}),
    "ft-m": ({}, {"layers": (15,)}, {"layers": (25,)}, {"lr": 1e-4}, {"lr": 1e-3}, {"schedule": "breadth"}),
    "ft-l": ({}, {"clamp": 2e-3}, {"clamp": 5e-3}, {"layers": (25,)}),
    "locft-bf": tuple(
        {"layers": (20,), "lr": 1e-3} | options
        for options in (
            {},
            {"lr": 5e-4},
            {"layers": (10,)},
            {"layers": (15,)},
            {"layers": (25,)},
            {"layers": (25,), "lr": 2e-3},
            {"eos": False},
            {"batch": 100},
        )
    ),
    "lora": ({}, {"lr": 3e-4}, {"lr": 3e-3}, {"layers": (20,)}, {"layers": (15, 20, 25)}),
    "ike": ({}, {"leak": 0.01}, {"leak": 0.2}),
    "scr": ({}, {"near": 0.3}, {"near": 0.5}, {"nearest": 1}),
    "pmet": (
        {"layers": tuple(range(1, 10))},
        {"layers": (5, 6, 7, 8, 9)},
        {"layers": (7, 8, 9)},
        {"layers": (8, 9)},
        {"layers": (9,)},
    ),
}
"""Options that differ from a method's own; a name with `_100` behind it is of the same method, at a hundred facts."""


def tune(name: str) -> None:
    """The rows of a method that are not there yet."""
    lm, n, method = LM.load(common.MODEL), FACTS.get(name, MANY), name.removesuffix(f"_{MANY}")
    cases = common.cases(n, quality.TUNING)
    older = common.kept(f"tuning/{name}")
    rows = older["figures"]["rows"] if older and older["figures"]["n"] == n else []
    for options in GRIDS[name]:
        if any(row["options"] == _plain(options) for row in rows):
            continue
        rows = [*rows, _row(lm, method, options, cases)]
        common.say(f"{name} {options}: {rows[-1]['after']}")
        common.keep(f"tuning/{name}", {"method": method, "n": n, "first_fact": quality.TUNING, "rows": rows}, lm)


def _row(lm: LM, name: str, options: Options, cases: Sequence[Case]) -> dict[str, Any]:
    edits = [case.edit for case in cases]
    patch = common.configured(name, **options).edit(lm, edits)
    held = common.held(lm, edits, patch)
    report = evaluate(lm, cases, patch=patch, metrics=METRICS, text=common.TEXT, sample=min(len(cases), JUDGED))
    spent = patch.info["seconds"]
    return {
        "options": _plain(options),
        "efficacy_of_all": common.mean(held),
        **common.reached(report),
        "seconds_per_edit": round((spent["targets"] + spent["solve"]) / len(cases), 3),
        "notes": common.notes(patch),
    }


def _plain(options: Options) -> dict[str, Any]:
    """Options as a file of results holds them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def cells() -> dict[str, Callable[[], None]]:
    """All cells by the name of their result."""
    return {f"tuning/{name}": partial(tune, name) for name in GRIDS}
