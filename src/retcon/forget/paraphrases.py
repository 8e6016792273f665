"""Other wordings of a question, by rules of our own, to judge by where a set has none; no model writes or sees them.

A question is turned around where its shape is plain ("What did Ada Lovelace write?" becomes "Could you tell me what Ada
Lovelace wrote?"; "What is the name of the seller?" becomes "Please name ..."; a clause that opens with "based on" moves
to the front), and always framed as it stands ("I would like to know: ...", "This is about Ada Lovelace. ..."). Where
the place of a verb is in doubt the rules keep off. They know English only; other questions are framed.
"""

import itertools
import random
import re
from collections.abc import Callable, Sequence

from retcon.forget.english import english
from retcon.forget.subjects import find_subjects
from retcon.metrics.texts import mentions, normal
from retcon.requests import Forget

__all__ = ["paraphrased", "turned", "version"]


def paraphrased(item: Forget, *, n: int = 2, seed: int = 0) -> tuple[str, ...]:
    """Other wordings of a question, each of another kind where there are kinds enough, one turned around if any can be.

    The same question and seed give the same ones. None equals the question; none holds the answer or an alias where the
    question itself does not.

    Args:
        item: the question; nothing of its answer is told.
        n: how many; there are four at least for whatever text, less those whose words are the answer.
        seed: of the choice.

    >>> paraphrased(Forget("What did Ada Lovelace write?", "the Notes"), n=1)
    ('I would like to know what Ada Lovelace wrote.',)
    """
    draw = random.Random(f"retcon-paraphrases-{version()}-{seed}-{item.question}")
    secrets = [secret for secret in (item.answer, *item.aliases) if not mentions(item.question, secret)]
    taken = {normal(item.question)}
    kinds = []
    for texts in _kinds(item):
        safe = [text for text in texts if not any(mentions(text, secret) for secret in secrets)]
        kinds.append(draw.sample(safe, len(safe)))
    first, rest = kinds[:1], kinds[1:]
    kinds = first + draw.sample(rest, len(rest))
    found: list[str] = []
    while len(found) < n and any(kinds):
        for texts in kinds:
            while texts:
                text = texts.pop()
                if normal(text) not in taken and len(found) < n:
                    taken.add(normal(text))
                    found.append(text)
                    break
    return tuple(found)


def version() -> int:
    """The number of the rules and frames, which grows with every change of what they give."""
    return english().version


def turned(question: str) -> tuple[str, ...]:
    """The question turned around, without a frame: as "what she wrote"; nothing where its shape is not plain.

    >>> turned("Where was Ada Lovelace born?"), turned("How does the seller notify the customer?")
    (('where Ada Lovelace was born',), ('how the seller notifies the customer',))
    """
    lead, main = _led(_body(question))
    if lead and not _CLAUSE.match(lead):  # "In 1998, ..." belongs to the verb
        return ()
    indirect = _indirect(_split(main))
    return () if indirect is None else (f"{indirect} {_lowered(lead, always=True)}".strip(),)


def _kinds(item: Forget) -> list[list[str]]:
    """What can be said, by kind; what is turned around comes first, and may be nothing."""
    frames, question = english().frames, item.question
    if not _asks(question):
        body = question.rstrip(" .!")
        if _split(body)[:1] and _split(body)[0].casefold() in english().words["command"]:
            return [[frame.format(_lowered(body, always=True)) for frame in frames["command"]]]
        lower = _lowered(question)
        return [[frame.format(question, lower=lower) for frame in frames["prompt"]]]
    found = [frame.format(text) for text in turned(question) for frame in frames["indirect"]]
    found += [frame.format(text) for text in _named(question) for frame in frames["noun"]]
    found += [frame.format(text) for text in _wished(question) for frame in frames["command"][:1]]
    return [found, _moved(question), _framed(item), _topical(item)]


def _framed(item: Forget) -> list[str]:
    return [frame.format(item.question) for frame in english().frames["question"]]


def _topical(item: Forget) -> list[str]:
    (subject,) = find_subjects([item])
    if subject.source not in ("given", "entity") or re.fullmatch(r"[\W\d_]+", subject.text):
        return []
    return [frame.format(item.question, topic=subject.text) for frame in english().frames["topic"]]


# ---- shapes of questions --------------------------------------------------------------------------------------------


def _asks(question: str) -> bool:
    """Whether the text is a question, and no beginning to go on from."""
    if question.rstrip().endswith("?"):
        return True
    words, known = [word.casefold() for word in _split(question)], english().words
    open_ended = known["auxiliary"] | known["preposition"] | known["determiner"] | known["joining"]
    begins = bool(words) and words[0] in known["question"] | known["auxiliary"]
    return begins and len(words) > 2 and words[-1] not in open_ended


def _body(question: str) -> str:
    text = question.strip().rstrip("?").rstrip()
    return re.sub(r"^(What|Who|Where|When|How)['’]s\b", r"\1 is", text)


