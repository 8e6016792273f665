"""EAMET against MEMIT: long prefixes, several facts of a subject, and what its options do."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import common, matrix, quality
from retcon import forward, hooks, solve, stats
from retcon.evaluate import evaluate
from retcon.evaluate.prefixes import PASSAGES
from retcon.lm import LM
from retcon.methods.alignment import misalignment
from retcon.methods.family import search_config
from retcon.methods.locate_and_edit import LocateAndEdit
from retcon.requests import Edit, load_cases
from retcon.sweep import Sweep
from retcon.values import rows_of

SEVERAL = common.DATA / "editing" / "several_facts_per_subject.jsonl"
COMPARED = ("memit", "eamet")
LENGTHS = (0, 5, 50, 100, 200)
"""Tokens of running text before the prompt."""
JUDGED = 100
THOUSAND = 1000
SHARES = (0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
"""Parts of a shift that are tried by themselves."""
RIDGES = (1000.0, 2000.0, 5000.0, 10000.0)
"""lambdas of the solve; 5000 is what both methods take for a thousand facts."""
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


# ------------------------------------------------------------------------------------------ what a solve makes of it


def why() -> None:
    """A thousand targets of each, written at the last edited layer alone: how much of a shift is written, and whether
    what is written answers."""
    lm, edits = LM.load(common.MODEL), [case.edit for case in common.cases(THOUSAND)]
    asked = range(0, len(edits), len(edits) // JUDGED)
    figures: dict[str, Any] = {"n": len(edits), "asked": len(asked)}
    for name in COMPARED:
        method: LocateAndEdit = common.configured(name)
        layer, texts = method.layers(lm)[-1], ("", *method.texts(lm))
        search = search_config(method.config, layer, "layer_out")
        found, _ = method.begun().find(lm, edits, search, texts, [common.store()], [])
        with Sweep(lm, edits, texts, [layer], bare_weight=method.bare_weight) as sweep:
            keys = sweep.read(layer, layer).keys.double()
        shifts = found.delta.double()
        ask = partial(_answered, lm, edits, layer, asked)
        figures[name] = {
            "probability": common.mean(found.probability.tolist()),
            "delta_norm": common.mean(shifts.norm(dim=1).tolist()),
            "misalignment": common.mean(misalignment(keys, shifts).tolist()),
            "efficacy_by_share_of_the_shift": {share: ask(share * shifts) for share in SHARES},
            "solved": {ridge: _solved(lm, layer, keys, shifts, ridge, ask) for ridge in RIDGES},
        }
        common.say(f"{name}: {figures[name]}")
    common.keep("eamet/why", figures, lm)


def _solved(
    lm: LM, layer: int, keys: Tensor, shifts: Tensor, ridge: float, ask: Callable[[Tensor], float]
) -> dict[str, float]:
    """What MEMIT's ridge makes of the shifts, (N, d) from keys (N, d_k), and what each part of it does alone."""
    path = lm.arch.mlp_out[layer]
    cost = ridge * stats.moments(lm, [path], str(common.STATISTICS))[path].second
    change = solve.ridge(keys.T, shifts.T, solve.cholesky(cost))
    written = (keys @ change.V) @ change.U.T
    share = (written * shifts).sum(1, keepdim=True) / shifts.square().sum(1, keepdim=True)
    return {
        "written_along_its_own_shift": common.mean(share[:, 0].tolist()),
        "left": common.mean(((shifts - written).norm(dim=1) / shifts.norm(dim=1)).tolist()),
        "efficacy": ask(written),
        "efficacy_of_the_part_along_its_own_shift": ask(share * shifts),
    }


def _answered(lm: LM, edits: Sequence[Edit], layer: int, asked: Sequence[int], shifts: Tensor) -> float:
    """Strict efficacy under the bare prompt with each fact's shift on the state at its subject's last token."""
    hits = []
    for i in asked:
        (row,) = rows_of(lm, edits[i], ("",), i, essence=False)

        def shifted(states: Tensor, site: int = row.site, shift: Tensor = shifts[i]) -> Tensor:
            return torch.cat(
                [states[:, :site], states[:, site : site + 1] + shift.to(states), states[:, site + 1 :]], 1
            )

        with hooks.rewritten(lm.module(lm.arch.blocks[layer]), shifted):
            prompt = row.ids[: len(row.ids) - len(row.target) + 1]
            ((one,),) = forward.score(lm, [(prompt, [row.target])])
        hits.append(all(one.hits))
    return common.mean(hits)


def cells() -> dict[str, Callable[[], None]]:
    """All cells by the name of their result."""
    found: dict[str, Callable[[], None]] = {}
    for name in COMPARED:
        found[f"eamet/several_{name}"] = partial(several, name)
        for n in (100, THOUSAND):
            found[f"eamet/prefixes_{n}_{name}"] = partial(prefixes, name, n)
    found["eamet/why"] = why
    for row in CAUSES:
        found[f"eamet/cause_{row}"] = partial(cause, row)
    for name, options in OPTIONS.items():
        found[f"eamet/option_{name}"] = partial(quality.variant, f"eamet/option_{name}", "eamet", options)
    return found
