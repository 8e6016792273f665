"""The probes by name: one row each, in the order in which they are run and shown."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from retcon.errors import RetconError
from retcon.probes import decoding, detach, lens, mixed, prompts, quantise, relearn, tokenisation
from retcon.probes.scene import Finding, Scene

__all__ = ["GROUPS", "PROBES", "Attack", "chosen"]


@dataclass(frozen=True, slots=True)
class Attack:
    """One probe."""

    run: Callable[[Scene, Any], Iterator[Finding]]
    Config: type
    """Its options: a frozen dataclass, by which they are also found."""
    about: str
    """In a few words."""
    usual: bool = True
    """Whether it is run when no probe is named."""


def _worded(name: str, about: str) -> Attack:
    return Attack(partial(prompts.worded, name), prompts.Wordings, about)


PROBES: dict[str, Attack] = {
    "rephrase": Attack(prompts.rephrase, prompts.Rephrase, "the question in other words"),
    "few_shot": Attack(prompts.few_shot, prompts.FewShot, "after questions to keep, with their answers"),
    "prefix_injection": _worded("prefix_injection", "asked to begin with an answer's first words"),
    "affirmative_start": Attack(
        prompts.affirmative_start, prompts.Wordings, "an answer's first words put into its mouth"
    ),
    "role_play": _worded("role_play", "as somebody who knows"),
    "answer_then_decline": _worded("answer_then_decline", "the answer first, then the refusal"),
    "system_prompt": Attack(prompts.system_prompt, prompts.Wordings, "under another system prompt"),
    "cloze": _worded("cloze", "as a gap to fill"),
    "mixed": Attack(mixed.run, mixed.Mixed, "among questions to keep"),
    "reverse": Attack(prompts.reverse, prompts.Wordings, "from the answer to the subject"),
    "tokenisation": Attack(tokenisation.run, tokenisation.Tokenisation, "the same text in other tokens"),
    "decoding": Attack(decoding.run, decoding.Decoding, "answers drawn at random"),
    "lens": Attack(lens.run, lens.Lens, "read off the states, layer by layer"),
    "quantise": Attack(quantise.run, quantise.Quantise, "weights rounded to a few bits"),
    "relearn_same": Attack(relearn.same, relearn.Relearn, "a little training on what was forgotten"),
    "relearn_disjoint": Attack(relearn.disjoint, relearn.Relearn, "a little training on the other half"),
    "relearn_benign": Attack(relearn.benign, relearn.Relearn, "a little training on other texts", usual=False),
    "detach": Attack(detach.run, detach.Detach, "the patch taken off"),
}
"""All probes by name."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "prompts": tuple(PROBES)[: list(PROBES).index("tokenisation")],
    "relearn": ("relearn_same", "relearn_disjoint"),
    "all": tuple(PROBES),
}
"""Names for several."""


def chosen(names: Iterable[str] | None) -> list[str]:
    """The probes that are named, each once, in the order of the table; None for the usual ones.

    Raises:
        RetconError: there is no probe or group of a name, or nothing is named.
    """
    if names is None:
        return [name for name, attack in PROBES.items() if attack.usual]
    if isinstance(names, str):
        raise RetconError(f"names is a single text; give a list, such as [{names!r}]")
    wanted: set[str] = set()
    for name in names:
        if name not in PROBES and name not in GROUPS:
            raise RetconError(f"there is no probe {name!r}; use some of {', '.join((*PROBES, *GROUPS))}")
        wanted.update(GROUPS.get(name, (name,)))
    if not wanted:
        raise RetconError("no probe is named; name at least one, or leave names out for the usual ones")
    return [name for name in PROBES if name in wanted]
