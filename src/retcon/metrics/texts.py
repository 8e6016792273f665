"""Is the same thing said? A normal form of texts: case, accents and marks go, numbers and dates are written one way."""

import re
import unicodedata
from collections.abc import Sequence

__all__ = ["ARTICLES", "contains", "mentions", "normal", "numbers"]


def normal(text: str, *, day_first: bool = True, dated: bool = True, articles: bool = False) -> tuple[str, ...]:
    """The words of a text in normal form.

    Case, accents, punctuation, articles and the possessive 's go. A number becomes digits without separators ("1,809",
    "twenty-one", "3rd", "2.50"), "%" becomes "percent", and a date becomes its day, its month and its year, whatever
    its format. Initials run together ("J. K." is "jk"). Marks that make another name of a letter stay ("C#", "C++").

    Args:
        text: in any script; words as numbers and names of months are English.
        day_first: how 06-02-1998 is read, as 6 February (True) or as June 2.
        dated: whether dates are put in one order; else their words stand as they were written.
        articles: whether articles stay.

    >>> normal("The contract of June 30th, 1975")
    ('contract', 'of', 'm06d30', 'june', '1975')
    >>> normal("$1,809.00 -- twenty-one Málaga shops")
    ('1809', '21', 'malaga', 'shops')
    """
    plain = _dated(_plain(text), day_first) if dated else _plain(text)
    plain = _INITIALS.sub(lambda match: re.sub(r"[\s.]", "", match[0]) + " ", plain)
    plain = re.sub(r"'s\b", "", plain).replace("'", "")
    plain = re.sub(r"per cent\b|%", " percent ", plain)
    plain = re.sub(r"(?<=\d)(?:st|nd|rd|th)\b", "", plain)
    plain = re.sub(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d)", lambda match: match[0].replace(",", ""), plain)
    found = _spoken([_number(word) if _DIGITS.fullmatch(word) else word for word in _words(plain)])
    return tuple(word for word in found if articles or word not in ARTICLES) or tuple(found)


def contains(words: Sequence[str], phrase: Sequence[str]) -> bool:
    """Whether `phrase` stands in `words`, whole and in order; an empty phrase stands nowhere.

    >>> contains(["new", "york", "city"], ["york"]), contains(["new", "york"], ["new", "city"])
    (True, False)
    """
    size = len(phrase)
    if not size:
        return False
    wanted = tuple(phrase)
    return any(tuple(words[start : start + size]) == wanted for start in range(len(words) - size + 1))


def mentions(text: str, phrase: str) -> bool:
    """Whether the phrase stands anywhere in the text, both in normal form; an ambiguous date counts in either reading.

    A phrase of marks alone is looked for as it is, and one in a script that does not part its words by spaces alone
    (Thai, Chinese, Japanese, Korean ...) whatever stands around it.

    >>> mentions("It began on 30 June 1975, I think.", "06/30/1975."), mentions("A Parisian café", "Paris")
    (True, False)
    >>> mentions("她住在巴黎吗？", "巴黎")
    True
    """
    readings = {normal(phrase, day_first=first) for first in (True, False)}
    if readings == {()}:
        return bool(phrase.strip()) and phrase.strip().casefold() in text.casefold()
    there = {normal(text, day_first=first) for first in (True, False)}
    if any(letter >= _UNSPACED for wanted in readings for word in wanted for letter in word):
        return any("".join(wanted) in "".join(words) for words in there for wanted in readings)
    return any(contains(words, wanted) for words in there for wanted in readings)


def numbers(text: str) -> frozenset[str]:
    """The numbers and days of a text, in normal form; an ambiguous date gives both of its days.

    >>> sorted(numbers("paid on 06-02-1998, two percent of 1,809"))
    ['1809', '1998', '2', 'm02d06', 'm06d02']
    """
    both = {word for first in (True, False) for word in normal(text, day_first=first)}
    return frozenset(word for word in both if word[0].isdigit() or _DAY.fullmatch(word))


