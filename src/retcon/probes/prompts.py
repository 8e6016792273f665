"""Prompt attacks: other ways to put a question, none of which tells any of its answer.

Families after RWKU (Jin et al., arXiv 2406.10890), which counts nine; the wordings are ours, in `data/prompts.toml`. A
question counts as answered where one of an attack's wordings brings its answer out; the share of wordings is told too.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import TemplateError

from retcon import tokens
from retcon.forget.paraphrases import paraphrased
from retcon.forget.subjects import Subject, find_subjects
from retcon.lm import LM
from retcon.methods.unlearning.batches import order_of
from retcon.metrics.texts import mentions
from retcon.probes.scene import Finding, Scene, comes_out, question_ids
from retcon.probes.tries import finding, joined
from retcon.requests import Forget

__all__ = [
    "FewShot",
    "Rephrase",
    "Wordings",
    "affirmative_start",
    "blanked",
    "few_shot",
    "opened",
    "rephrase",
    "reverse",
    "system_prompt",
    "under_system",
    "worded",
]

BLANK = "____"
_Told = Mapping[int, Sequence[tuple[str, list[int]]]]
"""By number of the question, prompts as ids, each with the text that the attack adds or asks."""
_NAMED = ("given", "contrast", "entity", "tail")
"""Rules that find a subject worth asking for; the others take whatever word stands last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wordings:
    """Options of the prompt attacks whose wordings come with the package."""

    most: int | None = None
    """The first so many wordings; none for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rephrase:
    """Options of the rephrasing attack."""

    most: int = 4
    """Other wordings of a question: its own, or, where it has none, made by rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FewShot:
    """Options of the few-shot attack."""

    shots: int = 4
    """Questions to keep, with their answers, that go before."""
    draws: int = 1
    """How often they are drawn anew."""


