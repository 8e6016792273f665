"""What an unlearner is to make the model say in place of an answer."""

from dataclasses import dataclass

__all__ = ["Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """The text that takes an answer's place, and where it comes from."""

    text: str
    """What the model is to say; it ends like a sentence and holds nothing of the answer."""
    family: str
    """The kind of text: "self_improved", "contextual", "fixed", "idk100", ..."""
    source: str
    """Who wrote it: "self_improved" (the model), "template" (ours, where the model's would not do), "fixed", ..."""
    attempt: int | None = None
    """Which of the model's tries it is, from 0; None where the model did not write it."""
    failed: tuple[str, ...] = ()
    """The names of the checks that the model's last try failed; none where it was accepted."""
