"""What the rest costs: statistics, locating, and evaluation against the model's bare forward rate."""

from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from benchmarks import common
from retcon import forward, stats, tokens
from retcon.evaluate import evaluate, plan
from retcon.evaluate.answers import Answers, Ids
from retcon.evaluate.generating import said
from retcon.evaluate.sampling import sampled
from retcon.lm import LM
from retcon.locate import How, Kind, Tracing, attribute, suggest, trace
from retcon.methods.family import edited_layers

TRACED, SUGGESTED = 10, 30
SAMPLED, SAMPLED_OF = 20, 1000
"""Cases whose prompts are answered in two ways, and of how many they are a sample."""
FREE = ("efficacy_gen", "generalization_gen", "specificity_gen")
INTEGRATED = 2
"""Facts for integrated gradients, which take 20 evaluations for each of all layers."""


def statistics() -> None:
    """Seconds for the default layers, from text and from the model itself, nothing cached."""
    lm = LM.load(common.MODEL)
    paths = [lm.arch.mlp_out[layer] for layer in edited_layers(lm, None)]
    figures: dict[str, Any] = {"layers": len(paths)}
    for name, source in (("text", common.STATISTICS), ("self", stats.SELF)):
        found, seconds = common.timed(lambda source=source: stats.moments(lm, paths, source, cached=False))
        figures[name] = {"seconds": round(seconds, 1), "tokens": found[paths[0]].count}
    common.keep("cost_statistics", figures, lm)


def locating() -> None:
    """Seconds a fact of tracing with three noises and one kind of state, at every token and layer, and of attribution;
    then the layers that facts suggest."""
    lm = LM.load(common.MODEL)
    edits = [case.edit for case in common.cases(SUGGESTED)]
    trace(lm, edits[:1], Tracing(noises=3))  # probes
    figures: dict[str, Any] = {"noises": 3, "facts": TRACED}
    kinds: tuple[Kind, ...] = ("hidden", "mlp", "attn")
    for kind in kinds:
        _, seconds = common.timed(lambda kind=kind: trace(lm, edits[:TRACED], Tracing(kind=kind, noises=3)))
        figures[f"tracing_{kind}_seconds_per_fact"] = round(seconds / TRACED, 2)
    layers = range(lm.arch.n_layers)
    ways: tuple[How, ...] = ("gradient", "integrated")
    for how in ways:
        n = TRACED if how == "gradient" else INTEGRATED
        _, seconds = common.timed(lambda how=how, n=n: attribute(lm, edits[:n], layers, how=how))
        figures[f"attribution_{how}_seconds_per_fact"] = round(seconds / n, 2)
    found, seconds = common.timed(lambda: suggest(lm, edits, width=len(edited_layers(lm, None))))
    figures["suggestion"] = {
        "facts_given": found.given,
        "facts_known": found.used,
        "seconds": round(seconds, 1),
        "windows": {kind: list(window) for kind, window in found.windows.items()},
        "rule_of_depth": list(edited_layers(lm, None)),
    }
    common.keep("cost_locating", figures, lm)


def generation() -> None:
    """Free-running answers to the prompts of 20 sampled cases: all together, and one prompt at a time with `generate`.

    Both write greedily, by as many tokens at most, to the end token or the end of the line; distinct prompts alone
    count, so nothing is won by asking each once.
    """
    lm = LM.load(common.MODEL)
    cases = sampled(common.cases(SAMPLED_OF), SAMPLED, 0)
    asked = plan.make(lm, cases, plan.resolve(FREE), [], None)
    most = plan.asked_freely(asked, {}) | plan.neighbour_openings(asked)
    few = dict(list(most.items())[:2])
    alone(lm, few)
    Answers(lm).free(few)
    together, fast = common.timed(lambda: Answers(lm).free(most))
    single, slow = common.timed(lambda: alone(lm, most))
    again, repeated = common.timed(lambda: Answers(lm).free(most))
    assert together == again
    best = min(fast, repeated)
    same = sum(said(lm, together[prompt]) == said(lm, single[prompt]) for prompt in most)
    figures: dict[str, Any] = {
        "cases": len(cases),
        "prompts": len(most),
        "most_tokens": max(most.values()),
        "written_tokens": sum(map(len, together.values())),
        "together_seconds": [round(fast, 2), round(repeated, 2)],
        "one_at_a_time_seconds": round(slow, 2),
        "times_faster": round(slow / best, 2),
        "same_text": same,
    }
    common.keep("cost_generation", figures, lm)


def alone(lm: LM, most: dict[Ids, int]) -> dict[Ids, Ids]:
    """What `generate` writes to one prompt after the other."""
    ends: Any = forward.end_ids(lm)
    found = {}
    with lm.inference():
        for prompt, limit in most.items():
            ids = torch.tensor([prompt], device=lm.device)
            config = GenerationConfig(
                max_new_tokens=limit, do_sample=False, eos_token_id=ends or None, pad_token_id=ends[0] if ends else 0
            )
            stop = StoppingCriteriaList([_LineBreak(lm, len(prompt))])
            model: Any = lm.model
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=config, stopping_criteria=stop
            )
            row = out[0, len(prompt) :].tolist()
            found[prompt] = tuple(token for token in row if token not in ends)
    return found


class _LineBreak(StoppingCriteria):
    """Ends a text at the first line break after something that is no white space."""

    def __init__(self, lm: LM, start: int) -> None:
        self._lm, self._start = lm, start

    def __call__(self, ids: torch.Tensor, _scores: Any, **_options: Any) -> torch.Tensor:
        broken = ["\n" in tokens.decode(self._lm, row).lstrip() for row in ids[:, self._start :].tolist()]
        return torch.tensor(broken, device=ids.device)


def evaluation() -> None:
    """Tokens a second of scoring, over those of bare forwards of full batches of the same rows."""
    lm = LM.load(common.MODEL)
    cases = common.cases(100)
    prompts = sorted(
        {p for case in cases for p in (case.edit.text, *case.paraphrases, *(n.prompt for n in case.neighbours))}
    )
    rows = [tokens.encode(lm, prompt) for prompt in prompts]
    edit = cases[0].edit
    answers = [tokens.target_ids(lm, edit.text, edit.target), tokens.target_ids(lm, edit.text, edit.old or "no")]
    total = sum(len(row) for row in rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))

    def bare() -> None:
        with lm.inference():
            for batch in forward.batches(order, [len(row) for row in rows], 4096):
                aligned = forward.align([rows[i] for i in batch], [len(rows[i]) for i in batch], lm.device)
                last = torch.tensor([aligned.width - 1] * len(batch))
                with forward.gathered_head(lm, torch.arange(len(batch)), last):
                    forward.call(lm, aligned.ids, aligned.mask, aligned.positions)

    items = [(row, answers) for row in rows]
    bare()
    _, one = common.timed(bare)
    _, other = common.timed(lambda: forward.score(lm, items))
    _, again = common.timed(bare)
    rate = 2 * total / (one + again)
    figures: dict[str, Any] = {
        "prompts": len(rows),
        "tokens": total,
        "bare_tokens_per_second": round(rate),
        "score_tokens_per_second": round(total / other),
        "share_of_bare": round(total / other / rate, 3),
    }
    asked = ("efficacy", "generalization", "specificity")
    report, seconds = common.timed(lambda: evaluate(lm, cases, metrics=asked, cache=False))
    figures["whole_evaluation_seconds"] = round(seconds, 1)
    figures["cases"] = report.n
    common.keep("cost_evaluation", figures, lm)