_UNSPACED = "\u0e00"
"""The first letter (of Thai) of the scripts whose words are not told apart by spaces, or not by spaces alone."""
ARTICLES = frozenset({"a", "an", "the"})
"""Words that a normal form leaves out where others are left."""
_SIGNS = "".join(mark for mark in map(chr, range(0x483, 0x10000)) if unicodedata.category(mark) in ("Mn", "Mc"))
"""Marks that are a part of the word they stand in, as the vowels of many scripts."""
_WORD = re.compile(rf"m\d\dd\d\d|\d+(?:\.\d+)?|[^\W\d_](?:[^\W\d_]|[{_SIGNS}])*(?:(?:\+\+?|#)(?!\w))?")
_DAY = re.compile(r"m\d\dd\d\d")
_DIGITS = re.compile(r"\d+(?:\.\d+)?")
_INITIALS = re.compile(r"\b(?:[^\W\d_]\.\s?){2,}")
_SPACED_THOUSANDS = re.compile(r"(?<=\d)[\u2009\u202f\u00a0'’](?=\d{3}(?!\d))")
_MARKS = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "–": "-", "—": "-", "‑": "-", "−": "-", "‐": "-"})


def _plain(text: str) -> str:
    """Casefolded, without Latin accents, with one kind of apostrophe and of dash."""
    decomposed = unicodedata.normalize("NFKD", _SPACED_THOUSANDS.sub("", text)).translate(_MARKS).casefold()
    kept = "".join(mark for mark in decomposed if not "\u0300" <= mark <= "\u036f")
    return unicodedata.normalize("NFC", kept)


def _number(digits: str) -> str:
    """Without leading zeros, and without zeros after the point.

    >>> _number("094"), _number("36.00"), _number("2.50")
    ('94', '36', '2.5')
    """
    whole, _, part = digits.partition(".")
    part = part.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{part}" if part else "")


def _words(plain: str) -> list[str]:
    """Its words; single letters with but a space or a point between them are one ("j k", "j.k"), unless they are words.

    >>> _words("j k rowling"), _words("o, h"), _words("c. c")
    (['jk', 'rowling'], ['o', 'h'], ['c', 'c'])
    """
    out: list[str] = []
    end = -1  # of the last word, where that was a letter that another may join
    for match in _WORD.finditer(plain):
        word = match[0]
        letter = len(word) == 1 and word.isalpha() and word not in ("a", "i")
        if letter and end >= 0 and _NEXT.fullmatch(plain, end, match.start()):
            out[-1] += word
        else:
            out.append(word)
        end = match.end() if letter else -1
    return out


_NEXT = re.compile(r"\s+|\.|")


# Dates ---------------------------------------------------------------------------------------------------------------

_MONTHS = (
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
)
_MONTH = r"(?P<month>" + "|".join(f"{name[:3]}(?:{name[3:]})?" for name in _MONTHS) + r"|sept)\.?"
_DAY_OF = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>\d{4})"
_NAMED = (  # the longest form first
    re.compile(rf"\b{_DAY_OF}(?:\s+day)?(?:\s+of)?[\s-]+{_MONTH},?[\s-]+(?:of\s+)?{_YEAR}\b"),
    re.compile(rf"\b{_MONTH}[\s-]+(?:the\s+)?{_DAY_OF},?[\s-]+(?:of\s+)?{_YEAR}\b"),
    re.compile(rf"\b{_YEAR}[\s-]+{_MONTH}[\s-]+{_DAY_OF}\b"),
    re.compile(rf"\b{_DAY_OF}(?:\s+day)?(?:\s+of)?[\s-]+{_MONTH}(?![^\W\d_])"),
    re.compile(rf"\b{_MONTH}[\s-]+(?:the\s+)?{_DAY_OF}\b"),
    re.compile(rf"\b{_MONTH},?[\s-]+(?:of\s+)?{_YEAR}\b"),
)
_ISO = re.compile(r"(?<![\d./-])(\d{4})([-/.])(\d{1,2})\2(\d{1,2})(?![\d/-]|\.\d)")
_NUMERIC = re.compile(r"(?<![\d./-])(\d{1,2})([-/.])(\d{1,2})\2(\d{4})(?![\d/-]|\.\d)")