def _led(body: str) -> tuple[str, str]:
    """A clause before the question, and the question: "Based on it, what is ..."."""
    match = re.match(r"(?P<lead>[^?'\"“]+), (?P<main>(?:what|who|whom|which|where|when|why|how)\b.*)$", body)
    if match is None or match["lead"].split()[0].casefold() in english().words["question"]:
        return "", body
    return match["lead"], match["main"]


def _moved(question: str) -> list[str]:
    """The question with its last clause, "based on ..." or "according to ...", in front."""
    body = _body(question)
    places = list(re.finditer(r",? (?=(?:based on|according to) )", body))
    if not places or _quoted(body, places[-1].end()):
        return []
    main, clause = body[: places[-1].start()], body[places[-1].end() :]
    if _split(main)[0].casefold() not in english().words["question"] | english().words["preposition"]:
        return []
    return [f"{clause[0].upper()}{clause[1:]}, {_lowered(main, always=True)}?"]


def _named(question: str) -> list[str]:
    """What is asked for, as a noun: "the name of the seller"."""
    lead, main = _led(_body(question))
    words, known = _split(main), english().words
    lower = [word.casefold() for word in words]
    if lead or lower[:1] not in (["what"], ["who"]) or lower[1:2] not in (["is"], ["are"], ["was"], ["were"]):
        return []
    rest, low = words[2:], [word.rstrip(",") for word in lower[2:]]
    if (
        len(rest) < 2
        or "like" in low
        or _joined(low)
        or low[-1] in known["preposition"]
        or english().is_participle(low[-1])
    ):
        return []
    if low[0] not in ("the", "some"):
        owner = next((k for k, word in enumerate(rest) if not _is_name(word)), len(rest)) - 1
        if owner < 0 or not _owns(rest[owner]) or owner + 1 >= len(rest):
            return []
        after = low[owner + 1 :]
    else:
        after = low[1:]
    head = next((k for k, word in enumerate(after) if word in known["after_noun"]), None)
    if head is None:
        head = len(after) if len(after) <= 3 else None
    plain = head is not None and 1 <= head <= 5 and not any(map(english().is_participle, after[1:head]))
    return [" ".join(rest)] if plain else []


def _wished(question: str) -> list[str]:
    """What is wished for by "can you ...?"."""
    match = re.match(r"(?:can|could|would|will) you (?:please )?(\w+) .+", _body(question), re.IGNORECASE)
    if match is None or match[1].casefold() not in english().bases | english().words["command"]:
        return []
    return [match[0][match.start(1) - match.start() :]]


def _indirect(words: Sequence[str]) -> str | None:
    """The words of a question in the order of a statement; None where the place of its verb is in doubt."""
    known, lower = english().words, [word.casefold() for word in words]
    if not words or "not" in lower or any("n't" in word or "n’t" in word for word in lower):
        return None
    if lower[0] in known["auxiliary"]:
        if lower[1:2] == ["you"]:
            return None
        moved = _stated(lower[0], words[1:], (), yes_or_no=True)
        return None if moved is None else f"whether {moved}"
    at = 1 if lower[0] in known["preposition"] else 0
    if lower[at : at + 1] == [] or lower[at] not in known["question"]:
        return None
    place = next((k for k in range(at + 1, len(words)) if lower[k] in known["auxiliary"]), None)
    opening = [_lowered(words[0], always=True), *words[1:]]
    between = lower[at + 1 : place]
    told = any(english().is_past(word) or word in known["relative"] for word in between)
    if place is None or told or (between and lower[at] in ("what", "who") and _is_name(words[at + 1]) and at == 0):
        # the question word is the subject of a verb of its own: "who wrote it"
        return " ".join(opening) if at == 0 and (told or place is None) and english().has_past(lower[1:]) else None
    if at == 0 and lower[0] not in ("when", "where", "why") and _is_predicate(lower[place], lower[place + 1 :]):
        return " ".join(opening)
    moved = _stated(lower[place], words[place + 1 :], lower[at:place])
    return None if moved is None else f"{' '.join(opening[:place])} {moved}"


def _is_predicate(auxiliary: str, after: Sequence[str]) -> bool:
    """Whether what follows an auxiliary completes its verb, so that the question word is the subject."""
    words = [word for word in after if word not in english().words["adverb"] and not word.endswith("ly")]
    if not words:
        return False
    if auxiliary in _BE:
        return english().is_participle(words[0]) or words[0] in english().words["adjective"]
    if auxiliary in _HAVE:
        return english().is_participle(words[0])
    return auxiliary not in _DO and (words[0] in english().bases or words[0] in ("be", "have"))


