"""`probe`: every attack on every model, and what each brought out."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from retcon import progress
from retcon.errors import PatchError, RetconError, UnsupportedModel
from retcon.forget.asking import asking
from retcon.lm import LM
from retcon.metrics.summary import mean
from retcon.patch import Patch
from retcon.patch.history import jsonable
from retcon.probes.record import Probed, ProbeResult, row
from retcon.probes.scene import ORIGINAL, TWIN, UNLEARNED, Arm, Finding, Scene, plainly
from retcon.probes.table import PROBES, chosen
from retcon.requests import ForgetCase

__all__ = ["probe"]


def probe(
    lm: LM,
    forget: Sequence[ForgetCase],
    *,
    patch: Patch,
    retain: Sequence[ForgetCase] = (),
    twin: Patch | None = None,
    start: Patch | None = None,
    names: Iterable[str] | None = None,
    settings: Iterable[Any] = (),
    chat: bool | None = None,
    max_new_tokens: int = 40,
    seed: int = 0,
    reveal: bool = False,
) -> Probed:
    """Try to get forgotten answers back, and say what kind of forgetting it was.

        recovery = (attacked - unlearned) / (original - unlearned)

    Shares are of the known questions: those that the model before forgetting answers right when it is plainly asked, in
    that the answer or an alias of it stands in what it says. Every attack is made on that model too and, where there is
    one, on the twin; the model is left as it was.

    Args:
        lm: the model.
        forget: the questions whose answers must have gone.
        patch: what makes the model forget.
        retain: questions whose answers are to stay; some attacks show them, and subjects are told from them.
        twin: what makes of `lm` a model that never saw what is to be forgotten; only against it is anything called
            erased.
        start: what makes of `lm` the model before forgetting, if it is not `lm` itself: the patch that taught it what
            `patch` then makes it forget. The twin stands on `lm` alone.
        names: of `PROBES` or `GROUPS`; None for all usual ones.
        settings: options of probes, as their dataclasses (`Relearn(lr=(1e-3,))`); those not given have their defaults.
        chat: whether questions go through the chat template; None for as they did when the patch was made.
        max_new_tokens: the longest answer, in tokens.
        seed: of all that is drawn.
        reveal: whether the record keeps questions, answers and what was said; else it tells salted ids.

    Raises:
        RetconError: there is no question, no such probe, or no such option; the model has no chat template.
        PatchError: a patch does not fit the model, or its parent is not on it.
    """
    if not forget:
        raise RetconError("there is nothing to probe for; give at least one question")
    wanted, options = chosen(names), _options(settings)
    began = time.perf_counter()
    asked = _asked(lm, patch, chat)
    arms = [Arm(ORIGINAL, start), Arm(UNLEARNED, patch if start is None else start + patch)]
    arms += [] if twin is None else [Arm(TWIN, twin)]
    right = plainly(asked, arms, forget, max_new_tokens)
    known = [i for i, yes in enumerate(right[ORIGINAL]) if yes]
    plain = {name: [values[i] for i in known] for name, values in right.items()}
    cases = tuple(forget[i] for i in known)
    scene = Scene(asked, cases, tuple(retain), tuple(arms), plain, max_new_tokens, seed, reveal)
    results: list[ProbeResult] = []
    with progress.task("probing", len(wanted)) as advance:
        for name in wanted:
            results += _tried(scene, name, options)
            advance(1)
    return Probed(
        results=results,
        model=lm.name,
        patch=patch.id,
        method=patch.method,
        asked=len(forget),
        known=len(known),
        unlearned=mean(map(float, plain[UNLEARNED])),
        twin=mean(map(float, plain[TWIN])) if TWIN in plain else None,
        folds=all(entry.folds for entry in patch.entries.values()),
        has_twin=twin is not None,
        chat=asked.chat,
        seed=seed,
        seconds=round(time.perf_counter() - began, 3),
        settings=_told(wanted, options, max_new_tokens),
    )


def _asked(lm: LM, patch: Patch, chat: bool | None) -> LM:
    """The model as questions are put to it: by default as they were when the patch was made.

    Raises:
        RetconError: the chat template is wanted, and there is none.
    """
    made_plain = bool(patch.history) and not patch.history[-1].chat
    return asking(lm, False if chat is None and made_plain else chat)


def _options(settings: Iterable[Any]) -> dict[type, Any]:
    """The options of all probes, by their class: those given, else the defaults.

    Raises:
        RetconError: some are of no probe.
    """
    options = {attack.Config: attack.Config() for attack in PROBES.values()}
    for one in settings:
        if type(one) not in options:
            kinds = ", ".join(sorted(kind.__name__ for kind in options))
            raise RetconError(f"{type(one).__name__} holds the options of no probe; give some of {kinds}")
        options[type(one)] = one
    return options


def _tried(scene: Scene, name: str, options: dict[type, Any]) -> list[ProbeResult]:
    """The rows of one probe; what cannot be carried out on this model or patch says why."""
    attack, rows = PROBES[name], []
    if not scene.cases:
        return [row(scene, name, Finding({}, note="n/a: the model before forgetting answers no question right"), 0.0)]
    began = time.perf_counter()
    try:
        for found in attack.run(scene, options[attack.Config]):
            now = time.perf_counter()
            rows.append(row(scene, name, found, now - began))
            began = now
    except (PatchError, UnsupportedModel) as error:
        rows.append(row(scene, name, Finding({}, note=f"n/a: {error}"), time.perf_counter() - began))
    return rows


def _told(wanted: Sequence[str], options: dict[type, Any], max_new_tokens: int) -> dict[str, Any]:
    """What was chosen, in JSON types."""
    told: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    for name in wanted:
        told[name] = jsonable(asdict(options[PROBES[name].Config]))
    return told
