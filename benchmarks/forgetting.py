"""Forgetting: every editor and every objective, judged against a model that never knew. One cell a process.

A cell goes on where it was stopped: what was taught, patches and rows are kept between runs.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks import common
from retcon.evaluate import evaluate
from retcon.forget.usual import METHOD, TARGET
from retcon.forget_bench import Bench, Cell, Split, Teaching, split_files, split_known, with_general
from retcon.forget_bench.cells import cells as ways_of
from retcon.forget_bench.rows import laid_out
from retcon.forget_bench.teach import merged, teach
from retcon.lm import LM
from retcon.patch import Patch
from retcon.requests import load_forget

UNLEARNING = common.DATA / "unlearning"
GENERAL = {name: UNLEARNING / "tofu" / f"{name}.jsonl" for name in ("real_authors", "world_facts")}
EDITORS = ("rome", "memit", "alphaedit", "ece", "eamet", "pmet", "ultraedit", "grace", "wise")
OBJECTIVES = ("ga", "graddiff", "kl", "idk", "dpo", "npo", "simnpo", "rmu", "undial", "wga", "satimp")
TARGETS = ("idk100", "self_improved")
MERGED = 4
"""Questions of one contract that share an edit."""
BEST = ("alphaedit", "memit", "pmet", "ultraedit", "grace", "wise")
"""The editors that also go to the larger sets; the best six of the first table."""
CONTROLS = ("idk", "npo")
OWN = {"forget_answers": "own", "retain_answers": "own"}
TRIED: tuple[dict[str, Any], ...] = ({}, *({"lr": rate, **OWN} for rate in (1e-4, 3e-4, 1e-3)))
"""What each objective is tried with, where the usual recipe was chosen: its defaults, and the model's own answers."""
WRITTEN = "self_improved"
"""The targets that the model writes itself."""
BEFORE = "alphaedit"
"""The method of the usual recipe before this one."""


def pistol(lm: LM) -> Split:
    """Four contracts to forget, four to keep, forty questions on others that nobody is taught."""
    split, _ = split_files(UNLEARNING / "pistol" / "sample_1.jsonl", forget_groups=4, retain_groups=4)
    return with_general(split, GENERAL)[0]


def tofu(lm: LM) -> Split:
    """Ten authors to forget, twenty to keep, forty questions on others."""
    folder = UNLEARNING / "tofu"
    split, _ = split_files(
        folder / "forget05.jsonl",
        retain_corpus=folder / "retain_perturbed.jsonl.gz",
        holdout_corpus=folder / "retain95.jsonl.gz",
        forget_groups=None,
        retain_groups=None,
    )
    return with_general(split, GENERAL)[0]


def factual(lm: LM) -> Split:
    """General questions that the model answers right: half to forget, half to keep."""
    return split_known(lm, load_forget(UNLEARNING / "pistol" / "factual.jsonl", skip_bad=True).items)


def swapped(lm: LM) -> Split:
    """The same, the halves changed places: the usual recipe was chosen here, and that before it on `factual`."""
    split = factual(lm)
    return replace(split, forget=split.retain, retain=split.forget)


SETS: dict[str, tuple[Callable[[LM], Split], Teaching | None]] = {
    "pistol": (pistol, Teaching()),
    "tofu": (tofu, Teaching(batch=32)),
    "factual": (factual, None),
    "swapped": (swapped, None),
}


def bench(dataset: str, ways: Sequence[Cell]) -> Bench:
    """The bench of a set; its folder is kept between runs."""
    lm = replace(LM.load(common.MODEL), chat=True)
    cut, teaching = SETS[dataset]
    return Bench(lm, cut(lm), ways, common.work(f"forgetting-{dataset}"), teaching)


def measure(dataset: str, ways: Sequence[Cell], name: str) -> None:
    """The rows of a cell, or, without any way to forget, of the models as they are."""
    made = bench(dataset, ways)
    rows = made.run()
    own = rows[len(rows) - len(ways) :] if ways else rows
    failed = [row for row in own if "failed" in row]
    figures: dict[str, Any] = {"set": dataset, "questions": made.split.counts(), **made.split.told, "rows": own}
    if failed:
        raise SystemExit(f"{failed[0]['row']} failed: {failed[0]['failed']}")
    common.keep(f"forgetting/{name}", figures, made.lm)


