"""What is forgotten, what is kept and what is left out: a corpus of questions, cut into three."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retcon.errors import RequestError
from retcon.forget_bench.contracts import ATTRIBUTES, contracts
from retcon.forget_bench.wrong import with_wrong_answers
from retcon.requests import ForgetCase, load_forget, load_retain
from retcon.storage import digest, new_file

__all__ = [
    "GENERATED",
    "HOLDOUT",
    "Groups",
    "Split",
    "by_group",
    "generated",
    "split",
    "split_files",
    "with_general",
    "write_split",
]

GENERATED = "generated"
"""The name of the corpus that the project makes itself."""
HOLDOUT = 40
"""Questions that neither model is taught."""

Groups = int | Sequence[str] | None
"""So many groups, these groups (or single questions, by their ids), or all that are left."""


@dataclass(frozen=True, slots=True)
class Split:
    """A corpus cut into three."""

    forget: list[ForgetCase]
    retain: list[ForgetCase]
    holdout: list[ForgetCase]
    """What neither the model nor its twin has learned."""
    general: dict[str, list[ForgetCase]] = field(default_factory=dict)
    """Other questions, `real_authors` and `world_facts`, by which TOFU's utility is told; nobody is taught them."""
    told: dict[str, Any] = field(default_factory=dict)
    """Where it comes from, in JSON types."""

    def key(self) -> str:
        """Hash of all its questions, answers and what they are judged by."""
        parts = {**self.parts(), **self.general}
        return digest("split-1", {name: [_record(case) for case in part] for name, part in parts.items()})

    def parts(self) -> dict[str, list[ForgetCase]]:
        """The three by name."""
        return {"forget": self.forget, "retain": self.retain, "holdout": self.holdout}

    def counts(self) -> dict[str, int]:
        """How many questions each part has."""
        return {name: len(part) for name, part in self.parts().items()}


