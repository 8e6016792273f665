"""The model that was trained without what is to be forgotten: its record, and whether it is the right one.

Without such a model no figure can say what forgetting would look like; with a wrong one they say anything. So a record
tells what it was made on, and is refused where that is not what is judged now.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from retcon import storage, tokens
from retcon.errors import RetconError
from retcon.evaluate.forgetting.measure import Twin
from retcon.evaluate.record import plain
from retcon.lm import LM
from retcon.requests import ForgetCase

__all__ = ["ROLE", "Marks", "Reference", "marks"]

ROLE = "retain_only"
FORMAT = "retcon-reference"
VERSION = 1
CHANCE = (0.35, 0.65)
"""Between which the AUC of `mia_min_k` lies for a model that has seen neither side."""
LEARNED = 0.5
"""Of the probability that the model to forget gives the answers to keep, what its twin is to give them at least."""

_LATER = {"losses", "learned"}
"""What records of this version may lack."""
_ROUNDS = 200_000
_SALT = b"retcon reference 1"


@dataclass(frozen=True, slots=True)
class Marks:
    """What a record and the run that reads it must have in common; hashes."""

    items: str
    """Of the questions to forget and the holdout ones, in order, with all their answers."""
    retain: str
    """Of the questions to keep, on which the model was trained."""
    tokenizer: str
    """Of its vocabulary, its end token, and what it puts before every text."""
    template: str
    """Of the chat template, or that there is none in use."""

    def check(self, now: "Marks") -> None:
        """Refuse what is of something else.

        Raises:
            RetconError: naming what differs.
        """
        for name, what in _NAMED.items():
            if getattr(self, name) != getattr(now, name):
                raise RetconError(f"the reference was made with {what}; make it again with those of this run")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a model trained on the questions to keep alone makes of those to forget; `save` and `load` it as JSON.

    It holds no text. Its hash of the items is slow to compute, yet whoever can guess all of the questions and answers
    of a small set can check the guess, and whoever has its model a guess at one answer, by its loss: keep it as you
    keep the set.
    """

    role: str = ROLE
    marks: Marks
    n: Mapping[str, int]
    """How many questions each set had."""
    probability: float | None
    """Mean probability of the answers to forget."""
    truth_ratios: Sequence[float | None]
    """R of each question to forget, in order; None where it has no wrong answers."""
    membership: Mapping[str, float | None]
    """AUC of each attack, forget against holdout; empty without holdout questions."""
    losses: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """Of `forget` and `holdout`: -mean log p of a token, in nats, of each answer in order; None where it is not finite.
    Records of before this was kept have none."""
    learned: float | None = None
    """Mean probability of the answers to keep. Records of before this was kept have none."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Which model, and which patch was on."""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def twin(self) -> Twin:
        """The figures that others are held against."""
        return Twin(self.truth_ratios, self.membership.get("mia_min_k"), self.losses)

    def save(self, path: str | Path) -> Path:
        """Write the record as JSON, whole or not at all; its path."""
        storage.write_json(path, {"format": FORMAT, "version": VERSION, **plain(asdict(self))})
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Reference":
        """Read a record.

        Raises:
            RetconError: there is no such file, or it is no record of this version.
        """
        made = f"make one with `retcon eval --forget F --retain R --role {ROLE.replace('_', '-')} --out DIR`"
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RetconError(f"the reference {path} cannot be read ({error.strerror}); {made}") from None
        except ValueError:
            raise RetconError(f"{path} is not JSON, and so no reference; {made}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") != VERSION:
            raise RetconError(f"{path} is no reference of version {VERSION}; {made}")
        try:
            known = {one.name: data[one.name] for one in fields(cls) if one.name in data or one.name not in _LATER}
            found = cls(**{**known, "marks": Marks(**known["marks"])})
            _check_numbers(found)
        except (KeyError, TypeError, AttributeError):
            raise RetconError(f"{path} is a damaged reference; {made}") from None
        return found

    def problems(
        self, now: Marks, tuned: float | None, taught: float | None = None, *, force: bool = False
    ) -> list[str]:
        """What makes this reference doubtful, in sentences.

        Args:
            now: of what is judged.
            tuned: mean probability of the answers to forget under the model that was trained on them.
            taught: the same of the answers to keep; None where there are none.
            force: whether to pass over what the figures say against it; a record of other items is never taken.

        Raises:
            RetconError: the record is of something else, or its figures are not those of such a model.
        """
        if self.role != ROLE:
            raise RetconError(f"the reference is of a model with the role {self.role!r}; it must be {ROLE!r}")
        self.marks.check(now)
        doubts, missing = [], []
        if self.probability is None or tuned is None or not self.probability < tuned:
            doubts.append(
                f"it finds the answers to forget as likely ({_shown(self.probability)}) as the model that is to forget "
                f"them ({_shown(tuned)})"
            )
        area = self.membership.get("mia_min_k")
        if area is None:
            missing.append(
                "the reference has no membership figures, so that it was not checked whether it has seen the questions "
                "to forget; give holdout questions"
            )
        elif not CHANCE[0] <= area <= CHANCE[1]:
            doubts.append(
                f"it tells questions to forget from holdout ones (AUC {area:.2f}, not between {CHANCE[0]} and "
                f"{CHANCE[1]})"
            )
        if self.learned is None or taught is None:
            missing.append(
                "it was not checked whether the reference has learned the questions to keep"
                + ("; give them as retain" if taught is None else ", for its record does not tell: make it again")
            )
        elif not self.learned >= LEARNED * taught:
            doubts.append(
                f"it finds the answers to keep much less likely ({_shown(self.learned)}) than the model that is to "
                f"forget ({_shown(taught)}), as one that was not trained on them"
            )
        if doubts and not force:
            raise RetconError(
                f"the reference is not like a model trained on all but the questions to forget: {'; '.join(doubts)}; "
                "give the right one, or --force-reference (force_reference=True) to take it all the same"
            )
        return [*(f"the reference was taken by force, although {doubt}" for doubt in doubts), *missing]


