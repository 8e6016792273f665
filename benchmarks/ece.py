"""ECE: what its second stage saves, and whether each of its ideas earns its keep."""

import random
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from benchmarks import common, quality
from benchmarks.speed import PUBLISHED
from retcon.lm import LM
from retcon.methods import Method
from retcon.methods.family import edited_layers, search_config
from retcon.testing.reference import search_one

PLAIN, ALONE, FACTS = 10, 20, 100
IDEAS: dict[str, dict[str, Any]] = {
    "memit": {"p": 1.0, "groups": "none"},
    "p100": {"p": 1.0},
    "p95": {"p": 0.95},
    "p80": {"p": 0.8},
    "p60": {"p": 0.6},
    "p40": {"p": 0.4},
    "p80_random_neurons": {"p": 0.8, "neurons": "random"},
    "p60_random_neurons": {"p": 0.6, "neurons": "random"},
    "p80_four_clusters": {"p": 0.8, "n_clusters": 4},
    "p80_four_random_groups": {"p": 0.8, "n_clusters": 4, "groups": "random"},
    "p80_one_group": {"p": 0.8, "groups": "none"},
    "p80_adaptive_layers": {"p": 0.8, "layers_by": "attribution"},
    "p80_five_layers": {"p": 0.8, "width": 5},
    "p80_four_clusters_window": {"p": 0.8, "n_clusters": 4, "layers_by": "attribution", "width": 5},
    "p80_four_clusters_mass": {"p": 0.8, "n_clusters": 4, "layers_by": "mass"},
    "p80_warm_start": {"p": 0.8, "warm_start": 3},
    "p80_new_answer": {"p": 0.8, "answer": "new"},
    "p80_integrated": {"p": 0.8, "attribution": "integrated"},
}
"""Options of each row of the ablation, on top of ECE's own."""


def speed() -> None:
    """Seconds a fact, attribution included: the plain search, ours one at a time, in batches, and so on."""
    lm = LM.load(common.MODEL)
    edits = [case.edit for case in common.cases(FACTS)]
    ours = common.configured("ece")
    ours.edit(lm, edits[:2])  # statistics, templates and probes are not what is measured
    figures: dict[str, Any] = {}

    config = common.configured("memit", **{**PUBLISHED, "precision": "float32"}).config
    search = search_config(config, edited_layers(lm, config.layers)[-1], "layer_out")
    texts = ("", *ours.texts(lm))
    sample = random.Random(0).sample(range(FACTS), PLAIN)
    _, seconds = common.timed(lambda: [search_one(lm, edits[i], search, texts) for i in sample])
    figures["plain"] = {"facts": PLAIN, "seconds_per_fact": round(seconds / PLAIN, 3)}
    common.say(f"plain: {figures['plain']}")

    ways: dict[str, tuple[Method, int]] = {
        "one_at_a_time": (common.configured("ece", batches="single"), ALONE),
        "batched": (ours, FACTS),
        "by_four_clusters": (common.configured("ece", batches="clusters", n_clusters=4), FACTS),
        "warm_start": (common.configured("ece", batches="clusters", n_clusters=4, warm_start=3), FACTS),
        "memit": (common.configured("memit"), FACTS),
    }
    for name, (method, n) in ways.items():
        patch, seconds = common.timed(lambda method=method, n=n: method.edit(lm, edits[:n]))
        cost = (seconds - patch.info["seconds"]["statistics"]) / n
        figures[name] = {
            "facts": n,
            "seconds_per_fact": round(cost, 3),
            "times_faster_than_plain": round(figures["plain"]["seconds_per_fact"] / cost, 2),
            "seconds": patch.info["seconds"],
            "passes": patch.info.get("passes"),
            "efficacy": common.mean(common.held(lm, edits[:n], patch)),
        }
        common.say(f"{name}: {figures[name]}")
    alone = figures["one_at_a_time"]["seconds_per_fact"]
    figures["batched"]["times_faster_than_one_at_a_time"] = round(alone / figures["batched"]["seconds_per_fact"], 2)
    common.keep("ece/speed", {**figures, "config": asdict(ours.config)}, lm)


def cells() -> dict[str, Callable[[], None]]:
    """All cells by the name of their result."""
    found: dict[str, Callable[[], None]] = {"ece/speed": speed}
    for name, options in IDEAS.items():
        found[f"ece/idea_{name}"] = partial(quality.variant, f"ece/idea_{name}", "ece", options)
    return found
