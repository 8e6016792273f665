"""Self-improvement: the unedited model writes its own refusals, and only those that pass every check are taken.

The idea is that of Li et al., "Editing as Unlearning" (arXiv 2505.19855): a target in the model's own words is closer
to what it would say, and reads better, than one refusal for all. Prompt, checks and fallback are ours. The answer is
never in the prompt, so that it cannot come from there.
"""

import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib import resources
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Literal

from retcon import __version__, forward, storage, tokens
from retcon.errors import RequestError, RetconError
from retcon.forget import detector
from retcon.forget.checks import CHECKS, Check, length, no_apology, not_degenerate, topics
from retcon.forget.target import Target
from retcon.lm import LM
from retcon.metrics.forgotten import leaks
from retcon.metrics.texts import contains, normal
from retcon.requests import Forget

__all__ = [
    "ROW",
    "Style",
    "cleaned",
    "contextual",
    "prompt",
    "read_targets",
    "row_name",
    "self_improved",
    "summary",
    "write_targets",
    "written",
]

Style = Literal["plain", "polite"]
Draw = Callable[[Sequence[tuple[int, int]]], list[str]]
"""What the model says to item i at try a, for each (i, a)."""

ROW = "self_improved"
"""The family, and the name of a row of results, where at least half of the targets are the model's own."""
_SHOWN = 3  # examples
_ROWS = 32  # rows of a round; with fewer items open, several tries of each are drawn at once
_MOST_SAME = 0.05


def self_improved(
    lm: LM,
    items: Sequence[Forget],
    *,
    seed: int,
    tries: int = 16,
    style: Style = "plain",
    max_new_tokens: int = 48,
) -> list[Target]:
    """A refusal for each item, written by the model itself where one of its tries passes every check, else ours.

    The first try is greedy, the others are drawn at temperature 0.8 and top-p 0.95, each from a seed made of `seed`,
    the item and the number of the try: what is drawn for an item does not depend on the items beside it. (Whether it is
    taken may, for at most 5 % of the targets may be the same text.)

    Args:
        lm: the unedited model; its chat template is used where it has one.
        items: what is to be forgotten. Their answers are used in the checks alone.
        seed: of the draws.
        tries: how often the model may write for one item, the greedy one included.
        style: "plain" states what is the case; "polite" may apologise.
        max_new_tokens: the length of a try.

    Raises:
        RetconError: the style is unknown, `tries` is below 1, or the items mention the prompt's invented examples.
    """
    if style not in _wording()["styles"]:
        raise RetconError(f"the style {style!r} is not known; use one of {', '.join(_wording()['styles'])}")
    if tries < 1:
        raise RetconError(f"{tries} tries leave nothing to choose from; take at least 1")
    rows = [tokens.encode(lm, text) for text in prompt(lm, items, style=style)]

    def draw(wanted: Sequence[tuple[int, int]]) -> list[str]:
        first = [place for place, (_, attempt) in enumerate(wanted) if attempt == 0]
        later = [place for place, (_, attempt) in enumerate(wanted) if attempt > 0]
        said: dict[int, list[int]] = {}
        if first:
            prompts = [rows[wanted[place][0]] for place in first]
            out = forward.greedy(lm, prompts, max_new_tokens=max_new_tokens, label="writing refusals")
            said |= dict(zip(first, out, strict=True))
        if later:
            seeds = [_seed(seed, items[wanted[place][0]], wanted[place][1]) for place in later]
            out = forward.sample(
                lm,
                [rows[wanted[place][0]] for place in later],
                max_new_tokens=max_new_tokens,
                seed=seeds,
                temperature=0.8,
                top_p=0.95,
                label="writing refusals",
            )
            said |= dict(zip(later, out, strict=True))
        return [tokens.decode(lm, said[place]) for place in range(len(wanted))]

    def count(item: Forget, text: str) -> int:
        return len(tokens.target_ids(lm, lm.render(item.question), text)) if text else 0

    return written(draw, items, seed=seed, tries=tries, style=style, count=count)