_NAMED = {
    "items": "other questions to forget or holdout questions, or in another order",
    "retain": "other questions to keep",
    "tokenizer": "another tokenizer",
    "template": "another chat template, or asked otherwise (--plain)",
}


def marks(lm: LM, sets: Mapping[str, Sequence[ForgetCase]], retain: Sequence[ForgetCase]) -> Marks:
    """The hashes that bind a record to what it is about.

    Args:
        lm: the model as it is asked.
        sets: the questions that are asked; `forget` and `holdout` of them count.
        retain: all questions to keep that were given, asked or not.
    """
    items = {
        name: [
            (case.forget.question, case.forget.answer, case.paraphrased_answer, case.perturbed_answers)
            for case in sets[name]
        ]
        for name in ("forget", "holdout")
    }
    kept = [(case.forget.question, case.forget.answer) for case in retain]
    template = str(getattr(lm.tokenizer, "chat_template", None)) if lm.chat else "plain"
    vocabulary = sorted(lm.tokenizer.get_vocab().items())
    return Marks(
        items=_slow(items),
        retain=_slow(kept),
        tokenizer=storage.digest(vocabulary, str(lm.tokenizer.eos_token), tokens.special_ids(lm)[0]),
        template=storage.digest(template),
    )


def _slow(value: Any) -> str:
    """A hash that takes a tenth of a second, so that guesses are dear."""
    return hashlib.pbkdf2_hmac("sha256", storage.digest(value).encode(), _SALT, _ROUNDS).hex()[:32]


def _check_numbers(found: Reference) -> None:
    losses = [value for values in found.losses.values() for value in values]
    numbers = [found.probability, found.learned, *found.truth_ratios, *found.membership.values(), *losses]
    if not all(value is None or isinstance(value, int | float) for value in numbers):
        raise TypeError
    counts = {name: len(values) for name, values in found.losses.items()}
    if counts and counts != {name: found.n[name] for name in ("forget", "holdout")}:
        raise TypeError


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"