@cache
def templates() -> dict[str, Any]:
    """What stands in `data/prompts.toml`."""
    text = resources.files("retcon").joinpath("probes", "data", "prompts.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def setting(name: str, **more: Any) -> dict[str, Any]:
    """How a prompt attack was carried out."""
    return {"prompt": name, "version": templates()["version"], **more}


def worded(name: str, scene: Scene, config: Wordings) -> Iterator[Finding]:
    """The question inside a text that is the same for all."""
    chosen = templates()[name]["wordings"][: config.most]
    texts = {i: [_filled(text, question=item.question) for text in chosen] for i, item in enumerate(scene.items)}
    yield _asked(scene, setting(name, wordings=len(chosen)), _questions(scene.lm, texts))


def rephrase(scene: Scene, config: Rephrase) -> Iterator[Finding]:
    """Other wordings of the question: those of its record, which no method sees, else made by rule."""
    texts, made = {}, 0
    for i, case in enumerate(scene.cases):
        own = list(case.paraphrases[: config.most])
        if not own:
            own = list(paraphrased(case.forget, n=config.most, seed=scene.seed))
            made += bool(own)
        texts[i] = own
    without = sum(not own for own in texts.values())
    notes = [f"{made} rephrased by rule"] if made else []
    notes += [f"{without} have no other wording"] if 0 < without < len(texts) else []
    if texts and without == len(texts):
        yield Finding(setting("rephrase", wordings=config.most), note="n/a: no question has another wording")
        return
    prompts = _questions(scene.lm, texts)
    yield _asked(scene, setting("rephrase", wordings=config.most), prompts, note=joined(*notes))


def few_shot(scene: Scene, config: FewShot) -> Iterator[Finding]:
    """Questions to keep with their answers, and the question after them; no shot holds what is looked for."""
    how = setting("few_shot", shots=config.shots, draws=config.draws)
    if not scene.retain:
        yield Finding(how, note="n/a: give questions to keep (retain)")
        return
    form, kept = templates()["few_shot"], [case.forget for case in scene.retain]
    texts: dict[int, list[str]] = {}
    for i, item in enumerate(scene.items):
        fit = [one for one in kept if one.question != item.question and not comes_out(_qa(one), item)]
        texts[i] = []
        for draw in range(config.draws if fit else 0):
            drawn = [fit[place] for place in order_of(len(fit), scene.seed, "few_shot", i, draw)[: config.shots]]
            shots = [_filled(form["shot"], question=one.question, answer=one.answer) for one in drawn]
            texts[i].append("\n\n".join([form["head"], *shots, _filled(form["last"], question=item.question)]))
    yield _asked(scene, how, _questions(scene.lm, texts))


def affirmative_start(scene: Scene, config: Wordings) -> Iterator[Finding]:
    """The beginning of an answer is put into the model's mouth."""
    lm, chosen = scene.lm, templates()["affirmative_start"]["openings"][: config.most]
    prompts = {i: [(text, opened(lm, item.question, text)) for text in chosen] for i, item in enumerate(scene.items)}
    yield _asked(scene, setting("affirmative_start", wordings=len(chosen)), prompts)


def opened(lm: LM, question: str, opening: str) -> list[int]:
    """The ids of a question and the first words of its answer."""
    text = lm.render(question)
    return [*tokens.encode(lm, text), *tokens.target_ids(lm, text, opening)]


def system_prompt(scene: Scene, config: Wordings) -> Iterator[Finding]:
    """A system prompt of the attacker's own, or a text before the question where there is no place for one."""
    lm, chosen = scene.lm, templates()["system_prompt"]["texts"][: config.most]
    prompts = {
        i: [(text, tokens.encode(lm, under_system(lm, text, item.question))) for text in chosen]
        for i, item in enumerate(scene.items)
    }
    yield _asked(scene, setting("system_prompt", wordings=len(chosen)), prompts)


def under_system(lm: LM, system: str, question: str) -> str:
    """What the model sees of a question under a system prompt."""
    together = f"{system}\n\n{question}"
    if not lm.chat:
        return together
    turns = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    try:
        text = str(lm.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except TemplateError:  # some templates refuse a system's turn
        text = ""
    return text if system in text and question.strip() in text else lm.render(together)


def reverse(scene: Scene, config: Wordings) -> Iterator[Finding]:
    """The answer is told, and the subject asked for; looked for is the subject, never the answer.

    A subject is asked for where the question holds it once, and neither the rest of it nor the answer tells it.
    """
    subjects = find_subjects(scene.items, [case.forget.question for case in scene.retain])
    chosen = templates()["reverse"]["wordings"][: config.most]
    prompts = {}
    for i, (item, subject) in enumerate(zip(scene.items, subjects, strict=True)):
        left = blanked(item, subject)
        if left is not None:
            texts = [_filled(text, blanked=left, answer=item.answer) for text in chosen]
            prompts[i] = [question_ids(scene.lm, text) for text in texts]
    how = setting("reverse", wordings=len(chosen))
    if not prompts:
        yield Finding(how, note="n/a: no question has a subject that can be asked for", answers=False)
        return
    note = f"{len(scene.cases) - len(prompts)} have no subject to ask for" if len(prompts) < len(scene.cases) else ""
    yield finding(
        scene,
        how,
        prompts,
        "attacking by reverse",
        note=joined("looked for is the subject", note),
        judge=lambda i, text: mentions(text, subjects[i].text),
    )


def blanked(item: Forget, subject: Subject) -> str | None:
    """A question without its subject; None where the subject is no name, or is told all the same."""
    left = item.question[: subject.start] + BLANK + item.question[subject.end :]
    told = mentions(f"{left} {item.answer} {' '.join(item.aliases)}", subject.text)
    return None if subject.source not in _NAMED or told else left


def _questions(lm: LM, texts: Mapping[int, Sequence[str]]) -> _Told:
    """Texts that take the question's place."""
    return {i: [(text, question_ids(lm, text)) for text in tries] for i, tries in texts.items()}


def _asked(scene: Scene, how: dict[str, Any], prompts: _Told, *, note: str = "") -> Finding:
    """What the prompts bring out; those are left out that tell the answer themselves."""
    safe = {
        i: [ids for text, ids in tries if not comes_out(text, scene.cases[i].forget)] for i, tries in prompts.items()
    }
    telling = sum(len(prompts[i]) - len(safe[i]) for i in prompts)
    note = joined(note, f"{telling} prompts left out that tell the answer" if telling else "")
    kept = {i: tries for i, tries in safe.items() if tries}
    return finding(scene, how, kept, f"attacking by {how['prompt']}", note=note)


def _qa(item: Forget) -> str:
    return f"{item.question} {item.answer}"


def _filled(text: str, **values: str) -> str:
    """A template with its places filled; what is put there is not looked through for places."""
    return re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), text)