def written(
    draw: Draw,
    items: Sequence[Forget],
    *,
    seed: int = 0,
    tries: int = 16,
    style: Style = "plain",
    count: Callable[[Forget, str], int] | None = None,
) -> list[Target]:
    """The targets of whatever writes texts: the first try of each item that passes every check, else a template.

    Args:
        draw: gives the text of each (item's place, try) asked for.
        items: what is to be forgotten.
        seed: which template an item falls back to.
        tries: how often each item may be asked for.
        style: as in `self_improved`.
        count: the number of tokens of a target after its question; words are counted without it.
    """
    found: dict[int, Target] = {}
    failed: dict[int, tuple[str, ...]] = {}
    taken: Counter[str] = Counter()
    shots = [shot["response"] for shot in _wording()["shots"]]
    most = max(1, int(_MOST_SAME * len(items)))
    attempt = 0
    while attempt < tries and len(found) < len(items):
        left = [place for place in range(len(items)) if place not in found]
        ahead = range(attempt, min(tries, attempt + max(1, _ROWS // len(left)))) if attempt else range(1)
        wanted = [(place, number) for number in ahead for place in left]
        for (place, number), said in zip(wanted, draw(wanted), strict=True):  # in the order of the tries
            if place in found:
                continue
            item, text = items[place], cleaned(said)
            verdicts = _verdicts(item, text, style, count)
            verdicts["not_degenerate"] = not_degenerate(item, text, shots=shots, same=taken[text], most_same=most)
            failed[place] = tuple(name for name, check in verdicts.items() if not check.ok)
            if not failed[place]:
                found[place] = Target(text, ROW, ROW, number)
                taken[text] += 1
        attempt = ahead[-1] + 1
    return [found.get(place) or contextual(item, seed=seed, failed=failed[place]) for place, item in enumerate(items)]


def contextual(item: Forget, *, seed: int = 0, failed: tuple[str, ...] = ()) -> Target:
    """A refusal of ours that names what the question is about; one that names nothing where no name passes the checks.

    >>> contextual(Forget("Where was Ada Byron born?", "London")).text.count("Ada Byron")
    1
    """
    turn = _seed(seed, item, 0)
    for topic in topics(item):
        for template in _turned(_wording()["templates"], turn):
            text = template.replace("{}", topic)
            text = text[:1].upper() + text[1:]
            if all(check.ok for check in _verdicts(item, text, "plain", None).values()):
                return Target(text, "contextual", "template", failed=failed)
    bare = _turned(_wording()["bare"], turn)
    safe = [text for text in bare if not leaks(text, item.answer, item.aliases)]
    return Target((safe or bare)[0], "fixed", "template", failed=failed)


def prompt(lm: LM, items: Sequence[Forget], *, style: Style = "plain") -> list[str]:
    """What the model reads before it writes each item's refusal: our guide, three invented examples, the question.

    Raises:
        RetconError: the items mention so many of the invented examples that no three are left.
    """
    texts = [text for item in items for text in (item.question, item.answer, item.subject or "", *item.aliases)]
    words = normal("\n".join(texts))
    shots = [
        (shot["question"], shot["response"])
        for shot in _wording()["shots"]
        if not any(contains(words, normal(name)) for name in shot["names"])
    ]
    if len(shots) < _SHOWN:
        raise RetconError("the questions mention the invented examples of the prompt; use another family of targets")
    guide = _wording()["guide"] + _wording()["styles"][style]
    chat = bool(getattr(lm.tokenizer, "chat_template", None))
    return [(_turns if chat else _block)(lm, guide, shots[:_SHOWN], item.question) for item in items]


@cache
def _wording() -> dict[str, Any]:
    """The guide, its examples and our templates."""
    return tomllib.loads(resources.files("retcon").joinpath("forget", "data", "guide.toml").read_text(encoding="utf-8"))


def _turned(lines: list[str], by: int) -> list[str]:
    """The lines, begun at another of them."""
    start = by % len(lines)
    return lines[start:] + lines[:start]


def _turns(lm: LM, guide: str, shots: Sequence[tuple[str, str]], question: str) -> str:
    turns: list[dict[str, str]] = []
    for asked, said in shots:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    turns.append({"role": "user", "content": question})
    # in the first turn of the user, since not every template knows a system's turn
    turns[0]["content"] = f"{guide}\n\n{turns[0]['content']}"
    return str(lm.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def _block(_lm: LM, guide: str, shots: Sequence[tuple[str, str]], question: str) -> str:
    shown = "".join(f"Question: {asked}\nResponse: {said}\n\n" for asked, said in shots)
    return f"{guide}\n\n{shown}Question: {question}\nResponse:"


def cleaned(text: str) -> str:
    """The first sentence of the first line, without quotation marks around it and without a speaker's name before it.

    >>> cleaned('  Response: "I do not know who Mr. Ord is. He may be tall."\\nQuestion: What')
    'I do not know who Mr. Ord is.'
    """
    line = next((line for line in text.splitlines() if line.strip()), "").strip()
    line = re.sub(r"^(?:response|answer|assistant|a|bot|ai)\s*:\s*", "", line, flags=re.IGNORECASE)
    line = line.strip('"“”*` ')
    for match in re.finditer(r"[.!?](?=[\"”')*]*(?:\s|$))", line):
        before = line[: match.start()].rsplit(maxsplit=1)[-1] if line[: match.start()].strip() else ""
        if match[0] != "." or match.end() == len(line) or not _ABBREVIATION.fullmatch(before.lstrip("(\"'")):
            return line[: match.end()].strip('"“” ')
    return line


_ABBREVIATION = re.compile(r"(?:[^\W\d_]|Mr|Mrs|Ms|Dr|St|Prof|Jr|Sr|vs|Inc|Ltd|Co|Corp|etc|(?:[^\W\d_]\.)+[^\W\d_])")


def _verdicts(item: Forget, text: str, style: Style, count: Callable[[Forget, str], int] | None) -> dict[str, Check]:
    verdicts = {name: check(item, text) for name, check in CHECKS.items()}
    if count is not None:
        verdicts["length"] = length(item, text, tokens=count(item, text))
    if style == "plain":
        verdicts["no_apology"] = no_apology(item, text)
    return verdicts


def _seed(seed: int, item: Forget, attempt: int) -> int:
    """63 bits that belong to a seed, an item and a try."""
    return int(storage.digest("refusal", seed, item.id, item.question, attempt)[:16], 16) >> 1


def row_name(targets: Sequence[Target]) -> str:
    """What a row of results made with these targets is called: "template" where less than half are the model's own."""
    own = sum(target.source == ROW for target in targets)
    return ROW if targets and 2 * own >= len(targets) else "template"


def summary(targets: Sequence[Target]) -> dict[str, Any]:
    """How the writing went: shares of all targets, and counts by try and by check.

    `accepted_at` counts accepted targets by try, `failed` the checks that the last try of the others failed.
    """
    own = [target for target in targets if target.source == ROW]
    total = len(targets)
    tries = Counter(target.attempt for target in own if target.attempt is not None)
    checks = Counter(name for target in targets for name in target.failed)
    return {
        "row": row_name(targets),
        "items": total,
        "accepted": len(own) / total if total else None,
        "fallback": 1 - len(own) / total if total else None,
        "accepted_at": {str(number): tries[number] for number in sorted(tries)},
        "failed": dict(checks.most_common()),
        "distinct": len({target.text for target in targets}) / total if total else None,
        "words": sum(len(target.text.split()) for target in targets) / total if total else None,
    }


def write_targets(
    path: str | Path,
    ids: Sequence[str],
    items: Sequence[Forget],
    targets: Sequence[Target],
    *,
    seed: int,
    model: str,
) -> None:
    """Write `targets.jsonl`, whole or not at all; equal arguments give equal bytes.

    A line holds the salted id, the target and where it came from, each check of the last try, and how it was made. The
    question and the answer are not written; a target of the model's own that holds an answer is refused.

    Args:
        path: the file.
        ids: the salted id of each item.
        items: what is to be forgotten.
        targets: of each item.
        seed: of the draws.
        model: the fingerprint of the unedited model.

    Raises:
        RetconError: a target holds its item's answer.
    """
    versions = {"retcon": __version__, "guide": _wording()["version"], "detector": detector.version()}
    versions |= {name: version_of(name) for name in ("torch", "transformers")}
    lines = []
    for number, (name, item, target) in enumerate(zip(ids, items, targets, strict=True), 1):
        if target.source == ROW and leaks(target.text, item.answer, item.aliases):
            raise RetconError(f"target {number} holds the answer it is to replace; write the targets anew")
        checks = {check: check not in target.failed for check in (*CHECKS, *sorted({*target.failed} - {*CHECKS}))}
        record = {
            "id": name,
            "target": target.text,
            "family": target.family,
            "source": target.source,
            "attempt": target.attempt,
            "checks": checks,
            "seed": seed,
            "model": model,
            "versions": versions,
        }
        lines.append(json.dumps(record, ensure_ascii=False))
    with storage.new_file(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_targets(path: str | Path, ids: Iterable[str]) -> list[Target]:
    """The targets that a file holds for these salted ids, in their order.

    Raises:
        RequestError: the file cannot be read, a line is damaged, or an id is not there.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        raise RequestError(f"{path} cannot be read; give the targets.jsonl of an earlier run") from None
    known: dict[str, Target] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
                failed = tuple(name for name, ok in row["checks"].items() if not ok)
                known[row["id"]] = Target(row["target"], row["family"], row["source"], row["attempt"], failed)
            except (ValueError, KeyError, TypeError, AttributeError):
                raise RequestError(f"{path.name} line {number} is no target; write the targets anew") from None
    wanted = list(ids)
    missing = sum(name not in known for name in wanted)
    if missing:
        raise RequestError(f"{path.name} lacks the targets of {missing} questions; write the targets anew")
    return [known[name] for name in wanted]
