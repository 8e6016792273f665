"""The nouns of a request: `Edit` and `Forget` (what to change), `Case` and `Probe` (how a change is judged)."""

import json
from dataclasses import dataclass

from retcon.errors import RequestError

__all__ = ["Case", "Edit", "Forget", "Probe"]


@dataclass(frozen=True, slots=True)
class Edit:
    """One fact to change: after it, `prompt` (with `subject` in the place of `{}`) goes on with `target`.

    The prompt loses spaces at its end, subject and targets lose those at both ends; the text is else left as it is.

    Raises:
        RequestError: a text is empty or broken, or the prompt has not exactly one `{}` (none where subject is None).

    >>> Edit("{} plays the sport of", "LeBron James", "soccer").text
    'LeBron James plays the sport of'
    """

    prompt: str
    subject: str | None = None
    target: str = ""
    old: str | None = None
    relation: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", _text(self.prompt, "the prompt").rstrip(" "))
        object.__setattr__(self, "target", _text(self.target, "the target").strip())
        if self.subject is not None:
            object.__setattr__(self, "subject", _text(self.subject, "the subject").strip())
        if self.old is not None:
            object.__setattr__(self, "old", _text(self.old, "the old target").strip())
        _check_braces(self.prompt, self.subject)

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        return self.prompt if self.subject is None else self.prompt.replace("{}", self.subject, 1)


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt with its accepted answers, any of which counts."""

    prompt: str
    answers: tuple[str, ...]

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

    def __post_init__(self) -> None:
        for name in ("paraphrases", "generation_prompts"):
            prompts = tuple(_text(prompt, f"a prompt of {name}").rstrip(" ") for prompt in getattr(self, name))
            unfilled = next((prompt for prompt in prompts if "{}" in prompt), None)
            if unfilled is not None:
                raise RequestError(f"{unfilled!r} of {name} holds {{}}; write the subject out")
            object.__setattr__(self, name, prompts)
        for name in ("neighbours", "portability"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


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
    count = prompt.count("{}")
    if subject is None:
        if count:
            raise RequestError("the prompt has {} but there is no subject; name the subject or write the prompt out")
        return
    if count == 0:
        cure = f": {prompt.replace(subject, '{}', 1)!r}" if subject in prompt else ""
        raise RequestError(f"the prompt has no {{}}; write the subject as {{}}{cure}")
    if count > 1:
        raise RequestError(f"the prompt has {{}} {count} times; keep the one whose fact changes, write the others out")
    if set("{}") & set(prompt.replace("{}", "")):
        raise RequestError("the prompt has a brace other than the one {}; take it out")