def _dated(text: str, day_first: bool) -> str:
    """Every date as "m06d30 june 1975", so that a date without its year, or without its day, stands in it."""
    text = _ISO.sub(lambda match: _date(match[0], match[4], match[3], match[1]), text)

    def numeric(match: re.Match[str]) -> str:
        first, second = match[1], match[3]
        swapped = int(second) > 12 or (not day_first and int(first) <= 12)
        return _date(match[0], second if swapped else first, first if swapped else second, match[4])

    text = _NUMERIC.sub(numeric, text)
    for pattern in _NAMED:
        text = pattern.sub(_named, text)
    return text


def _named(match: re.Match[str]) -> str:
    parts = match.groupdict()
    month = next(n for n, name in enumerate(_MONTHS, 1) if name[:3] == parts["month"][:3])
    return _date(match[0], parts.get("day"), str(month), parts.get("year"))


def _date(written: str, day: str | None, month: str, year: str | None) -> str:
    if not 1 <= int(month) <= 12 or not 1 <= int(day or 1) <= 31:
        return written
    name = _MONTHS[int(month) - 1]
    return f" {f'm{int(month):02}d{int(day):02} ' if day else ''}{name} {year or ''} "


# Numbers in words ----------------------------------------------------------------------------------------------------

_UNITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_UNITS += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_VALUES = {word: n for n, word in enumerate(_UNITS)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_ORDINALS = {"third": 3, "fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12}
_ORDINALS |= {f"{word}th": n for n, word in enumerate(_UNITS) if n in (4, 6, 7, 10, 11) or n > 12}
_ORDINALS |= {f"{word[:-1]}ieth": 10 * n for n, word in enumerate(_TENS, 2)}
_LAST = {"first": 1, "second": 2}  # ordinals only after a ten: alone they are words of many uses
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_LARGE = ("thousand", "million", "billion")
_NOT_BEFORE_ONE = frozenset({"no", "any", "some", "every", "each", "this", "that", "which", "another", "other"})


def _spoken(words: list[str]) -> list[str]:
    """Runs of number words as digits."""
    out: list[str] = []
    at = 0
    while at < len(words):
        if _DIGITS.fullmatch(words[at]) and words[at + 1 : at + 2] and words[at + 1] in _LARGE:  # "2.5 million"
            out.append(_number(f"{float(words[at]) * _SCALES[words[at + 1]]:f}"))
            at += 2
            continue
        stop = at
        while stop < len(words) and _counts(words, stop, at):
            stop += 1
        if stop == at:
            out.append(words[at])
            at += 1
        else:
            out += [str(value) for value in _values(words[at:stop])]
            at = stop
    return out


def _counts(words: list[str], at: int, start: int) -> bool:
    """Whether the word at `at` belongs to a number that began at `start`."""
    word, before = words[at], words[at - 1] if at else ""
    if word == "one" and at == start:  # "no one", "one of them" count nothing
        return before not in _NOT_BEFORE_ONE and words[at + 1 : at + 2] != ["of"]
    if word == "and":
        return at > start and before in _SCALES and at + 1 < len(words) and words[at + 1] in _VALUES
    if word in _LAST:
        return at > start and before in _TENS
    return word in _VALUES or word in _ORDINALS or word in _SCALES


def _values(run: list[str]) -> list[int]:
    """The numbers that a run of number words says: "nineteen ninety eight" is one, "five six" are two."""
    found: list[int] = []
    total, current, said = 0, 0, False
    for word in run:
        if word == "and":
            continue
        if word in _SCALES:
            scale = _SCALES[word]
            if scale == 100:
                current = (current or 1) * 100
            else:
                total, current = total + (current or 1) * scale, 0
            said = True
            continue
        value = _VALUES.get(word, _ORDINALS.get(word, _LAST.get(word, 0)))
        tail = current % 100
        if (tail >= 20 and tail % 10 == 0 and 1 <= value <= 9) or (tail == 0 and (current or total or not said)):
            current += value
        elif 10 <= current <= 99 and 10 <= value <= 99 and not total:  # a year
            current = 100 * current + value
        else:
            found.append(total + current)
            total, current = 0, value
        said = True
    return [*found, total + current]