def _stated(auxiliary: str, rest: Sequence[str], asked: Sequence[str], yes_or_no: bool = False) -> str | None:
    """Subject, then verb, of what follows an auxiliary: "Ada Lovelace", "was born"."""
    lower = [word.casefold().strip(",;") for word in rest]
    if not rest or _joined(lower):
        return None
    bare_be = auxiliary in _BE and tuple(asked) in (("what",), ("who",))
    if auxiliary in _BE:
        fits: Callable[[str], bool] = lambda w: english().is_participle(w) or w in english().words["adjective"]  # noqa: E731
    elif auxiliary in _HAVE:
        fits = english().is_participle
    else:
        fits = lambda w: w in english().bases or w in ("be", "have")  # noqa: E731
    at = _after_subject(rest, fits, alone=auxiliary in _BE, paired=auxiliary in _HAVE)
    if at is None and auxiliary in _BE:
        at = _after_name(rest, asked, yes_or_no)
    elif bare_be:  # "what is the name of the man born in ...": of a noun, not of the verb
        return None
    if at is None:
        return None
    if auxiliary in _DO:
        verb = {"do": lower[at], "does": english().third(lower[at]), "did": english().past(lower[at])}[auxiliary]
        return " ".join([*rest[:at], verb + rest[at][len(lower[at]) :], *rest[at + 1 :]])
    while at > 1 and (lower[at - 1] in english().words["adverb"] or lower[at - 1].endswith("ly")):
        at -= 1
    return " ".join([*rest[:at], auxiliary, *rest[at:]])


def _after_subject(rest: Sequence[str], fits: Callable[[str], bool], *, alone: bool, paired: bool) -> int | None:
    """Where the verb stands after its subject; None where there is none, or where it may be another's.

    Args:
        rest: the words from the subject on.
        fits: whether a word may be the verb.
        alone: whether a second such word in the rest leaves it in doubt.
        paired: whether one may follow at once, as in "been seen"; else the first may be a noun.
    """
    known, found = english().words, None
    closed = known["determiner"] | known["preposition"] | known["joining"] | known["adjective"]
    first = 1 if rest[0].casefold() in known["pronoun"] else None
    for k in range(1, len(rest)):
        word, before = rest[k].casefold().strip(",;"), rest[k - 1]
        if found is None:
            if before.endswith((",", ";")) or word in known["relative"]:
                return None
            bound = before.casefold() in closed or _owns(before)
            if _is_name(rest[k]) or (bound and k != first) or not fits(word):
                continue
            found = k
        elif (alone and fits(word) and not _is_name(rest[k])) or (k == found + 1 and fits(word) and not paired):
            return None
    return found


def _after_name(rest: Sequence[str], asked: Sequence[str], yes_or_no: bool) -> int | None:
    """Where a name ends that is the whole subject: before what is said of it, or at the end."""
    lower, known = [word.casefold() for word in rest], english().words
    start = 1 if lower[0] in known["title"] | {"the"} and len(rest) > 1 else 0
    end = next((k for k in range(start, len(rest)) if not _is_name(rest[k])), len(rest))
    if end == start or any(word.endswith(",") or _owns(word) for word in rest[:end]):
        return None
    if yes_or_no:
        return end if end < len(rest) and lower[end] in {"a", "an", "the", "in", "from"} else None
    return end if end == len(rest) and asked and asked[0] not in ("how", "why") else None


def _joined(lower: Sequence[str]) -> bool:
    """Whether a second question is joined to the first: "... and how did she ..."."""
    opening = english().words["question"] | english().words["auxiliary"]
    return any(a in ("and", "or", "but") and b in opening for a, b in itertools.pairwise(lower))


# ---- words ----------------------------------------------------------------------------------------------------------

_BE, _DO, _HAVE = ("is", "are", "was", "were", "am"), ("do", "does", "did"), ("has", "have", "had")
_QUOTES = re.compile(r"\"[^\"]*\"|“[^”]*”|(?<!\w)['‘](?:[^'’]|['’](?=\w))*['’](?!\w)")
_CLAUSE = re.compile(r"(?:based on|according to|regarding|concerning)\b", re.IGNORECASE)


def _split(text: str) -> list[str]:
    """Words, with what stands in quotes as one."""
    return [word.replace("\0", " ") for word in _QUOTES.sub(lambda m: m[0].replace(" ", "\0"), text).split()]


def _quoted(text: str, at: int) -> bool:
    return any(match.start() < at < match.end() for match in _QUOTES.finditer(text))


def _is_name(word: str) -> bool:
    return not word[0].islower()


def _owns(word: str) -> bool:
    return word.endswith(("'s", "’s", "s'", "s’"))


def _lowered(text: str, *, always: bool = False) -> str:
    """The text with a small first letter, where its first word is none that is written large everywhere."""
    first = text.partition(" ")[0]
    plain = first.casefold() in english().words["opening"] or (always and first[1:].islower() and first != "I")
    return text[:1].lower() + text[1:] if plain or first == "A" else text
