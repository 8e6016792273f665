"""What probes found: one row an attack and setting, and in words what kind of forgetting it was."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from retcon.errors import RetconError
from retcon.forget.privacy import id_of
from retcon.metrics.summary import mean
from retcon.probes.scene import ORIGINAL, TWIN, UNLEARNED, Finding, Scene
from retcon.probes.verdict import LEVEL, judged

__all__ = ["ProbeResult", "Probed", "recovery", "row", "together"]


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One attack in one setting. Shares are of the `n` questions that it was tried on."""

    name: str
    """The probe; see `PROBES`."""
    setting: dict[str, Any]
    """How it was carried out."""
    original: float | None
    """Answers that the model before forgetting gives when it is asked plainly."""
    unlearned: float | None
    """The same of the model after it."""
    attacked_original: float | None
    """What the attack brings out of the model before forgetting."""
    attacked: float | None
    """What it brings out of the model after it."""
    attacked_twin: float | None
    """What it brings out of the model that never saw what is to be forgotten."""
    recovery: float | None
    """(attacked - unlearned) / (original - unlearned): 0 nothing came back, 1 all; None where that says nothing."""
    n: int
    """Questions that it was tried on."""
    seconds: float
    """Wall-clock time."""
    note: str = ""
    """What to know of the figures; "n/a: ..." where there are none."""
    detail: dict[str, Any] = field(default_factory=dict)
    """More figures, in JSON types."""
    items: list[dict[str, Any]] = field(default_factory=list)
    """A record a question, by its salted id: the share of tries that brought its answer out, by arm. What was asked
    and said is there only where it was to be revealed."""

    @property
    def failed(self) -> bool:
        """Whether there are no figures."""
        return self.attacked is None


@dataclass(frozen=True, slots=True)
class Probed:
    """All that probes found of one patch; also a sequence of its rows."""

    results: list[ProbeResult]
    model: str
    patch: str
    """The patch's id."""
    method: str
    """The methods that made the patch."""
    asked: int
    """Questions that were given."""
    known: int
    """Those that the model before forgetting answers right; only they are attacked."""
    unlearned: float | None
    """The share of these that is still answered when plainly asked."""
    twin: float | None
    """The same of the model that never saw them; None where there is none."""
    folds: bool
    """Whether the patch is a change of weights."""
    has_twin: bool
    chat: bool
    """Whether questions were put through the chat template."""
    seed: int
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)
    """Options of the probes."""

    def __iter__(self) -> Iterator[ProbeResult]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    @property
    def kind(self) -> str:
        """In a word or two: see `retcon.probes.verdict`."""
        return judged(self)[0]

    def verdict(self) -> str:
        """What kind of forgetting it is, in sentences."""
        return judged(self)[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the verdict first."""
        facts = {key: value for key, value in asdict(self).items() if key != "results"}
        return {
            "kind": self.kind,
            "verdict": self.verdict(),
            **facts,
            "results": [asdict(result) for result in self.results],
        }

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Probed":
        """What `to_dict` gave; the verdict is judged anew."""
        own = {key: value for key, value in record.items() if key not in ("kind", "verdict", "results")}
        return cls(results=[ProbeResult(**result) for result in record["results"]], **own)


def together(parts: Sequence[Probed]) -> Probed:
    """Several looks at one patch as one; what is said of its questions is that of the look at most of them.

    Raises:
        RetconError: they are of different patches or models, or there is none.
    """
    if not parts or len({(part.patch, part.model, part.chat, part.has_twin) for part in parts}) > 1:
        raise RetconError("what probes found can be put together of one patch and model alone; give such records")
    widest = max(parts, key=lambda part: part.known)
    settings = {name: value for part in parts for name, value in part.settings.items()}
    results = [result for part in parts for result in part.results]
    return replace(widest, results=results, settings=settings, seconds=round(sum(part.seconds for part in parts), 3))


def recovery(attacked: float | None, unlearned: float | None, original: float | None) -> float | None:
    """(attacked - unlearned) / (original - unlearned); None where a figure is missing or the difference is below 0.05.

    >>> recovery(0.55, 0.1, 1.0), recovery(0.9, 0.97, 1.0)
    (0.5, None)
    """
    if attacked is None or unlearned is None or original is None or abs(original - unlearned) < LEVEL:
        return None
    return round((attacked - unlearned) / (original - unlearned), 6)


def row(scene: Scene, name: str, found: Finding, seconds: float) -> ProbeResult:
    """A finding as a row of the record."""
    tried = sorted(found.out.get(UNLEARNED, {}))
    plain = {arm: mean(float(values[i]) for i in tried) for arm, values in scene.plain.items()}
    attacked = found.share(UNLEARNED)
    back = recovery(attacked, plain[UNLEARNED], plain[ORIGINAL]) if found.answers else None
    return ProbeResult(
        name=name,
        setting=found.setting,
        original=plain[ORIGINAL],
        unlearned=plain[UNLEARNED],
        attacked_original=found.share(ORIGINAL),
        attacked=attacked,
        attacked_twin=found.share(TWIN),
        recovery=back,
        n=len(tried),
        seconds=round(seconds, 3),
        note=_note(found, attacked, back),
        detail=found.detail,
        items=_items(scene, found, tried),
    )


def _note(found: Finding, attacked: float | None, back: float | None) -> str:
    """The finding's own note, and why there is no recovery."""
    why = ""
    if attacked is None and not found.note:
        why = "n/a: no question to try it on"
    elif attacked is not None and back is None:
        nothing = f"no recovery: forgetting took less than {LEVEL:g} away"
        why = nothing if found.answers else "no recovery: it counts something else than answers; compare the models"
    return "; ".join(part for part in (found.note, why) if part)


def _items(scene: Scene, found: Finding, tried: Sequence[int]) -> list[dict[str, Any]]:
    """A record a question; it tells texts only where they may be revealed."""

    def record(i: int) -> dict[str, Any]:
        item = scene.cases[i].forget
        facts: dict[str, Any] = {"id": id_of(item)}
        facts |= {arm: round(values[i], 6) for arm, values in found.out.items() if i in values}
        if scene.reveal:
            said: Mapping[str, Any] = {arm: list(texts[i]) for arm, texts in found.texts.items() if i in texts}
            facts |= {"question": item.question, "answer": item.answer, "said": said}
        return facts

    return [record(i) for i in tried]
