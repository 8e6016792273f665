"""Self-improvement: the unedited model writes its own refusals, and only those that pass every check are taken.

The idea is that of Li et al., "Editing as Unlearning" (arXiv 2505.19855): a target in the model's own words is closer
to what it would say, and reads better, than one refusal for all. Prompt, checks and fallback are ours. The answer is
never in the prompt, so that it cannot come from there.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from retcon import tokens
from retcon.errors import RetconError
from retcon.forget.checks import CHECKS, Check, length, no_apology, not_degenerate, topics
from retcon.forget.drafts import Draft, drafts, kept_drafts
from retcon.forget.target import Target
from retcon.forget.wording import Style, named, prompt, turned, wording
from retcon.lm import LM
from retcon.metrics.forgotten import leaks
from retcon.requests import Forget
from retcon.storage import digest

__all__ = ["ROW", "cleaned", "contextual", "self_improved", "written"]

Draw = Callable[[Sequence[tuple[int, int]]], list[str]]
"""What the model says to item i at try a, for each (i, a)."""

ROW = "self_improved"
"""The family, and the name of a row of results, where at least half of the targets are the model's own."""
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
    cache: bool = True,
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
        cache: whether what the model has written before is taken, and what it writes now is kept.

    Raises:
        RetconError: the style is unknown, `tries` is below 1, or the items mention the prompt's invented examples.
    """
    if tries < 1:
        raise RetconError(f"{tries} tries leave nothing to choose from; take at least 1")
    rows = [tuple(tokens.encode(lm, text)) for text in prompt(lm, items, style=style)]
    store = kept_drafts(lm) if cache and items else None

    def draw(wanted: Sequence[tuple[int, int]]) -> list[str]:
        asked = [
            Draft(rows[place], _seed(seed, items[place], attempt) if attempt else None) for place, attempt in wanted
        ]
        return drafts(lm, asked, max_new_tokens=max_new_tokens, store=store)

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
    shots = [shot["response"] for shot in wording()["shots"]]
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
        for template in turned(wording()["templates"], turn):
            text = named(template, topic)
            if all(check.ok for check in _verdicts(item, text, "plain", None).values()):
                return Target(text, "contextual", "template", failed=failed)
    bare = turned(wording()["bare"], turn)
    safe = [text for text in bare if not leaks(text, item.answer, item.aliases)]
    return Target((safe or bare)[0], "fixed", "template", failed=failed)


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
    return int(digest("refusal", seed, item.id, item.question, attempt)[:16], 16) >> 1