def generated(
    *,
    forget_groups: int = 4,
    retain_groups: int = 4,
    holdout: int = HOLDOUT,
    attributes: int = ATTRIBUTES,
    seed: int = 0,
) -> Split:
    """Contracts of our own, just as many as are needed.

    Raises:
        RetconError: a count makes no sense.
    """
    edges = forget_groups + retain_groups + -(-holdout // attributes if attributes > 0 else 0)
    cases = contracts(edges, attributes=attributes, seed=seed)
    found = split(cases, forget_groups=forget_groups, retain_groups=retain_groups, holdout=holdout, seed=seed)
    told = {"corpus": GENERATED, "contracts": edges, "attributes": attributes, "seed": seed}
    return replace(found, told=found.told | told)


def split_files(
    corpus: Path,
    *,
    retain_corpus: Path | None = None,
    holdout_corpus: Path | None = None,
    forget_groups: Groups = 4,
    retain_groups: Groups = 4,
    holdout: int = HOLDOUT,
    seed: int = 0,
) -> tuple[Split, list[str]]:
    """The split of files in the schema of PISTOL and TOFU, and what to warn of.

    Questions without wrong answers are given those of the same question in other groups, where there are any.

    Args:
        corpus: what is forgotten and, where no other file is named, all the rest.
        retain_corpus: what is kept.
        holdout_corpus: what is left out; by default questions of the file of what is kept.
        forget_groups: of `corpus`; a group is a document (`edge`, `group`), else a subject, else a single question.
        retain_groups: of what is kept.
        holdout: the number of questions that are left out.
        seed: of all that is drawn.

    Raises:
        RequestError: a file is wrong, or has too little.
    """
    loaded = load_forget(corpus, skip_bad=True, conflicts="last")
    files, warnings = {corpus.name: loaded.sha256}, [*loaded.skipped, *loaded.warnings]

    def more(path: Path) -> list[ForgetCase]:
        other = load_retain(path, skip_bad=True)
        files[path.name] = other.sha256
        warnings.extend(other.skipped)
        return other.items

    found = split(
        loaded.items,
        retain_from=None if retain_corpus is None else more(retain_corpus),
        holdout_from=None if holdout_corpus is None else more(holdout_corpus),
        forget_groups=forget_groups,
        retain_groups=retain_groups,
        holdout=holdout,
        seed=seed,
    )
    forget, retain, left = (
        with_wrong_answers(part, loaded.items, seed=seed) for part in (found.forget, found.retain, found.holdout)
    )
    given = forget[1] + retain[1] + left[1]
    told = {"corpus": corpus.name, "sha256": files, "seed": seed, "given_wrong_answers": given}
    return Split(forget[0], retain[0], left[0], told=found.told | told), warnings


def with_general(made: Split, files: Mapping[str, Path]) -> tuple[Split, list[str]]:
    """The split with general questions that have wrong answers, and what to warn of.

    Args:
        made: the split.
        files: by name, `real_authors` and `world_facts`; model utility needs both.

    Raises:
        RequestError: a file is wrong.
    """
    loaded = {name: load_retain(path, skip_bad=True) for name, path in files.items()}
    read = {files[name].name: other.sha256 for name, other in loaded.items()}
    general = {name: other.items for name, other in loaded.items()}
    told = made.told | {"sha256": {**made.told.get("sha256", {}), **read}}
    return replace(made, general=general, told=told), [line for other in loaded.values() for line in other.skipped]


def split(
    cases: Sequence[ForgetCase],
    *,
    retain_from: Sequence[ForgetCase] | None = None,
    holdout_from: Sequence[ForgetCase] | None = None,
    forget_groups: Groups = 4,
    retain_groups: Groups = 4,
    holdout: int = HOLDOUT,
    seed: int = 0,
) -> Split:
    """Cut a corpus by groups; which ones is drawn by the seed and their names, and no question is in two parts.

    Args:
        cases: what is forgotten is taken of these.
        retain_from: what is kept is taken of these; None for the rest of `cases`.
        holdout_from: what is left out is taken of these; None for the rest of what is kept.
        forget_groups: see `Groups`.
        retain_groups: the same.
        holdout: the number of questions that are left out.
        seed: of the draws.

    Raises:
        RequestError: there are too few groups or questions, or one that is named is not there.
    """
    if holdout < 0:
        raise RequestError(f"a holdout of {holdout} questions cannot be; give 0 or more")
    taken: set[str] = set()
    forget = _chosen(cases, forget_groups, "forget", seed, taken)
    keepable = cases if retain_from is None else retain_from
    retain = _chosen(keepable, retain_groups, "retain", seed, taken)
    rest = _left(keepable if holdout_from is None else holdout_from, taken)
    if len(rest) < holdout:
        raise RequestError(
            f"{len(rest)} questions are left for a holdout of {holdout}; take fewer groups, or leave out fewer"
        )
    drawn = sorted(rest, key=lambda case: digest(seed, "holdout", _name(case)))[:holdout]
    names = {_name(case) for case in drawn}
    told = {"groups": {part: _documents(items) for part, items in (("forget", forget), ("retain", retain))}}
    return Split(forget, retain, [case for case in rest if _name(case) in names], told=told)


def write_split(made: Split, folder: Path) -> list[Path]:
    """Write the parts as files of questions, for `retcon forget` and `retcon eval` to read; their paths."""
    written = []
    for name, part in made.parts().items():
        with new_file(folder / f"{name}.jsonl") as path:
            path.write_text("".join(json.dumps(_record(case), ensure_ascii=False) + "\n" for case in part), "utf-8")
        written.append(folder / f"{name}.jsonl")
    return written


def _chosen(cases: Sequence[ForgetCase], wanted: Groups, part: str, seed: int, taken: set[str]) -> list[ForgetCase]:
    """The cases of the groups wanted, in order; they are noted as taken."""
    left = _left(cases, taken)
    groups = by_group(left)
    if isinstance(wanted, int):
        if not 1 <= wanted <= len(groups):
            raise RequestError(
                f"{wanted} groups to {part} are wanted and {len(groups)} are left; take 1 to {len(groups)}"
            )
        drawn = sorted(groups, key=lambda name: digest(seed, "groups", name))[:wanted]
        chosen = {_name(case) for name in drawn for case in groups[name]}
    elif wanted is None:
        chosen = {_name(case) for case in left}
    else:
        chosen = set()
        single = {case.forget.id: case for case in left}
        for name in wanted:
            if name not in groups and name not in single:
                raise RequestError(f"there is no group {name!r} left to {part}; there are {_listed(list(groups))}")
            chosen |= {_name(case) for case in groups.get(name) or [single[name]]}
    taken |= chosen
    return [case for case in left if _name(case) in chosen]


def _left(cases: Sequence[ForgetCase], taken: set[str]) -> list[ForgetCase]:
    """Those that no part has yet; of one question asked twice, the first."""
    first: dict[str, ForgetCase] = {}
    for case in cases:
        first.setdefault(_name(case), case)
    return [case for name, case in first.items() if name not in taken]


def by_group(cases: Sequence[ForgetCase]) -> dict[str, list[ForgetCase]]:
    """Cases by document, else by subject, else each by itself."""
    found: dict[str, list[ForgetCase]] = {}
    for case in cases:
        item = case.forget
        found.setdefault(item.group or item.subject or item.id or item.question, []).append(case)
    return found


def _documents(cases: Sequence[ForgetCase]) -> list[str]:
    """Names of the groups that have one; a subject is not told, for it may be what nobody should read."""
    return list(dict.fromkeys(case.forget.group for case in cases if case.forget.group is not None))


def _name(case: ForgetCase) -> str:
    """What makes a question one: its words."""
    return case.forget.question


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _record(case: ForgetCase) -> Mapping[str, Any]:
    """A case with the files' field names; what it lacks is left out."""
    item = case.forget
    fields = {
        "id": item.id,
        "question": item.question,
        "answer": item.answer,
        "subject": item.subject,
        "aliases": list(item.aliases),
        "group": item.group,
        "paraphrased_question": list(case.paraphrases),
        "paraphrased_answer": case.paraphrased_answer,
        "perturbed_answers": list(case.perturbed_answers),
        "split": case.split,
        "entities": list(case.entities),
    }
    return {name: value for name, value in fields.items() if value not in (None, [])}
