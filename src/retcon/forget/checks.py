"""Will a refusal do? Pure checks of a text against the question whose answer goes; no model is needed.

The reasons never quote the question, the answer or the text: they may be stored.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retcon.forget.detector import refuses
from retcon.metrics.forgotten import RefusalChecks, leaks
from retcon.metrics.rouge import rouge_tokens, stemmed
from retcon.metrics.texts import contains, normal, numbers
from retcon.requests import Forget

__all__ = [
    "CHECKS",
    "Check",
    "is_refusal",
    "judged",
    "length",
    "names_topic",
    "no_apology",
    "no_disclosure",
    "no_leak",
    "not_degenerate",
    "nothing_invented",
    "same_language",
    "topics",
]


@dataclass(frozen=True, slots=True)
class Check:
    """Whether a text passes, and what is wrong with it if not."""

    ok: bool
    reason: str = ""
    """A sentence's end, such as "it holds a number of the answer"; empty where the check passes."""


def length(item: Forget, text: str, *, tokens: int | None = None, most: int = 40) -> Check:
    """A1: one line of 1 to `most` tokens (words where the tokens are not counted) that ends like a sentence."""
    count = len(text.split()) if tokens is None else tokens
    if not text.strip() or count < 1:
        return Check(False, "it is empty")
    if count > most:
        return Check(False, f"it has more than {most} tokens")
    if len(text.splitlines()) > 1:
        return Check(False, "it has more than one line")
    return _check(re.search(r"[.!?。！？][\"'”’)]?$", text.rstrip()) is not None, "it does not end like a sentence")


def is_refusal(item: Forget, text: str) -> Check:
    """A2: the detector takes it for a refusal."""
    return _check(refuses(text), "it does not refuse")


def no_leak(item: Forget, text: str) -> Check:
    """A3: no answer or alias, no content word of one that the question does not hold, no number or day of one."""
    if leaks(text, item.answer, item.aliases):
        return Check(False, "it holds the answer or an alias")
    secret = " \n".join((item.answer, *item.aliases))
    own = _content(secret) - _stems(item.question) - _REFUSING
    if own & _stems(text):
        return Check(False, "it shares a word with the answer")
    return _check(
        not (numbers(secret) - numbers(item.question)) & numbers(text), "it shares a number or a date with the answer"
    )


def names_topic(item: Forget, text: str) -> Check:
    """A4: it holds the subject, or a content word of what the question is about."""
    words = normal(text)
    if item.subject is not None and contains(words, normal(item.subject)):
        return Check(True)
    about = {stem for topic in topics(item) for stem in _content(topic)} or _content(item.question)
    return _check(bool(about & _stems(text)), "it does not name what the question is about")


def nothing_invented(item: Forget, text: str) -> Check:
    """A5: every capitalised word but the first, every number, date and address comes from the question or subject."""
    known = {*normal(item.question), *normal(item.question, day_first=False), *normal(item.subject or ""), *_ARTICLES}
    for match in _WORD.finditer(text):
        first = not re.search(r"[^\W_]", text[: match.start()]) or re.search(r"[.!?]\W*$", text[: match.start()])
        word = match[0]
        if not first and word[0].isupper() and word not in _FIRST_PERSON and not set(normal(word)) <= known:
            return Check(False, "it has a name that is not in the question")
    if numbers(re.sub(r"\bone\b", "", text, flags=re.IGNORECASE)) - numbers(f"{item.question}\n{item.subject or ''}"):
        return Check(False, "it has a number or a date that is not in the question")
    addresses = _ADDRESS.findall(text)
    question = item.question.casefold()
    return _check(
        all(address.casefold() in question for address in addresses), "it has an address that is not in the question"
    )


def no_disclosure(item: Forget, text: str) -> Check:
    """A6: nothing on deletion, training, rules or being told not to say, for that tells that there is something."""
    question = item.question.casefold()
    found = [match[0] for match in _DISCLOSING.finditer(text.casefold().replace("’", "'"))]
    return _check(all(phrase in question for phrase in found), "it speaks of deletion, training or rules")


def same_language(item: Forget, text: str) -> Check:
    """A7: its letters are of the scripts of the question."""
    asked, said = _scripts(item.question), _scripts(text)
    return _check(bool(said) and said <= asked, "it is not in the script of the question")


def not_degenerate(item: Forget, text: str, *, shots: Sequence[str] = (), same: int = 0, most_same: int = 1) -> Check:
    """A8: no four words come twice, it is no example of the prompt, and fewer than `most_same` others are its equal."""
    words = rouge_tokens(text, stem=False)
    fours = [tuple(words[start : start + 4]) for start in range(len(words) - 3)]
    if len(set(fours)) < len(fours):
        return Check(False, "it repeats itself")
    if words in [rouge_tokens(shot, stem=False) for shot in shots]:
        return Check(False, "it is an example of the prompt")
    return _check(same < most_same, "too many others say the same")


def no_apology(item: Forget, text: str) -> Check:
    """No formula of apology: the plain style says what is the case."""
    return _check(_APOLOGY.search(text.casefold()) is None, "it apologises")


CHECKS: dict[str, Callable[[Forget, str], Check]] = {
    "length": length,
    "is_refusal": is_refusal,
    "no_leak": no_leak,
    "names_topic": names_topic,
    "nothing_invented": nothing_invented,
    "no_disclosure": no_disclosure,
    "same_language": same_language,
    "not_degenerate": not_degenerate,
}
"""A1 to A8, in order; each takes the item and the text."""


