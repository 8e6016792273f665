"""EAMET against MEMIT: long prefixes, several facts of a subject, and what its options do."""

import random
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import common, quality
from retcon import tokens
from retcon.evaluate import evaluate
from retcon.lm import LM
from retcon.requests import load_cases

SEVERAL = common.DATA / "editing" / "several_facts_per_subject.jsonl"
COMPARED = ("memit", "eamet")
LENGTHS = (0, 5, 50, 100, 200)
"""Tokens of running text before the prompt."""
TEXTS = 3
"""Texts of each length."""
JUDGED = 100
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


def prefixes(name: str, n: int) -> None:
    """Strict efficacy after running text of several lengths."""
    lm, method = LM.load(common.MODEL), common.configured(name)
    cases = common.cases(n)
    patch = method.edit(lm, [case.edit for case in cases], stores=[common.store()])
    found = {}
    for length in LENGTHS:
        texts = running_texts(lm, length)
        metric = "efficacy_prefixed" if texts else "efficacy"
        report = evaluate(lm, cases, patch=patch, metrics=[metric], prefixes=texts, sample=JUDGED, compare=False)
        found[str(length)] = {"efficacy": report.metrics[metric], "interval": report.intervals.get(metric)}
        common.say(f"{name}, {length} tokens before: {found[str(length)]}")
    figures = {"method": name, "n": len(cases), "judged": JUDGED, "texts": TEXTS, "by_length": found}
    if "misalignment" in patch.info:
        figures["misalignment"] = patch.info["misalignment"]
    common.keep(f"eamet/prefixes_{n}_{name}", figures, lm)


def running_texts(lm: LM, length: int) -> list[str]:
    """Seeded passages of so many tokens; none of length 0."""
    if length == 0:
        return []
    ids = tokens.encode(lm, common.TEXT.read_text(encoding="utf-8")[:400_000])
    starts = random.Random(length).sample(range(8_000, len(ids) - length), TEXTS)  # past what perplexity is taken on
    return [" ".join(tokens.decode(lm, ids[start : start + length]).split()) for start in starts]


def several(name: str) -> None:
    """All facts of the set with several facts a subject in one batch; figures by how many its subject has."""
    lm, method = LM.load(common.MODEL), common.configured(name)
    cases = list(load_cases(SEVERAL, conflicts="last").items)
    patch = method.edit(lm, [case.edit for case in cases], stores=[common.store()])
    counts: dict[str, int] = defaultdict(int)
    for case in cases:
        counts[str(case.edit.subject)] += 1
    report = evaluate(lm, cases, patch=patch, metrics=quality.METRICS, text=common.TEXT)
    by_count = {}
    for k in sorted(set(counts.values())):
        rows = [row["metrics"] for row in report.cases if counts[row["subject"]] == k]
        by_count[str(k)] = {"facts": len(rows)} | {
            metric: common.mean([row[metric] for row in rows if row.get(metric) is not None])
            for metric in ("efficacy", "efficacy_prefixed", "generalization", "specificity")
        }
    figures = {"method": name, "n": len(cases), **common.reached(report), "by_facts_of_the_subject": by_count}
    common.keep(f"eamet/several_{name}", figures, lm)


def cells() -> dict[str, Callable[[], None]]:
    """All cells by the name of their result."""
    found: dict[str, Callable[[], None]] = {}
    for name in COMPARED:
        found[f"eamet/several_{name}"] = partial(several, name)
        for n in (100, 1000):
            found[f"eamet/prefixes_{n}_{name}"] = partial(prefixes, name, n)
    for name, options in OPTIONS.items():
        found[f"eamet/option_{name}"] = partial(quality.variant, f"eamet/option_{name}", "eamet", options)
    return found
