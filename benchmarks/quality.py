"""What the edits reach and what they harm."""

from collections import defaultdict
from dataclasses import asdict, replace
from typing import Any

from benchmarks import common
from retcon.evaluate import evaluate
from retcon.lm import LM
from retcon.requests import Case
from retcon.sets import builtin

SINGLES = 50
PERPLEXITY_ON = 5
VARIED = 100
TUNING = 2000
"""Where the facts begin that options are chosen on; they are not among those that are reported elsewhere."""
METRICS = (
    "efficacy_gen",
    "generalization_gen",
    "specificity_gen",
    "efficacy",
    "efficacy_prob",
    "efficacy_prefixed",
    "generalization",
    "generalization_prob",
    "specificity",
    "specificity_prob",
    "score_gen",
    "score",
    "perplexity",
    "log_perplexity",
    "log_perplexity_change",
)


def memit(n: int, sample: int | None = None) -> None:
    """MEMIT on the first N facts in one batch, judged on all of them or on a seeded sample; efficacy on all."""
    lm, cases, method = LM.load(common.MODEL), common.cases(n), common.configured("memit")
    edits = [case.edit for case in cases]
    patch = method.edit(lm, edits, stores=[common.store()])
    held = common.held(lm, edits, patch)
    report = evaluate(lm, cases, patch=patch, metrics=METRICS, text=common.TEXT, sample=sample)
    facts = patch.info["facts"]
    figures = {
        "method": method.name,
        "n": n,
        "efficacy_of_all": common.mean(held),
        **common.reached(report),
        "evaluations_mean": common.mean([fact["evaluations"] for fact in facts]),
        "sought_again": sum(fact["rounds"] > 1 for fact in facts),
        "patch_bytes": patch.size_bytes,
        "config": asdict(method.config),
    }
    common.keep(f"quality_memit_{n}", figures, lm)


def variant(
    result: str,
    name: str,
    options: dict[str, Any],
    *,
    facts: int = VARIED,
    first: int = TUNING,
    sample: int | None = None,
) -> None:
    """One row of an ablation: a method with other options, unless said on facts that no other figure is taken on."""
    lm, method = LM.load(common.MODEL), common.configured(name, **options)
    cases = common.cases(facts, first)
    patch = method.edit(lm, [case.edit for case in cases], stores=[common.store()])
    report = evaluate(lm, cases, patch=patch, metrics=METRICS, text=common.TEXT, sample=sample)
    figures = {
        "method": name,
        "options": options,
        "n": len(cases),
        "first_fact": first,
        **common.reached(report),
        "notes": common.notes(patch),
        "seconds": patch.info["seconds"],
    }
    common.keep(result, figures, lm)


def single(name: str, *, result: str | None = None) -> None:
    """Each of the first facts by itself, on the untouched model; means over the facts, perplexity over five of them."""
    lm = LM.load(common.MODEL)
    method = common.configured(name)
    rows: list[dict[str, Any]] = []
    before: list[float] = []
    for i, case in enumerate(common.cases(SINGLES)):
        patch = method.edit(lm, [case.edit], stores=[common.store()])
        metrics = METRICS if i < PERPLEXITY_ON else [one for one in METRICS if "perplexity" not in one]
        report = evaluate(lm, [case], patch=patch, metrics=metrics, text=common.TEXT)
        rows.append({"id": case.edit.id, **report.metrics, "seconds": patch.info["seconds"]})
        before += [value for value in [report.before.get("log_perplexity")] if value is not None]
        common.say(f"{name} {i + 1}/{SINGLES} efficacy {report.metrics['efficacy']}")
    means = {
        metric: common.mean([row[metric] for row in rows if row.get(metric) is not None])
        for metric in METRICS
        if metric not in ("score_gen", "score", "perplexity") and any(row.get(metric) is not None for row in rows)
    }
    spent = [row["seconds"]["targets"] + row["seconds"]["solve"] for row in rows]
    figures = {
        "method": name,
        "n": 1,
        "facts": SINGLES,
        "perplexity_on": PERPLEXITY_ON,
        "after": means,
        "before": {"log_perplexity": common.mean(before)},
        "seconds_per_edit": round(common.mean(spent), 3),
        "rows": rows,
    }
    common.keep(result or f"quality_{name}_1", {**figures, "config": asdict(method.config)}, lm)


def known() -> None:
    """How much the default model knows of the set that comes with Retcon: its own answers against the true ones."""
    lm, tables = LM.load(common.MODEL), builtin.tables()
    edits = [case.edit for case in builtin.compose()]
    true = [(edit, edit.old) for edit in edits if edit.old is not None]
    asked = [Case(replace(edit, target=old, old=None), aliases=tables.names(old)[1:]) for edit, old in true]
    report = evaluate(lm, asked, metrics=("efficacy_gen", "efficacy"))
    by_relation = defaultdict(list)
    for edit, case in zip(edits, report.cases, strict=True):
        by_relation[edit.relation].append(case["metrics"]["efficacy_gen"])
    figures = {
        "n": len(asked),
        "answered_right": report.metrics["efficacy_gen"],
        "every_token_the_likeliest": report.metrics["efficacy"],
        "intervals": report.intervals,
        "by_relation": {name: round(common.mean(right), 3) for name, right in sorted(by_relation.items())},
    }
    common.keep("builtin_known", figures, lm)