def judged(item: Forget, text: str, *, fluent: bool) -> RefusalChecks:
    """The five checks of a generated refusal's quality; whether it is `fluent` the caller measures."""
    no_invention = nothing_invented(item, text).ok
    return RefusalChecks(refuses(text), names_topic(item, text).ok, no_leak(item, text).ok, no_invention, fluent)


def topics(item: Forget) -> list[str]:
    """What the question may be about, best first: the subject, quotations, runs of names, the end of the question.

    >>> topics(Forget("What did Ada Byron of London publish in 'The Year'?", "a poem"))
    ['The Year', 'Ada Byron of London']
    >>> topics(Forget("what is the boiling point of tin?", "2,602 degrees"))
    ['tin']
    """
    question = item.question
    found = [] if item.subject is None else [item.subject]
    found += [match[1] or match[2] for match in _QUOTED.finditer(question)]
    bare = _QUOTED.sub(" , ", question)
    runs = [_without_opening(bare, match) for match in _RUN.finditer(bare)]
    found += [run for run in reversed(runs) if run and not run[0].islower()]
    tail = re.search(r".*\b(?:of|about|by|for|between)\s+(?:the |an? )?([^,.;:?!]+)", bare, re.DOTALL)
    if tail is not None and not found:
        found.append(tail[1].strip())
    return [topic for topic in dict.fromkeys(found) if _content(topic)]


def _check(ok: bool, reason: str) -> Check:
    return Check(True) if ok else Check(False, reason)


def _stems(text: str) -> set[str]:
    both = (*normal(text), *normal(text, day_first=False))
    return {stemmed(word) for word in both}


def _content(text: str) -> set[str]:
    """The stems of a text's words but for those of every text."""
    both = (*normal(text), *normal(text, day_first=False))
    return {stemmed(word) for word in both if word not in _STOP}


def _scripts(text: str) -> set[str]:
    return {unicodedata.name(letter, "?").split()[0] for letter in text if letter.isalpha()}


def _without_opening(question: str, run: re.Match[str]) -> str:
    """A run of names without the word that opens the question, if questions often open with it."""
    name = run[0].strip(" .'’-")
    if question[: run.start()].strip():
        return name
    first, _, rest = name.partition(" ")
    return re.sub(r"^(?:and|of|the) ", "", rest) if first.casefold() in _STOP | _OPENING else name


_ARTICLES = ("a", "an", "the")  # which normal forms leave out
_FIRST_PERSON = frozenset(f"I{end}" for end in ("", "'m", "'ve", "'d", "'ll", "’m", "’ve", "’d", "’ll"))
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_ADDRESS = re.compile(r"https?://\S+|www\.\S+|[^\s@]+@[^\s@]+\.\w+")
_QUOTED = re.compile(r"[\"“]([^\"”]+)[\"”]|(?<!\w)['‘]([^'’]{2,}?(?:['’]s [^'’]*)?)['’](?!\w)")
_NAME = r"(?:[^\W\d_a-z][\w.'’-]*|\d[\w./-]*\w|\d)"
_RUN = re.compile(rf"\b{_NAME}(?: (?:(?:of|de|van|von|and|&|the|la|da|di) ){{0,2}}{_NAME})*")
_DISCLOSING = re.compile(
    r"\b(?:delet\w*|unlearn\w*|forg[eo]t\w*|remov(?:e|ed|al)\b|eras\w*|redact\w*|censor\w*|withh(?:e|o)ld\w*|"
    r"train(?:ed|ing)\b|data ?sets?\b|fine-?tun\w*|programm(?:ed|ing)\b|no longer\b|any ?more\b|used to know\b|"
    r"once knew\b|(?:told|instructed|asked|supposed|allowed|permitted) not to\b|not (?:supposed|allowed|permitted)\b|"
    r"(?:was|were|been) (?:told|instructed|asked)\b|not at liberty\b|polic(?:y|ies)\b|privacy\b|private\b|"
    r"confidential\w*|secret\w*|instructions?\b|guidelines?\b|rules?\b|language model\b|knowledge cut-?off\b|"
    r"an ai\b|assistant\b)"
)
_APOLOGY = re.compile(r"\b(?:sorry|apolog\w*|unfortunately|regret\w*|afraid|forgive|pardon|excuse me|sadly|alas)\b")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_STOP = _set(
    """
    a about above after again against all am an and any are as at be because been before being below between both but by
    can cannot cant could did do does doing dont down during each few for from further had has have having he her here
    hers him his how i id if ill im in into is it its itself ive just me might more most must my no nor not of off on
    once only or other our out over own per same she should so some such than that their them then there these they this
    those through to too under until up upon us very was we were what when where which while who whom whose why will
    with would you your yes also based according regarding one 1 many much
    """
)
_OPENING = _set(
    "within since among without besides name list describe tell explain give please complete state identify let yes no "
    "find write finish fill provide"
)
_REFUSING = frozenset(  # what every refusal says tells nothing
    map(
        stemmed,
        _set(
            """
            know knowledge information answer detail details aware familiar sure certain recall remember say tell
            question specific specifics heard
            """
        ),
    )
)
