"""Many edits: a thousand in batches one after the other, and thousands at once. Both go on where they were stopped."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import common, quality
from retcon import storage
from retcon.evaluate import evaluate, retention_step
from retcon.lm import LM
from retcon.memory import peak_memory_mb
from retcon.methods import Method
from retcon.patch import Patch
from retcon.requests import Case, Edit, load_cases

TEN_THOUSAND = common.DATA / "editing" / "counterfact_10k.jsonl.gz"
FACTS, BATCH = 1000, 100
SEQUENTIAL = ("memit", "alphaedit", "ece", "eamet", "ultraedit")
SCALE = {"memit": 10_000, "ultraedit": 10_000, "eamet": 3_000, "alphaedit": 3_000}
FOLLOWED = ("efficacy", "efficacy_gen")
"""What is measured of all facts so far, after each batch."""
JUDGED = 200
JUDGED_AT_SCALE = 500


def folded(
    lm: LM, method: Method, edits: Sequence[Edit], batch: int, folder: Path
) -> tuple[Patch, list[dict[str, Any]]]:
    """Edits in batches, each on top of those before it, and after each what is still held; goes on where it stopped."""
    patch: Patch | None = None
    curve: list[dict[str, Any]] = []
    batches = [[Case(edit) for edit in edits[at : at + batch]] for at in range(0, len(edits), batch)]
    for step, added in enumerate(batches):
        here, told = folder / f"{step}", folder / f"{step}.json"
        if told.is_file():
            curve.append(json.loads(told.read_text(encoding="utf-8")))
            continue
        if step and patch is None:
            patch = Patch.load(folder / f"{step - 1}")
        patch = method.edit(lm, [case.edit for case in added], state=patch)
        kept = retention_step(lm, batches[: step + 1], patch, metrics=FOLLOWED)
        curve.append({
            "facts": kept["efficacy"].edits,
            **{name: found.of_all for name, found in kept.items()},
            **{f"{name}_interval": found.interval for name, found in kept.items()},
            **{f"{name}_by_batch": list(found.by_batch) for name, found in kept.items()},
            "seconds": patch.info["seconds"],
            "notes": common.notes(patch),
        })  # fmt: skip
        patch.save(here)
        storage.write_json(told, curve[-1])
        common.say(f"{method.name} {curve[-1]['facts']}: {curve[-1]['efficacy']:.3f} of all facts so far")
    return patch or Patch.load(folder / f"{len(curve) - 1}"), curve


def sequence(name: str, facts: int = FACTS, batch: int = BATCH, kind: str = "sequential") -> None:
    """Facts in batches, a thousand in hundreds unless said; after each, how many of all facts so far are still held."""
    lm, method = LM.load(common.MODEL), common.configured(name)
    cases = common.cases(facts)
    edits = [case.edit for case in cases]
    usual = (facts, batch) == (FACTS, BATCH)
    folder = common.work(f"sequence_{name}" if usual else f"sequence_{name}_{facts}_{batch}")
    patch, curve = folded(lm, method, edits, batch, folder)
    sample = JUDGED if len(edits) > JUDGED else None
    report = evaluate(lm, cases, patch=patch, metrics=quality.METRICS, text=common.TEXT, sample=sample)
    spent = [part["seconds"]["targets"] + part["seconds"]["solve"] for part in curve]
    figures = {
        "method": name,
        "n": len(edits),
        "batch": batch,
        "efficacy_of_all": curve[-1]["efficacy"],
        **common.reached(report),
        "retention": curve,
        "seconds_per_edit": round(sum(spent) / len(edits), 3),
        "patch_bytes": patch.size_bytes,
        "config": asdict(method.config),
    }
    common.keep(f"{kind}/{name}", figures, lm)


def start(name: str) -> None:
    """What a line break before the prompt does to the facts of a sequence, by whether their subject begins it.

    A model that attends to its first token for want of anything better has little room there for what that token says.
    """
    lm = LM.load(common.MODEL)
    folder = common.work(f"sequence_{name}") / f"{FACTS // BATCH - 1}"
    if not folder.exists():
        raise SystemExit(f"there is no sequence yet; run sequential/{name} first")
    patch, edits = Patch.load(folder), [case.edit for case in common.cases(FACTS)]
    bare = common.held(lm, edits, patch)
    after_break = common.held(lm, [replace(edit, prompt=f"\n{edit.prompt}") for edit in edits], patch)
    figures: dict[str, Any] = {"method": name, "n": len(edits), "batch": BATCH}
    for begins, place in ((True, "subject_first"), (False, "subject_later")):
        mine = [number for number, edit in enumerate(edits) if edit.prompt.startswith("{}") == begins]
        figures[place] = {
            "facts": len(mine),
            "efficacy": common.mean([bare[number] for number in mine]),
            "efficacy_after_a_line_break": common.mean([after_break[number] for number in mine]),
        }
    common.keep(f"sequential_start/{name}", figures, lm)


def scale(name: str, n: int) -> None:
    """Thousands of facts in one batch, judged on a seeded sample."""
    lm, method = LM.load(common.MODEL), common.configured(name)
    cases = list(load_cases(TEN_THOUSAND, limit=n).items)
    edits = [case.edit for case in cases]
    folder = common.work(f"scale_{name}_{n}") / "patch"
    if folder.exists():
        patch = Patch.load(folder)
    else:
        patch = method.edit(lm, edits, stores=[common.store()])
        patch.save(folder)
    held = common.held(lm, edits, patch)
    report = evaluate(lm, cases, patch=patch, metrics=quality.METRICS, text=common.TEXT, sample=JUDGED_AT_SCALE)
    figures = {
        "method": name,
        "n": n,
        "efficacy_of_all": common.mean(held),
        **common.reached(report),
        "seconds": patch.info["seconds"],
        "targets_cached": patch.info.get("targets_cached", 0),
        "peak_memory_mb": peak_memory_mb(),
        "patch_bytes": patch.size_bytes,
        "key_width": lm.arch.d_mlp,
        "config": asdict(method.config),
    }
    common.keep(f"scale/{name}_{n}", figures, lm)


def cells() -> dict[str, Callable[[], None]]:
    """All cells by the name of their result."""
    found: dict[str, Callable[[], None]] = {f"sequential/{name}": partial(sequence, name) for name in SEQUENTIAL}
    found |= {f"sequential_start/{name}": partial(start, name) for name in SEQUENTIAL}
    return found | {f"scale/{name}_{n}": partial(scale, name, n) for name, n in SCALE.items()}
