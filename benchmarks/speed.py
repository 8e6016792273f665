"""The target search against the plain reference, in the same run; the floor; how cost grows with N."""

import random
from dataclasses import asdict, replace
from typing import Any

import torch

from benchmarks import common
from retcon import templates, values
from retcon.lm import LM
from retcon.memory import peak_memory_mb
from retcon.methods.family import edited_layers, search_config
from retcon.methods.memit import MEMIT, MEMITConfig
from retcon.requests import Edit
from retcon.testing.reference import search_one
from retcon.values import SearchConfig

FACTS = 10
PUBLISHED: dict[str, Any] = {
    "optimizer": "adam",
    "steps": 25,
    "lr": 0.5,
    "momentum": 0.9,
    "weight_decay": 0.5,
    "kl": 0.0625,
    "clamp": 0.75,
    "stop": 5e-2,
    "stop_probability": None,
}
"""MEMIT's published schedule (github.com/kmeng01/memit, gpt-j)."""


def search() -> None:
    """Seconds a fact and efficacy: plain reference, the same schedule, our schedule; distance to the floor."""
    lm = LM.load(common.MODEL)
    ours = MEMITConfig(statistics=str(common.STATISTICS))
    published = replace(ours, precision="float32", **PUBLISHED)
    edits = [case.edit for case in common.cases(100)]
    MEMIT(replace(ours, steps=2)).edit(lm, edits[:2])  # statistics, templates and probes are not what is measured
    figures: dict[str, Any] = {"rates_gflops": _rates()}

    layer = edited_layers(lm, ours.layers)[-1]
    texts = ("", *templates.written(lm, length=ours.template_length, seed=ours.seed))
    sample = random.Random(0).sample(range(100), FACTS)
    plain = search_config(published, layer, "layer_out")
    found, seconds = common.timed(lambda: [search_one(lm, edits[i], plain, texts) for i in sample])
    figures["plain_seconds_per_fact"] = round(seconds / FACTS, 3)
    figures["plain_evaluations"] = common.mean([len(result.losses) for result in found])
    common.say(f"plain: {seconds / FACTS:.2f} s a fact")

    for label, config in (
        ("equal_schedule", replace(published, precision=ours.precision)),
        ("our_schedule", ours),
    ):
        patch, seconds = common.timed(lambda config=config: MEMIT(config).edit(lm, edits))
        part = patch.info["seconds"]
        cost = (part["targets"] + part["solve"]) / len(edits)
        figures[label] = {
            "seconds_per_fact": round(cost, 3),
            "seconds": part,
            "times_faster": round(figures["plain_seconds_per_fact"] / cost, 1),
            "evaluations": common.mean([fact["evaluations"] for fact in patch.info["facts"]]),
            "efficacy": common.mean(common.held(lm, edits, patch)),
        }
        common.say(f"{label}: {figures[label]}")
    alike = values.search(lm, [edits[i] for i in sample], plain, texts)
    mixed = values.search(lm, [edits[i] for i in sample], replace(plain, precision="bfloat16"), texts)
    reference = torch.stack([result.base + result.delta for result in found])
    cosine = torch.nn.functional.cosine_similarity
    figures["target_cosine_to_plain"] = {
        "float32": round(float(cosine(alike.target, reference).min()), 6),
        "bfloat16": round(float(cosine(mixed.target, reference).min()), 6),
    }
    figures["floor"] = _floor(lm, edits, texts, search_config(ours, layer, "layer_out"), figures)
    figures["config"] = asdict(ours)
    common.keep("speed_search", figures, lm)


def _rates() -> dict[str, float]:
    """Measured matrix-product rates, GFLOP/s, at the MLP's shape and 512 rows."""
    rates = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        x, w = torch.randn(512, 576).to(dtype), torch.randn(1536, 576).to(dtype)
        for _ in range(20):
            torch.nn.functional.linear(x, w)
        _, seconds = common.timed(lambda x=x, w=w: [torch.nn.functional.linear(x, w) for _ in range(300)])
        rates[name] = round(300 * 2 * 512 * 576 * 1536 / seconds / 1e9, 1)
    return rates


def _floor(
    lm: LM, edits: list[Edit], texts: tuple[str, ...], config: SearchConfig, figures: dict[str, Any]
) -> dict[str, float]:
    """Seconds of one evaluation of one fact if only its floating-point operations counted, and as measured."""
    rows = [row for i, edit in enumerate(edits) for row in values.rows_of(lm, edit, texts, i)]
    block = sum(weight.numel() for weight in lm.block(0).parameters() if weight.ndim == 2)
    head = lm.model.get_output_embeddings().weight.numel()  # type: ignore[union-attr, operator]
    above = lm.arch.n_layers - config.layer - 1
    run = sum(len(row.ids) - row.site for row in rows) / len(edits)
    reads = sum(len(row.target) or 1 for row in rows) / len(edits)
    flops = 2 * 2 * (run * above * block + reads * head)  # forward, and backward to the activations
    rate = figures["rates_gflops"][config.precision] * 1e9
    fast = values.search
    _, long = common.timed(lambda: fast(lm, edits, replace(config, steps=7, stop=0.0, stop_probability=None), texts))
    _, short = common.timed(lambda: fast(lm, edits, replace(config, steps=3, stop=0.0, stop_probability=None), texts))
    measured = (long - short) / 4 / len(edits)
    return {
        "tokens_run_per_fact": round(run, 1),
        "gflop_per_evaluation": round(flops / 1e9, 2),
        "floor_seconds": round(flops / rate, 4),
        "measured_seconds": round(measured, 4),
        "times_floor": round(measured * rate / flops, 2),
    }


def memit() -> None:
    """MEMIT at N = 100 and 1,000: seconds an edit, peak memory over the model's, `patch.on`."""
    lm = LM.load(common.MODEL)
    method = MEMIT(MEMITConfig(statistics=str(common.STATISTICS)))
    edits = [case.edit for case in common.cases(1000)]
    MEMIT(replace(method.config, steps=2)).edit(lm, edits[:2])  # statistics, templates and probes are not measured
    model_mb = sum(weight.nbytes for weight in lm.model.parameters()) / 2**20
    figures: dict[str, Any] = {"model_mb": round(model_mb, 1), "peak_mb_before": peak_memory_mb()}
    for n in (100, 1000):
        patch = method.edit(lm, edits[:n])
        part = patch.info["seconds"]
        figures[f"n{n}"] = {
            "seconds": part,
            "seconds_per_edit": round((part["targets"] + part["solve"]) / n, 4),
            "peak_mb": peak_memory_mb(),
        }
        common.say(f"N = {n}: {figures[f'n{n}']}")
    figures["cost_ratio"] = round(figures["n1000"]["seconds_per_edit"] / figures["n100"]["seconds_per_edit"], 3)
    figures["peak_mb_over_model"] = round((figures["n1000"]["peak_mb"] or 0) - model_mb, 1)
    with patch.on(lm.model):  # the first time also hashes the weights it touches
        pass

    def switch() -> None:
        for _ in range(20):
            with patch.on(lm.model):
                pass

    _, seconds = common.timed(switch)
    figures["on_and_off_ms"] = round(seconds / 20 * 1e3, 2)
    common.keep("memit", figures, lm)
