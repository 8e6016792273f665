"""EAMET against MEMIT: long prefixes, several facts of a subject, and what its options do."""

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import common, matrix, quality
from retcon.evaluate import evaluate
from retcon.evaluate.prefixes import PASSAGES
from retcon.lm import LM
from retcon.requests import load_cases

SEVERAL = common.DATA / "editing" / "several_facts_per_subject.jsonl"
COMPARED = ("memit", "eamet")
LENGTHS = (0, 5, 50, 100, 200)
"""Tokens of running text before the prompt."""
JUDGED = 100
THOUSAND = 1000
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "block8": {"block": 8},
    "block32": {"block": 32},
    "block128": {"block": 128},
    "two_pass": {"mode": "two_pass"},
    "paper_terms": {"kl_direction": "paper", "mse_form": "paper"},
    "start_zero": {"init": "zero"},
    "start_state": {"init": "state"},
    "clamp_key_4": {"clamp_to": "key", "clamp": 4.5},
    "alphaedit": {"solver": "alphaedit"},
    "published_templates": {"published_templates": True},
    "two_rounds": {"rounds": 2},
}
"""Options of each row of the ablation."""
CAUSES: dict[str, tuple[str, dict[str, Any]]] = {
    "memit_one_round": ("memit", {"rounds": 1}),
    "eamet_one_round": ("eamet", {"rounds": 1}),
    "eamet_two_rounds": ("eamet", {"rounds": 2}),
    "eamet_two_rounds_block128": ("eamet", {"rounds": 2, "block": 128}),
    "memit_two_rounds": ("memit", {"rounds": 2}),
}
"""What sets the two apart besides the alignment: how often targets are sought and written; at a thousand facts."""


def prefixes(name: str, n: int) -> None:
    """Strict efficacy after running text of several lengths."""
    lm, method = LM.load(common.MODEL), common.configured(name)
    cases = common.cases(n)
    patch = method.edit(lm, [case.edit for case in cases], stores=[common.store()])
    report = evaluate(
        lm,
        cases,
        patch=patch,
        metrics=["efficacy"],
        prefix_tokens=LENGTHS,
        text=common.TEXT,
        sample=JUDGED,
        compare=False,
    )
    found = {
        length: {"efficacy": part["efficacy_prefixed"], "interval": part["interval"]}
        for length, part in report.details["prefix_tokens"].items()
    }
    figures = {"method": name, "n": len(cases), "judged": JUDGED, "texts": PASSAGES, "by_length": found}
    if "misalignment" in patch.info:
        figures["misalignment"] = patch.info["misalignment"]
    common.keep(f"eamet/prefixes_{n}_{name}", figures, lm)


def several(name: str) -> None:
    """All facts of the set with several facts a subject in one batch; figures by how many its subject has."""
    lm, method = LM.load(common.MODEL), common.configured(name)
    cases = list(load_cases(SEVERAL, conflicts="last").items)
    patch = method.edit(lm, [case.edit for case in cases], stores=[common.store()])
    report = evaluate(lm, cases, patch=patch, metrics=quality.METRICS, text=common.TEXT)
    by_count = report.details["facts_of_the_subject"]
    figures = {"method": name, "n": len(cases), **common.reached(report), "by_facts_of_the_subject": by_count}
    common.keep(f"eamet/several_{name}", figures, lm)


def cause(row: str) -> None:
    """A thousand facts in one batch, by one of `CAUSES`."""
    name, options = CAUSES[row]
    quality.variant(f"eamet/cause_{row}", name, options, facts=THOUSAND, first=0, sample=matrix.JUDGED)


def cells() -> dict[str, Callable[[], None]]:
    """All cells by the name of their result."""
    found: dict[str, Callable[[], None]] = {}
    for name in COMPARED:
        found[f"eamet/several_{name}"] = partial(several, name)
        for n in (100, THOUSAND):
            found[f"eamet/prefixes_{n}_{name}"] = partial(prefixes, name, n)
    for row in CAUSES:
        found[f"eamet/cause_{row}"] = partial(cause, row)
    for name, options in OPTIONS.items():
        found[f"eamet/option_{name}"] = partial(quality.variant, f"eamet/option_{name}", "eamet", options)
    return found
