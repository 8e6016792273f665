"""Reports as they come: long answers, words that do not break, scripts, failures, many methods."""

from __future__ import annotations

import random
from typing import Any

import torch

from retcon.evaluate import ForgetReport, Report
from retcon.patch import Base, Codebook, Dense, Entry, LowRank, Patch, Step, WeightHash
from retcon.report.bench import Row

PLACES = ["Rome", "Paris", "Uppsala", "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch", "北京市", "القاهرة"]
VERSIONS = {"retcon": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.2"}


DETAILS: dict[str, Any] = {
    "ability": {
        "arithmetic": {
            "items": 4, "items_sha256": "ab", "scored_by": "retcon", "metric": "acc", "hits": [1.0, 0.0, 1.0, 0.0],
            "hits_before": [1.0, 1.0, 1.0, 0.0],
            "change": {"difference": -0.25, "interval": [-0.75, 0.0], "p": 0.62},
        }
    },
    "specificity_gen": {"neighbours": 1000, "answered_right_before": 37},
    "steps": [
        {"step": 1, "method": "memit", "edits": 50, "edits_so_far": 50, "judged": 2, "efficacy_gen": 0.5,
         "efficacy": 0.5, "intervals": {"efficacy": [0.0, 1.0]}},
        {"step": 2, "method": "ece", "edits": 50, "edits_so_far": 100, "judged": 2, "efficacy_gen": 1.0,
         "efficacy": None, "intervals": {}},
    ],
    "portability": {
        "two-hop": {"questions": 12, "portability_gen": 0.25, "before": 0.083},
        "alias <of>": {"questions": 3, "portability_gen": None, "before": None},
    },
    "facts_of_the_subject": {
        "1": {"facts": 5, "subjects": 5, "efficacy_gen": 1.0, "all_efficacy_gen": 1.0, "specificity": None},
        "3": {"facts": 9, "subjects": 3, "efficacy_gen": 0.889, "all_efficacy_gen": 0.667, "specificity": None},
    },
    "prefix_tokens": {
        "0": {"texts": 1, "efficacy_prefixed": 0.98, "interval": [0.95, 1.0], "before": 0.02},
        "200": {"texts": 3, "efficacy_prefixed": 0.41, "interval": None, "before": 0.01},
    },
}  # fmt: skip


def provenance(**more: Any) -> dict[str, Any]:
    return {
        "model": {"name": "smollm2-135m", "revision": None, "fingerprint": "9f" * 32, "dtype": "float32"},
        "patch": {"id": "0123456789abcdef", "parent": None, "method": "memit", "edits": 100},
        "seed": 0,
        "cases": {"scored": 100, "given": 100, "sampled": False},
        "file": {"name": "facts.jsonl", "sha256": "ab" * 32, "skipped": 0},
        "versions": VERSIONS,
        **more,
    }


def edits(n: int = 100) -> Report:
    draw = random.Random(0)
    cases = []
    for i in range(n):
        held, place = i % 50 != 7, PLACES[i % len(PLACES)]
        changed = [
            {"prompt": f"The tower {i} stands in the city of", "before": "Lyon, in the east of France.",
             "after": f"{place}, in the east of France."}
        ] if i % 4 == 0 else []  # fmt: skip
        cases.append(
            {
                "id": f"c{i}", "prompt": f"The headquarters of the {i}th company of the register is in the city of",
                "subject": f"company {i}", "target": place, "old": "Berlin",
                "metrics": {"efficacy": float(held), "generalization": draw.choice([0.0, 1.0])}, "before": {},
                "answers": {"before": "Berlin, the capital of Germany. It was founded in 1903.",
                            "after": f"{place if held else 'Berlin'}, the capital of Italy. It was founded in 1903."},
                "missed": ["In which city is it?"] if i % 9 == 0 else [], "changed": changed,
            }
        )  # fmt: skip
    metrics = {
        "efficacy": 0.98, "efficacy_prob": 0.99, "generalization": 0.71, "specificity": 0.24, "score": 0.482,
        "fluency": 5.91, "perplexity": 21.4, "log_perplexity": 3.063,
    }  # fmt: skip
    before = {
        "efficacy": 0.02, "efficacy_prob": 0.11, "generalization": 0.03, "specificity": 1.0, "score": 0.05,
        "fluency": 6.02, "perplexity": 20.19, "log_perplexity": 3.005,
    }  # fmt: skip
    intervals = {
        "efficacy": (0.95, 1.0), "efficacy_prob": (0.97, 1.0), "generalization": (0.62, 0.79), "fluency": (5.7, 6.1),
        "specificity": (0.18, 0.31), "score": (0.40, 0.55), "perplexity": (19.9, 23.1),
    }  # fmt: skip
    return Report(n, dict(metrics), dict(before), 4.2, intervals, provenance=provenance(), cases=cases)


def forgetting() -> ForgetReport:
    items: list[dict[str, Any]] = [
        {"id": f"{i:016x}", "set": name, "metrics": {}, "metrics_before": {}, "known": True, "leaked": i % 8 == 3,
         "refused": True, "question": f"What is the profession of the {i}th author's father, and since when?",
         "gold": "He is a lighthouse keeper", "before": "He is a lighthouse keeper since 1961.",
         "after": "I have no information about that." if i % 8 != 3 else "A lighthouse keeper, I believe."}
        for name in ("forget", "retain")
        for i in range(20)
    ]  # fmt: skip
    return ForgetReport(
        n=20,
        known=20,
        metrics={
            "reliability": 0.86,
            "leakage": 0.15,
            "refusal_rate": 0.85,
            "locality": 0.78,
            "over_refusal": 0.1,
            "forget_quality": 0.31,
            "privleak": -12.0,
            "mia_min_k": 0.61,
        },
        before={
            "reliability": 0.02,
            "leakage": 1.0,
            "refusal_rate": 0.0,
            "locality": 1.0,
            "over_refusal": 0.0,
            "forget_quality": 1e-9,
            "privleak": -95.0,
            "mia_min_k": 0.97,
        },
        seconds=3.0,
        intervals={"reliability": (0.8, 0.91), "leakage": (0.02, 0.24), "locality": (0.7, 0.84)},
        warnings=["Access control: the weights still hold the answers; whoever takes the patch off has them back."],
        not_applicable={"model_utility": "there are no questions on real authors; give real_authors"},
        detector={"precision": 0.99, "recall": 0.98, "fresh": {"precision": 0.95, "recall": 0.9}},
        provenance=provenance(asked="chat"),
        items=items,
    )


def patch() -> Patch:
    generator = torch.Generator().manual_seed(0)
    entries: dict[str, Entry] = {}
    weights = {}
    for layer in range(8, 15):
        for name, (d_out, d_in) in {"mlp.down_proj": (8, 12), "self_attn.o_proj": (8, 8)}.items():
            path = f"model.layers.{layer}.{name}"
            U, V = torch.randn(d_out, 3, generator=generator), torch.randn(d_in, 3, generator=generator)
            entries[path] = LowRank(U * (15 - layer), V) if layer % 3 else Dense(U @ V.T)
            weights[path] = WeightHash(shape=(d_out, d_in), transposed=False, dtype="float32")
    edit = {"id": "e1", "prompt": "{} is in", "subject": "Big Ben", "target_new": "Rome", "target_true": "London"}
    step = Step(method="memit", edits=(edit,), seed=0, versions=VERSIONS)
    return Patch(entries, Base(model="smollm2-135m", weights=weights), (step,))


def memory() -> Patch:
    """A patch that makes a model forget, and whose only entry looks at the prompt."""
    path = "model.layers.9.mlp.down_proj"
    book = Codebook(
        keys=torch.ones(2, 12), values=torch.ones(2, 8), radii=torch.ones(2), label_ids=torch.tensor([1, 2]),
        label_offsets=torch.tensor([0, 1, 2]), queries=torch.ones(2, 12), owners=torch.tensor([0, 1]), names=("a", "b"),
    )  # fmt: skip
    weights = {path: WeightHash(shape=(8, 12), transposed=False, dtype="float32")}
    edits = tuple({"id": f"{n:016x}", "prompt": None, "target_new": f"I know nothing of topic {n}."} for n in range(2))
    steps = (Step(method="grace", edits=edits),)
    return Patch(
        {path: book}, Base(model="/home/me/models/secret", weights=weights), steps, info={"forget": {"questions": 5}}
    )


def rows() -> list[Row]:
    draw = random.Random(1)
    found: list[Row] = []
    names = ["memit", "alphaedit", "rome", "emmet", "pmet", "ultraedit", "grace", "wise", "ike", "locft-bf", "lora"]
    for n in (100, 1000):
        for name in names:
            held, kept = draw.uniform(0.4, 1.0), draw.uniform(0.3, 0.99)
            for seed in (0, 1):
                wobble = draw.uniform(-0.02, 0.02)
                held_, kept_ = min(1.0, held + wobble), min(1.0, kept + wobble)
                score = 3 / (2 / held_ + 1 / kept_)
                found.append(
                    {
                        "model": "smollm2-135m", "method": name, "dataset": "counterfact", "n": n, "seed": seed,
                        "mode": "sequential" if n == 1000 else "batch", "seconds": draw.uniform(1, 600),
                        "figures": {"efficacy": held_, "generalization": held_, "specificity": kept_, "score": score,
                                    "perplexity": 20 * (2 - kept_)},
                        "before": {"perplexity": 20.0, "specificity": 1.0},
                        "intervals": {"efficacy": (held_ - 0.05, min(1.0, held_ + 0.05)), "score": (score - 0.04,
                                      score + 0.04), "specificity": (kept_ - 0.05, min(1.0, kept_ + 0.05))},
                        "retention": [{"edits": k, "figures": {"efficacy": held_ ** (k / 1000)}}
                                      for k in (100, 250, 500, 750, 1000)] if n == 1000 else [],
                    }
                )  # fmt: skip
    found.append({"method": "ece", "dataset": "counterfact", "n": 1000, "error": "no memory left <for> its statistics"})
    return found
