"""What a question names, which nothing that is written tells."""

import re

from retcon.forget.checks import topics
from retcon.forget.subjects import candidates, telling
from retcon.requests import Forget

__all__ = ["names_of"]


def names_of(item: Forget) -> tuple[str, ...]:
    """The names, quotations, numbers and topics of a question, and the words that those are made of.

    Of a question that names nothing they are all words that carry meaning, for it may be written without capitals.

    >>> names_of(Forget("Who signed for Quim SA and the Bank of Ulm?", "Ann"))
    ('Quim SA', 'Quim SA and the Bank of Ulm', 'the Bank of Ulm', 'Quim', 'Bank', 'Ulm')
    >>> names_of(Forget("where was zelda born?", "Ulm"))
    ('zelda', 'born')
    """
    spans = [item.question[start:end] for start, end in candidates(item.question)]
    there = (text for text in topics(item) if text in item.question or text == item.subject)
    whole = [text for text in dict.fromkeys((*spans, *there)) if any(map(str.isalnum, text))]
    words = [word for text in whole for word in re.findall(r"\w+", text) if not word.islower()]
    plain = [] if spans else re.findall(r"\w+", item.question)
    return tuple(dict.fromkeys((*whole, *filter(telling, (*words, *plain)))))
