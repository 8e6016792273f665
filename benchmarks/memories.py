"""Memories beside the weights: what they cost in use and on disk, what they fire on, how they hold up in sequence."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from benchmarks import common, many
from benchmarks.matrix import SLOW
from retcon import forward, tokens
from retcon.forward import Aligned
from retcon.lm import LM
from retcon.methods import Method
from retcon.methods.grace import GRACE
from retcon.methods.grace.rows import read_places
from retcon.methods.memories import name_of
from retcon.methods.wise import WISE
from retcon.methods.wise.shards import drawn_mask, generator
from retcon.patch import Codebook, Gated, Patch, Step, describe_base
from retcon.requests import Case, to_dict
from retcon.testing.reference_grace import PlainGrace
from retcon.testing.reference_wise import PlainWise

MEMORIES = ("grace", "wise", "ike", "scr")
BASELINES = ("ft-l", "ft-m", "locft-bf", "lora")
KINDS = ("memit", "locft-bf", "lora", *MEMORIES)
"""One method for each kind of entry, and all memories: low rank, dense, factors in all layers, keys, gates, texts."""
FEW, FEW_BATCH = 100, 10
"""Facts of the patches that are looked at here, made in batches."""
KEYS, PROMPTS, ROUNDS = 10_000, 8, 61
LIMIT = 0.05
"""The most that a lookup may add to a forward."""
NEW_TOKENS, ASKED = 64, 4
"""Tokens to generate, and prompts of each sort to time it on."""
CASES, NEIGHBOURS = 50, 5
"""Cases whose prompts are tried on the memories, and neighbours of each."""
PLAIN = 5
"""Facts that the plain references are timed on."""
PUBLISHED: dict[str, dict[str, Any]] = {
    "grace": {"steps": 100, "stop": 0.0, "end_token": True, "widest": None},
    "wise": {"templates": 10, "stop_on": "loss", "margin_tokens": "all", "locality_rows": 1},
}
"""Of the published options those that decide how long an edit takes; the others are ours, so that they hold as much."""


def built(lm: LM, name: str) -> tuple[Method, list[Case], Patch]:
    """The method's patch of the first hundred facts, made in batches of ten, and kept for other cells."""
    method, cases = common.configured(name), common.cases(FEW)
    folder = common.work(f"sequence_{name}_{FEW}_{FEW_BATCH}")
    patch, _ = many.folded(lm, method, [case.edit for case in cases], FEW_BATCH, folder)
    return method, cases, patch


# ------------------------------------------------------------------------------------------------------ the lookup


def lookup() -> None:
    """What a codebook of ten thousand keys adds to a forward of eight prompts: by misses, by hits, and with wide balls,
    of which a quarter of the coordinates does not tell what is outside."""
    lm = LM.load(common.MODEL)
    prompts = [tokens.encode(lm, case.edit.text) for case in common.cases(PROMPTS)]
    layer = GRACE().layer(lm)
    rows = forward.align(prompts, [len(prompt) for prompt in prompts], lm.device)
    queries = read_places(lm, lm.arch.mlp_out[layer], prompts).queries
    figures: dict[str, Any] = {
        "keys": KEYS, "prompts": PROMPTS, "tokens": int(rows.mask.sum()), "layer": layer, "rounds": ROUNDS,
        "limit": LIMIT,
    }  # fmt: skip
    for what in _LOOKUPS:
        patch = _book(lm, layer, queries, what)
        plain, changed = _interleaved(lm, patch, lambda: _last_logits(lm, rows))
        (book,) = patch.entries.values()
        assert isinstance(book, Codebook)
        screened, full = (
            [common.timed(partial(way, queries))[1] for _ in range(ROUNDS)] for way in (book.hits, book.lookup)
        )
        figures[what] = {
            "hit": int(book.lookup(queries).hit.sum()),
            "forward_ms": round(1e3 * plain, 2),
            "with_codebook_ms": round(1e3 * changed, 2),
            "share": round(changed / plain - 1, 4),
            "screened_alone_ms": round(1e3 * statistics.median(screened), 2),
            "in_full_alone_ms": round(1e3 * statistics.median(full), 2),
        }
    figures["within_limit"] = max(figures[what]["share"] for what in _LOOKUPS) <= LIMIT
    common.keep("memories/lookup", figures, lm)


_LOOKUPS = ("misses", "hits", "wide")


