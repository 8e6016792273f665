"""The nouns of a request: `Edit`, `Forget` (what to change), `Case`, `ForgetCase`, `Probe` (how a change is judged)."""

import json
import re
from dataclasses import dataclass

from retcon.errors import RequestError

__all__ = ["WITHHELD", "Case", "Edit", "Forget", "ForgetCase", "Probe", "literal", "split_prompt"]

WITHHELD = ("prompt", "subject", "old")
"""Fields of an edit that its records may leave out."""

_BRACES = re.compile(r"\{\{|\}\}|\{\}|[{}]")


@dataclass(frozen=True, slots=True)
class Edit:
    """One fact to change: after it, `prompt` (with `subject` in the place of `{}`) goes on with `target`.

    The prompt loses spaces at its end, subject and targets lose those at both ends; the text is else left as it is.
    Beside its `{}`, a prompt has braces doubled, which stand for single ones.

    Raises:
        RequestError: a text is empty or broken, or the prompt has not exactly one `{}` (none where subject is None).

    >>> Edit("{} plays the sport of", "LeBron James", "soccer").text
    'LeBron James plays the sport of'
    >>> Edit("The set {{1, 2}} was found by {} in", "Cantor", "Rome").text
    'The set {1, 2} was found by Cantor in'
    """

    prompt: str
    subject: str | None = None
    target: str = ""
    old: str | None = None
    relation: str | None = None
    id: str | None = None
    tie: str | None = None
    """Edits of one tie share one shift, where a method seeks any: query merging."""
    hidden: tuple[str, ...] = ()
    """Fields that no record of the edit tells, of `WITHHELD`; such an edit needs an id."""
    names: tuple[str, ...] = ()
    """What a record that hides the subject leaves out of the target beside it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", _text(self.prompt, "the prompt").rstrip(" "))
        object.__setattr__(self, "target", _text(self.target, "the target").strip())
        if self.subject is not None:
            object.__setattr__(self, "subject", _text(self.subject, "the subject").strip())
        if self.old is not None:
            object.__setattr__(self, "old", _text(self.old, "the old target").strip())
        _check_braces(self.prompt, self.subject)
        if unknown := [name for name in self.hidden if name not in WITHHELD]:
            raise RequestError(f"{unknown[0]!r} cannot be hidden; of {', '.join(WITHHELD)} any can")
        if self.hidden and self.id is None:
            raise RequestError("an edit that hides its texts needs an id, by which it is known; give one")

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        return self.prompt if self.subject is None else self.subject.join(split_prompt(self.prompt))


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt with its accepted answers, any of which counts."""

    prompt: str
    answers: tuple[str, ...]
    kind: str | None = None
    """What it asks for, such as "two-hop", so that figures can be told apart by kind."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", _text(self.prompt, "the probe's prompt").rstrip(" "))
        if isinstance(self.answers, str):
            raise RequestError(f"the answers of {self.prompt!r} must be a tuple, not a text; write ({self.answers!r},)")
        object.__setattr__(self, "answers", tuple(_text(answer, "a probe's answer").strip() for answer in self.answers))
        if not self.answers:
            raise RequestError(f"the probe {self.prompt!r} has no answer; give at least one")


@dataclass(frozen=True, slots=True)
class Case:
    """How one edit is judged: other wordings, prompts whose answers must stay, openings for text, consequences."""

    edit: Edit
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[Probe, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    portability: tuple[Probe, ...] = ()
    source: str | None = None
    aliases: tuple[str, ...] = ()
    """Other wordings of the new answer; where a model writes freely, any of them counts."""

    def __post_init__(self) -> None:
        for name in ("paraphrases", "generation_prompts"):
            prompts = tuple(_text(prompt, f"a prompt of {name}").rstrip(" ") for prompt in getattr(self, name))
            unfilled = next((prompt for prompt in prompts if "{}" in prompt), None)
            if unfilled is not None:
                raise RequestError(f"{unfilled!r} of {name} holds {{}}; write the subject out")
            object.__setattr__(self, name, prompts)
        for name in ("neighbours", "portability"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "aliases", tuple(_text(alias, "an alias").strip() for alias in self.aliases))


@dataclass(frozen=True, slots=True)
class Forget:
    """A question whose answer the model should no longer give: what a method may see of it.

    Raises:
        RequestError: a text is empty or broken.
    """

    question: str
    answer: str
    subject: str | None = None
    aliases: tuple[str, ...] = ()
    """Other wordings of the answer."""
    group: str | None = None
    """What questions that belong together share, such as the document they are about."""
    id: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "question", _text(self.question, "the question").rstrip(" "))
        object.__setattr__(self, "answer", _text(self.answer, "the answer").strip())
        if self.subject is not None:
            object.__setattr__(self, "subject", _text(self.subject, "the subject").strip())
        object.__setattr__(self, "aliases", tuple(_text(alias, "an alias").strip() for alias in self.aliases))


@dataclass(frozen=True, slots=True)
class ForgetCase:
    """How one forgotten question is judged: what only the judge sees of it."""

    forget: Forget
    paraphrases: tuple[str, ...] = ()
    """Other wordings of the question."""
    paraphrased_answer: str | None = None
    """Another wording of the answer."""
    perturbed_answers: tuple[str, ...] = ()
    """Wrong answers in that wording."""
    split: str | None = None
    """The part of a data set that it comes from."""
    entities: tuple[str, ...] = ()
    """The parties that the question is about."""

    def __post_init__(self) -> None:
        for name, what in (("paraphrases", "a paraphrase"), ("perturbed_answers", "a perturbed answer")):
            object.__setattr__(self, name, tuple(_text(text, what).strip() for text in getattr(self, name)))
        if self.paraphrased_answer is not None:
            object.__setattr__(self, "paraphrased_answer", _text(self.paraphrased_answer, "the paraphrase").strip())
        object.__setattr__(self, "entities", tuple(_text(text, "an entity").strip() for text in self.entities))


def split_prompt(prompt: str) -> tuple[str, str]:
    """What stands before and after the first `{}` of a prompt, with doubled braces made single.

    >>> split_prompt("The set {{1}} of {} is")
    ('The set {1} of ', ' is')
    """
    parts = ["", ""]
    after = end = 0
    for match in _BRACES.finditer(prompt):
        parts[after] += prompt[end : match.start()]
        end = match.end()
        if match.group() == "{}" and not after:
            after = 1
        else:  # a lone brace, or a later {}, stands for itself
            parts[after] += match.group()[0] if match.group() in ("{{", "}}") else match.group()
    parts[after] += prompt[end:]
    return parts[0], parts[1]


def literal(text: str) -> str:
    """A text as part of a prompt that has a `{}`: its braces doubled."""
    return text.replace("{", "{{").replace("}", "}}")


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{name} must be text in quotes, not {json.dumps(value, default=repr)}")
    if not value.strip():
        raise RequestError(f"{name} is empty; write it out")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{name} holds a broken character (half of a surrogate pair); write it whole") from None
    return value


def _check_braces(prompt: str, subject: str | None) -> None:
    if subject is None:
        if "{}" in prompt:
            raise RequestError("the prompt has {} but there is no subject; name the subject or write the prompt out")
        return
    found = _BRACES.findall(prompt)
    count = found.count("{}")
    if count == 0:
        cure = f": {prompt.replace(subject, '{}', 1)!r}" if subject in prompt else ""
        raise RequestError(f"the prompt has no {{}}; write the subject as {{}}{cure}")
    if count > 1:
        raise RequestError(f"the prompt has {{}} {count} times; keep the one whose fact changes, write the others out")
    if {"{", "}"} & set(found):
        raise RequestError("the prompt has a brace other than the one {}; take it out, or double it")
