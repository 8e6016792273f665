"""Other wordings by rules: questions turned around where that is plain, framed everywhere, and never an answer."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import retcon
from retcon.forget.paraphrases import paraphrased, turned
from retcon.metrics.texts import mentions, normal
from retcon.requests import Forget

TURNED = {
    # do-support: the verb takes the tense
    "What did Ada Lovelace write?": "what Ada Lovelace wrote",
    "How does the seller notify the customer?": "how the seller notifies the customer",
    "How did Mara Quell's parents influence her career?": "how Mara Quell's parents influenced her career",
    "What genre does Mara Quell often write in?": "what genre Mara Quell often writes in",
    "What themes do Mara Quell's books explore?": "what themes Mara Quell's books explore",
    "When did the contract between Ovak and Plim Ltd expire?": "when the contract between Ovak and Plim Ltd expired",
    "How did the buyer plan the delivery?": "how the buyer planned the delivery",
    "What impact did Mara Quell's parents' professions have on her?": "what impact Mara Quell's parents' professions "
    "had on her",
    "Why did she choose Rome?": "why she chose Rome",
    "Did Mara Quell marry Tom Orr?": "whether Mara Quell married Tom Orr",
    "Does Mara Quell carry a cane?": "whether Mara Quell carries a cane",
    # be, have and modals move behind the subject
    "Where was Mara Quell born?": "where Mara Quell was born",
    "In which city and country was Mara Quell born?": "in which city and country Mara Quell was born",
    "When was 'The Long Way Home' first published?": "when 'The Long Way Home' was first published",
    "Where is the Blue Tower?": "where the Blue Tower is",
    "What gender is author Mara Quell?": "what gender author Mara Quell is",
    "How has Mara Quell contributed to geology?": "how Mara Quell has contributed to geology",
    "How has Mara Quell's book \"A Thief's Day\" been received?": "how Mara Quell's book \"A Thief's Day\" has been "
    "received",
    "Within how many days must the invoice be paid in full?": "within how many days the invoice must be paid in full",
    "By how many days after delivery must the seller provide an invoice?": "by how many days after delivery the seller "
    "must provide an invoice",
    "After how many days would unpaid balances incur a penalty?": "after how many days unpaid balances would incur a "
    "penalty",
    "Is Mara Quell a novelist?": "whether Mara Quell is a novelist",
    "Has Mara Quell written any plays?": "whether Mara Quell has written any plays",
    "Are Mara Quell's books available in Danish?": "whether Mara Quell's books are available in Danish",
    # the question word is the subject: the order stays
    "Who wrote 'The Long Way Home'?": "who wrote 'The Long Way Home'",
    "Who would decide the shipping method?": "who would decide the shipping method",
    "Which author is known for the novel '1984'?": "which author is known for the novel '1984'",
    "What is known about Mara Quell?": "what is known about Mara Quell",
    "Which of these towers is located in Lima?": "which of these towers is located in Lima",
    "Who directed the film in which London is destroyed?": "who directed the film in which London is destroyed",
    "Why is Mara Quell famous?": "why Mara Quell is famous",
    "Based on the contract, who would decide the price?": "who would decide the price based on the contract",
    "Where's the Blue Tower?": "where the Blue Tower is",
}

DOUBTFUL = [
    "What is the book called?",
    "What was the contract about?",
    "What was the seller selling?",
    "Why is Mara Quell sad?",
    "Where was the author born in 1956 educated?",
    "How did the general work begin?",
    "What did she write and why did she stop?",
    "Has she worked in Rome or is she a stranger?",
    "How did growing up in Tel Aviv, Israel influence her?",
    "In 1998, what did Mara Quell write?",
    "The novel 'Lolita' was written by which author?",
    "Didn't she write plays?",
    "Wo wurde Mara Quell geboren?",
    "?",
]

QUESTIONS = [
    *TURNED,
    *DOUBTFUL[:-1],
    "What was the effective date of the contract between Ovak SA and Plim Ltd?",
    "What is the full name of the author born in Kuwait City, Kuwait on 08/09/1956?",
    "Which jurisdiction's laws govern the contract between Ovak SA and Plim Ltd?",
    "Can you tell me about Mara Quell's {unusual} habits?",
    "which tower is the tallest",
    "The capital of Peru is",
    "Mara Quell was born in the city of",
    "Describe Mara Quell's first book.",
    "どこで生まれましたか？",
]


@pytest.mark.parametrize(("question", "expected"), TURNED.items())
def test_a_plain_question_is_turned_around(question: str, expected: str) -> None:
    assert turned(question) == (expected,)
    framed = [
        text for seed in range(9) for text in paraphrased(Forget(question, "Zzyx"), seed=seed) if expected in text
    ]
    assert len(framed) == 9
    assert len(set(framed)) > 1


@pytest.mark.parametrize("question", DOUBTFUL)
def test_a_question_whose_verb_is_in_doubt_is_left_as_it_is(question: str) -> None:
    assert turned(question) == ()
    if len(question) > 1:
        assert all(question in text for text in paraphrased(Forget(question, "Zzyx"), n=6))


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("answer", ["Lima", "please", "tell", "A question", "know", "I", "you", "this is about"])
def test_there_are_two_at_least_and_none_holds_the_answer_or_equals_the_question(question: str, answer: str) -> None:
    for seed in range(4):
        found = paraphrased(Forget(question, answer), seed=seed)
        assert len(found) == len({normal(text) for text in found}) == 2
        for text in found:
            assert normal(text) != normal(question)
            assert mentions(question, answer) or not mentions(text, answer), (text, answer)


def test_an_alias_is_kept_out_too() -> None:
    item = Forget("Where was Mara Quell born?", "Lima", aliases=("please", "could", "would"))
    for seed in range(20):
        assert not any(word in text.lower() for text in paraphrased(item, seed=seed) for word in item.aliases)


def test_a_subject_that_is_the_secret_is_not_named() -> None:
    """TOFU's first question on an author asks for the name, which is its subject too."""
    item = Forget("What is the full name of the author born in Lima in 1956?", "Her name is Mara Quell.", "Mara Quell")
    assert not any("Quell" in text for seed in range(30) for text in paraphrased(item, n=6, seed=seed))