def _book(lm: LM, layer: int, queries: torch.Tensor, what: str) -> Patch:
    """Keys spread as queries are. For `hits` the last of them are the queries themselves; for `wide` a ball's radius is
    0.8 of the median distance of a query from a key."""
    path, drawn = lm.arch.mlp_out[layer], torch.Generator().manual_seed(0)
    keys = queries.mean(0) + queries.std(0) * torch.randn(KEYS, queries.shape[1], generator=drawn)
    if what == "hits":
        keys[-len(queries) :] = queries
    radius = float((queries[0] - queries[1]).norm()) / 100
    if what == "wide":
        radius = 0.8 * float(torch.cdist(queries, keys).median())
    book = Codebook.made(
        keys, torch.randn(KEYS, lm.arch.d_model, generator=drawn), [radius] * KEYS, [(1,)] * KEYS, keys[:1], [0],
        ["hand"], radius=radius,
    )  # fmt: skip
    if what != "wide":
        assert bool(book.lookup(queries).hit.all()) == (what == "hits")
    return Patch({path: book}, describe_base(lm.model, [path], name=lm.name), (Step(method="hand"),))


def _last_logits(lm: LM, rows: Aligned) -> None:
    """One forward, its logits read at the last token alone, as generation reads them."""
    places = torch.arange(len(rows), device=lm.device)
    with lm.inference(), forward.gathered_head(lm, places, torch.full_like(places, rows.width - 1)):
        forward.call(lm, rows.ids, rows.mask, rows.positions)


def _interleaved(lm: LM, patch: Patch, work: Callable[[], Any], rounds: int = ROUNDS) -> tuple[float, float]:
    """Median seconds of some work without and with a patch, turn by turn, so that both meet the same machine."""
    plain, changed = [], []
    work()
    for _ in range(rounds):
        plain.append(common.timed(work)[1])
        with patch.on(lm.model):
            work()  # entries are brought to the model's device and dtype when they first run
            changed.append(common.timed(work)[1])
    return statistics.median(plain), statistics.median(changed)


# ------------------------------------------------------------------------------------------------- the cost in use


def overhead(name: str) -> None:
    """Milliseconds a token of generation with a cache, without and with a patch of a hundred facts; its size."""
    lm = LM.load(common.MODEL)
    method, cases, patch = built(lm, name)
    figures: dict[str, Any] = {"method": name, "n": len(cases), "new_tokens": NEW_TOKENS, "prompts": ASKED}
    figures["kinds"] = sorted({entry.kind for entry in patch.entries.values()})
    asked = {
        "edited": [case.edit.text for case in cases[:ASKED]],
        "neighbours": [case.neighbours[0].prompt for case in cases if case.neighbours][:ASKED],
    }
    for what, texts in asked.items():
        prompts = [tokens.encode(lm, text) for text in texts]
        spent = {length: _generated(lm, patch, prompts, length) for length in (1, NEW_TOKENS)}
        figures[what] = {
            "first_token_ms": [round(1e3 * seconds, 2) for seconds in spent[1]],
            "ms_per_token": [round(1e3 * seconds / NEW_TOKENS, 3) for seconds in spent[NEW_TOKENS]],
            "share": round(spent[NEW_TOKENS][1] / spent[NEW_TOKENS][0] - 1, 4),
        }
    folder = common.work(f"sequence_{name}_{FEW}_{FEW_BATCH}") / f"{FEW // FEW_BATCH - 1}"
    figures["bytes_on_disk"] = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    figures["bytes_of_tensors"] = patch.size_bytes
    figures["config"] = asdict(method.config)
    common.keep(f"memories/overhead_{name}", figures, lm)


def _generated(lm: LM, patch: Patch, prompts: Sequence[list[int]], length: int) -> tuple[float, float]:
    """Median seconds of generating so many tokens after one prompt, without and with the patch."""
    plain, changed = [], []
    for prompt in prompts:
        work = partial(forward.greedy, lm, [prompt], max_new_tokens=length, stop_at_eos=False)
        bare, patched = _interleaved(lm, patch, work, rounds=3)
        plain.append(bare)
        changed.append(patched)
    return statistics.median(plain), statistics.median(changed)


def hits(name: str) -> None:
    """Which prompts some memory takes: the edits' own, other wordings, neighbours; and whether it is the right one."""
    lm = LM.load(common.MODEL)
    method, cases, patch = built(lm, name)
    figures: dict[str, Any] = {"method": name, "n": len(cases), "cases": CASES}
    for what, texts_of in _SORTS.items():
        fired, right = [], []
        for case in cases[:CASES]:
            own = name_of(to_dict(case.edit))
            for text in texts_of(case):
                told = patch.explain(lm.model, tokens.encode(lm, lm.render(text)))
                taken = [memory["edits"] for part in told for memory in part.get("memories", ()) if memory["taken"]]
                fired.append(bool(taken))
                right.append(any(own in edits for edits in taken))
        figures[what] = {"prompts": len(fired), "fired": common.mean(fired), "with_its_own_edit": common.mean(right)}
        common.say(f"{name}, {what}: {figures[what]}")
    figures["notes"] = common.notes(patch)
    figures["config"] = asdict(method.config)
    common.keep(f"memories/hits_{name}", figures, lm)