def ordinary(dataset: str, slug: str) -> None:
    """What a way to forget does to ordinary text: log-perplexity of 8,000 tokens, in nats, by the kept patch."""
    made = bench(dataset, [])
    made.run()
    folder = common.work(f"forgetting-{dataset}") / "patches" / slug
    if not folder.exists():
        raise SystemExit(f"there is no patch yet; run forgetting/{dataset}_{slug} first")
    teaching = SETS[dataset][1]
    taught = teach(made.lm, [*made.split.forget, *made.split.retain], teaching) if teaching else None
    with merged(made.lm, taught) if taught else nullcontext(made.lm) as lm:
        plain = replace(lm, chat=False)
        report = evaluate(
            plain,
            common.cases(1),
            patch=Patch.load(folder),
            metrics=["log_perplexity", "log_perplexity_change"],
            text=common.TEXT,
        )
    then, now = report.before["log_perplexity"], report.metrics["log_perplexity"]
    change = report.metrics["log_perplexity_change"]
    assert change is not None
    figures = {"set": dataset, "way": slug, "before": then, "after": now, "change": round(change, 4)}
    common.keep(f"forgetting/text_{dataset}_{slug}", figures, made.lm)


def section() -> list[str]:
    """The tables of all cells that are there, one a set."""
    lines: list[str] = []
    for dataset in SETS:
        found = [common.kept(name) for name in _cells(dataset)]
        rows = [row for result in found if result for row in result["figures"]["rows"]]
        if rows:
            heads, made = laid_out(rows)
            lines += [f"## Forgetting, {dataset}", "", *_markdown([heads, ["---"] * len(heads), *made]), ""]
    return lines


def _markdown(lines: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in lines]


def _ways(dataset: str) -> list[Cell]:
    """The ways to forget on a set: all of them on the first; on the others the usual recipe, its method with
    refusals that the model wrote, and the recipe before it; the best editors and two controls. On the last, where
    things are chosen and not judged, the recipes and each objective in several ways."""
    shared = {"statistics": str(common.STATISTICS)}
    if dataset == "pistol":
        editors = ways_of(EDITORS, TARGETS, (1, MERGED), ("concat", "mean_key"), shared=shared)
        return editors + ways_of(OBJECTIVES, TARGETS, shared=shared)
    recipes = [
        *ways_of((METHOD,), (TARGET, WRITTEN), shared=shared),
        *ways_of((BEFORE,), (TARGET,), shared=shared),
    ]
    if dataset == "swapped":
        tried = [ways_of(OBJECTIVES, TARGETS[:1], options=dict.fromkeys(OBJECTIVES, given)) for given in TRIED]
        return [*recipes, *(way for ways in tried for way in ways)]
    return [*recipes, *(way for way in ways_of((*BEST, *CONTROLS), TARGETS, shared=shared) if way not in recipes)]


def _cells(dataset: str) -> dict[str, Callable[[], None]]:
    """The cells of one set by the name of their result; the models as they are first, so that teaching is not timed."""
    found: dict[str, Callable[[], None]] = {
        f"forgetting/{dataset}_before": partial(measure, dataset, [], f"{dataset}_before")
    }
    for way in _ways(dataset):
        name = f"{dataset}_{way.slug}"
        found[f"forgetting/{name}"] = partial(measure, dataset, [way], name)
    return found


def _texts(dataset: str) -> dict[str, Callable[[], None]]:
    """What each way of a set does to ordinary text, by the name of the result; after the cells themselves."""
    slugs = [way.slug for way in _ways(dataset)]
    return {f"forgetting/text_{dataset}_{slug}": partial(ordinary, dataset, slug) for slug in slugs}


def cells() -> dict[str, Callable[[], None]]:
    """All cells by the name of their result."""
    return {name: cell for dataset in SETS for name, cell in (_cells(dataset) | _texts(dataset)).items()}