@pytest.mark.parametrize(
    ("question", "named"),
    [
        ("What was the name of the seller in the contract with Ovak SA as of 06-02-1998?", "the name of the seller in"),
        ("Who is the author of 'Invisible Man', a novel about identity?", "the author of 'Invisible Man', a novel"),
        ("What was the late payment interest rate based on the contract?", "the late payment interest rate based on"),
        ("What is Mara Quell's full name?", "Mara Quell's full name."),
        ("What are some recurrent themes in Mara Quell's books?", "some recurrent themes in Mara Quell's books"),
    ],
)
def test_what_is_asked_for_is_named_without_its_verb(question: str, named: str) -> None:
    found = {text for seed in range(20) for text in paraphrased(Forget(question, "Zzyx"), seed=seed)}
    assert f"Please tell me {named.rstrip('.')}" in "\n".join(found)
    assert not any(text.startswith(("Please tell me is", "Please tell me was")) for text in found)


def test_a_last_clause_moves_to_the_front() -> None:
    item = Forget("What was the unit price based on the contract between Ovak SA and Plim Ltd?", "36.")
    found = {text for seed in range(20) for text in paraphrased(item, seed=seed)}
    assert "Based on the contract between Ovak SA and Plim Ltd, what was the unit price?" in found


def test_a_wish_becomes_a_request() -> None:
    found = paraphrased(Forget("Can you share some titles by Mara Quell?", "Zzyx"))
    assert "Please share some titles by Mara Quell." in found


def test_the_beginning_of_a_sentence_stays_at_the_end_and_a_command_stays_one() -> None:
    for seed in range(12):
        for text in paraphrased(Forget("The capital of Peru is", "Lima"), n=4, seed=seed):
            assert text.endswith("capital of Peru is")
            assert "It is known that The" not in text
        assert all("Mara Quell" in text for text in paraphrased(Forget("Mara Quell came from", "Lima"), seed=seed))
        some = paraphrased(Forget("Describe the harbour of Callao.", "Lima"), n=1, seed=seed)
        assert "describe the harbour of Callao" in some[0]


def test_the_choice_is_seeded_by_question_and_seed() -> None:
    item = Forget("Where was Mara Quell born?", "Lima")
    assert paraphrased(item, seed=3) == paraphrased(item, seed=3) == paraphrased(Forget(item.question, "Rome"), seed=3)
    assert len({paraphrased(item, seed=seed) for seed in range(10)}) > 3
    assert len(paraphrased(item, n=6)) == 6


def test_nothing_that_trains_or_edits_reads_them() -> None:
    """Only what judges, or attacks by asking, may see other wordings; each such file is named here."""
    root = Path(retcon.__file__).parent
    readers = []
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if "paraphrases" in names or module.endswith("forget.paraphrases"):
                readers.append(path.relative_to(root).as_posix())
    asking = ["evaluate/forgetting/plan.py", "evaluate/forgetting/remarks.py", "probes/prompts.py"]
    assert sorted(readers) == asking