_SORTS: dict[str, Callable[[Case], Sequence[str]]] = {
    "edits": lambda case: [case.edit.text],
    "paraphrases": lambda case: case.paraphrases,
    "neighbours": lambda case: [probe.prompt for probe in case.neighbours[:NEIGHBOURS]],
    "generation_prompts": lambda case: case.generation_prompts,
}


# ------------------------------------------------------------------------------------------- beside the plain form


def plain(name: str) -> None:
    """Seconds an edit and efficacy on five facts: ours, and the plain reference with our options and published ones.

    The reference trains one edit at a time, with the whole model at every step.
    """
    lm, method = LM.load(common.MODEL), common.configured(name)
    edits = [case.edit for case in common.cases(PLAIN + 1)]
    method.edit(lm, edits[PLAIN:])  # statistics and probes are made before
    patch, whole = common.timed(lambda: method.edit(lm, edits[:PLAIN]))
    part, held = patch.info["seconds"], common.held(lm, edits[:PLAIN], patch)
    seconds = (part["targets"] + part["solve"]) / PLAIN
    ours = {
        "seconds_per_edit": round(seconds, 3),
        "seconds_per_edit_with_all": round(whole / PLAIN, 3),
        "evaluations": common.mean([fact["evaluations"] for fact in patch.info["facts"]]),
        "efficacy": common.mean(held),
    }
    common.say(f"{name}: {ours}")
    figures: dict[str, Any] = {"method": name, "facts": PLAIN, "ours": ours}
    published = common.configured(name, **PUBLISHED[name])
    for what, how in (("plain", method), ("published", published)):
        near = patch if how is method else how.edit(lm, edits[PLAIN:])  # for its radius, or its contexts
        write, answers, evaluations = {"grace": _plain_grace, "wise": _plain_wise}[name](lm, how, near)
        spent = []
        for number, edit in enumerate(edits[:PLAIN]):
            spent.append(common.timed(partial(write, number, edit))[1])
            common.say(f"{what} {name} {number + 1}/{PLAIN}: {spent[-1]:.1f} s")
        figures[what] = {
            "seconds_per_edit": round(common.mean(spent), 3),
            "evaluations": common.mean(evaluations()),
            "efficacy": common.mean([answers(edit) for edit in edits[:PLAIN]]),
            "times_slower": round(common.mean(spent) / seconds, 2),
        }
    common.keep(
        f"memories/plain_{name}", {**figures, "config": asdict(method.config), "as_published": PUBLISHED[name]}, lm
    )


Reference = tuple[Callable[[int, Any], Any], Callable[[Any], bool], Callable[[], list[float]]]
"""Writes an edit of that number; says whether one is answered; tells how often the loss was looked at."""


def _plain_grace(lm: LM, method: Any, patch: Patch) -> Reference:
    assert isinstance(method, GRACE)
    book = PlainGrace(lm, method.config, method.layer(lm), patch.info["radius"])
    return (lambda _, edit: book.edit(edit)), book.answers, lambda: [len(losses) for losses in book.losses]


def _plain_wise(lm: LM, method: Any, patch: Patch) -> Reference:
    """With the templates, the ordinary prompts and the mask that ours had."""
    assert isinstance(method, WISE)
    (entry,) = patch.entries.values()
    assert isinstance(entry, Gated)
    config, making, evaluations = method.config, entry.making, list[float]()
    memory = PlainWise(
        lm, config, method.layer(lm), entry.activation, making["scale"], making["templates"],
        drawn_mask(config.seed, 0, entry.size, config.mask_ratio),
    )  # fmt: skip

    def write(number: int, edit: Any) -> None:
        drawn = generator(config.seed, "ordinary", number)
        picked = torch.randint(len(making["ordinary"]), (config.locality_rows,), generator=drawn).tolist()
        evaluations.append(len(memory.write(edit, [making["ordinary"][i] for i in picked])))
        if number == PLAIN - 1:
            memory.measure()

    return write, memory.answers, lambda: evaluations


def cells() -> dict[str, Callable[[], None]]:
    """All cells by the name of their result, the quickest first."""
    found: dict[str, Callable[[], None]] = {"memories/lookup": lookup}
    for name in ("grace", "wise"):
        found[f"memories/plain_{name}"] = partial(plain, name)
    for name in (*MEMORIES, *BASELINES):
        found[f"sequential_{FEW}/{name}"] = partial(many.sequence, name, FEW, FEW_BATCH, f"sequential_{FEW}")
    for name in KINDS:
        found[f"memories/overhead_{name}"] = partial(overhead, name)
    for name in MEMORIES:
        found[f"memories/hits_{name}"] = partial(hits, name)
    for name in (*MEMORIES, *BASELINES):
        found[f"sequential/{name}"] = partial(many.sequence, name, SLOW.get(name, many.FACTS), many.BATCH)
    return found
