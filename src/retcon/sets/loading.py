"""A source to a list of cases, with where they come from."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from retcon import requests
from retcon.errors import RequestError
from retcon.requests import Case, Conflicts, Edit, ForgetCase, Loaded, check_conflicts, check_forgets
from retcon.requests.files import read_text
from retcon.sets import builtin
from retcon.sets.export import lines
from retcon.sets.readers import READERS, Item, Reader, Request, Row, recognised
from retcon.sets.source import inside, local, records, remote
from retcon.sets.table import SETS, SetInfo
from retcon.storage import digest

__all__ = ["LoadedSet", "cases", "load", "load_cases", "load_edits", "questions"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoadedSet(Loaded[T], Generic[T]):
    """What a source held, as `retcon.requests.Loaded`, and where it comes from."""

    info: SetInfo | None = None
    """The set, if it was asked for by its name, or if files have the names and the format in which it is published."""
    format: str = ""
    """The reader, of `READERS`; "builtin" for the set of our own."""
    split: str | None = None
    files: list[tuple[str, str]] = field(default_factory=list)
    """Name and SHA-256 of each file; `sha256` is that of the one file, or a hash over these."""
    seed: int = 0
    shuffled: bool = False
    """Whether the seed drew the order."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What a report tells of the data, in JSON types."""
        info = self.info
        return {
            "name": info.name if info else None,
            "split": self.split,
            "format": self.format,
            "licence": info.licence if info else None,
            "citation": info.citation if info else None,
            "url": info.url if info else None,
            "files": [{"name": name, "sha256": sha256} for name, sha256 in self.files],
            "sha256": self.sha256,
            "seed": self.seed,
            "shuffled": self.shuffled,
            "n": len(self.items),
            "skipped": len(self.skipped),
        }


def load(
    name_or_path: str | Path,
    *,
    root: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    shuffle: bool = False,
    conflicts: Conflicts = "last",
    skip_bad: bool = True,
) -> LoadedSet[Case] | LoadedSet[ForgetCase]:
    """The cases, or the questions to forget, of a set that is known by name, or of a file or folder.

    A file is read in the format that its records show, ours or a published one; plain or gzip. A set known by its name
    is looked for below `root`, then fetched from the hub, if it is there and the extra `datasets` is installed.

    Args:
        name_or_path: of `SETS`, or a file (JSON, JSONL, CSV, Parquet), or a folder of them.
        root: the folder below which the files of a named set are; by default the one that `$RETCON_DATA` names.
        split: of a named set; by default its first.
        limit: take so many good records, the first ones (of facts a seeded sample; of MQuAKE so many multi-hop cases).
        seed: of what is drawn: new answers where a source has none, the order with `shuffle`, and all of `builtin`.
        shuffle: put the records in a seeded order first, so that seeds differ in which ones a limit takes; those of a
            lower limit are among those of a higher one.
        conflicts: two different targets for one text: "last" keeps the last and says so, "error" refuses.
        skip_bad: list bad records in `skipped` instead of refusing the source.

    Raises:
        RequestError: naming the place and the cure.
    """
    if limit is not None and limit < 1:
        raise RequestError(f"the limit is {limit}; take at least 1 record")
    info, path = (SETS[str(name_or_path)] if _is_name(name_or_path) else None), Path(name_or_path)
    if info is not None:
        if info.name == "builtin":
            return _builtin(info, split, limit, seed)
        split = _split(info, split)
        paths = local(info, split, root) or remote(info, split)
    else:
        paths = inside(path) if path.is_dir() else [path]
        if not path.exists() and path.parent == Path():
            raise RequestError(f"there is no file or set {path}; known sets are {', '.join(SETS)}")
    if info is None and len(paths) == 1 and ".csv" in (suffix.lower() for suffix in paths[0].suffixes):
        return _csv(paths[0], limit, seed if shuffle else None, conflicts, skip_bad)
    return _read(paths, info, split, limit, seed, shuffle, conflicts, skip_bad)


def cases(name_or_path: str | Path, **options: Any) -> LoadedSet[Case]:
    """As `load`, of sources of edits alone.

    Raises:
        RequestError: also where the source holds questions to forget.
    """
    found = load(name_or_path, **options)
    if not all(isinstance(item, Case) for item in found.items):
        raise RequestError(f"{name_or_path} holds questions to forget, not edits; take it with `retcon forget`")
    return cast(LoadedSet[Case], found)


def questions(name_or_path: str | Path, **options: Any) -> LoadedSet[ForgetCase]:
    """As `load`, of sources of questions alone.

    Raises:
        RequestError: also where the source holds edits.
    """
    found = load(name_or_path, **options)
    if not all(isinstance(item, ForgetCase) for item in found.items):
        raise RequestError(f"{name_or_path} holds edits, not questions to forget; take it with `retcon edit`")
    return cast(LoadedSet[ForgetCase], found)


def load_cases(
    path: str | Path, *, limit: int | None = None, skip_bad: bool = False, conflicts: Conflicts = "error"
) -> Loaded[Case]:
    """`retcon.requests.load_cases`, which reads our own files; named sets and files in published formats beside.

    What is not of our own JSONL and CSV is a `LoadedSet`, with where it comes from.
    """
    if _is_name(path) or _is_published(Path(path)):
        return cases(path, limit=limit, skip_bad=skip_bad, conflicts=conflicts)
    return requests.load_cases(path, limit=limit, skip_bad=skip_bad, conflicts=conflicts)


def load_edits(
    path: str | Path, *, limit: int | None = None, skip_bad: bool = False, conflicts: Conflicts = "error"
) -> Loaded[Edit]:
    """`retcon.requests.load_edits`, which reads our own files; the edits of all else that `load_cases` takes beside."""
    if _is_name(path) or _is_published(Path(path)):
        found = cases(path, limit=limit, skip_bad=skip_bad, conflicts=conflicts)
        edits = [case.edit for case in found.items]
        origin = found.info, found.format, found.split, found.files, found.seed
        return LoadedSet(edits, found.skipped, found.warnings, found.sha256, *origin)
    return requests.load_edits(path, limit=limit, skip_bad=skip_bad, conflicts=conflicts)


def _is_name(name_or_path: str | Path) -> bool:
    return str(name_or_path) in SETS and not Path(name_or_path).exists()


def _is_published(path: Path) -> bool:
    """Whether a file is in a format that a reader knows and that is not our own JSONL or CSV."""
    if not path.is_file() or ".csv" in (suffix.lower() for suffix in path.suffixes):
        return False
    rows, _, unit = records(path)
    is_list = False
    if unit == "line":
        is_list = read_text(path)[0].lstrip().startswith("[")
    found = (recognised(record) for _, record in rows if not isinstance(record, RequestError))
    reader = next((reader for reader in found if reader is not None), None)
    return reader is not None and (reader.name != "ours" or is_list or unit == "row")


def _whose(paths: Sequence[Path], reader: Reader) -> tuple[SetInfo | None, str | None]:
    """The set and the split of which these are files, by their names and the format that it is published in."""
    names = [path.name.removesuffix(".gz") for path in paths]
    for info in SETS.values():
        for split, patterns in info.files.items() if reader.name in info.readers else ():
            if any(all(fnmatch(name, pattern) for name in names) for pattern in patterns):
                return info, split
    return None, None


def _split(info: SetInfo, split: str | None) -> str:
    chosen = split or next(iter(info.files))
    if chosen not in info.files:
        raise RequestError(f"{info.name} has no split {chosen!r}; choose from {', '.join(info.files)}")
    return chosen


def _builtin(info: SetInfo, split: str | None, limit: int | None, seed: int) -> LoadedSet[Case]:
    if split is not None:
        raise RequestError("builtin has no splits; leave the split out")
    items = builtin.compose(seed)
    sha256 = lines(items)[1]
    notes = _fewer(limit, len(items), "builtin")
    return LoadedSet(items[:limit], [], notes, sha256, info, "builtin", None, [("builtin.jsonl", sha256)], seed)


def _csv(
    path: Path, limit: int | None, seed: int | None, conflicts: Conflicts, skip_bad: bool
) -> LoadedSet[Case] | LoadedSet[ForgetCase]:
    """A CSV is of our own schema. With a seed, its records come in an order drawn by it."""
    asks = "question" in read_text(path)[0].partition("\n")[0]
    first = limit if seed is None else None
    found: Loaded[Any] = (
        requests.load_retain(path, limit=first, skip_bad=skip_bad)
        if asks
        else requests.load_cases(path, limit=first, skip_bad=skip_bad, conflicts=conflicts)
    )
    items = found.items if seed is None else _shuffled(found.items, seed)[:limit]
    files = [(path.name, found.sha256)]
    kind = "questions" if asks else "ours"
    told = found.sha256, None, kind, None, files, seed or 0, seed is not None
    return LoadedSet(items, found.skipped, found.warnings, *told)


def _read(
    paths: Sequence[Path],
    info: SetInfo | None,
    split: str | None,
    limit: int | None,
    seed: int,
    shuffle: bool,
    conflicts: Conflicts,
    skip_bad: bool,
) -> LoadedSet[Case] | LoadedSet[ForgetCase]:
    rows, skipped, files = _rows(paths)
    if shuffle:
        rows = _shuffled(rows, seed)
    name = info.name if info else paths[0].name
    if not rows:
        raise RequestError(f"{name} has no record that can be read" + (f"; {skipped[0]}" if skipped else ""))
    reader, strange = _format(rows, info, name)
    skipped += [f"{row.place}: not of the format {reader.name}, which has {reader.fields}" for row in strange]
    request = Request(info.name if info else reader.name, split, limit, seed)
    items: list[Item] = []
    places: list[str] = []
    odd = {row.place for row in strange}
    for place, found in reader.read([row for row in rows if row.place not in odd], request):
        if isinstance(found, RequestError):
            skipped.append(f"{place}: {found}")
        else:
            items.append(found)
            places.append(place)
    if skipped and (not skip_bad or not items):
        reason = "" if items else f"{name} has no good record; the first of {len(skipped)} is "
        raise RequestError(reason + skipped[0])
    kept, warnings = _checked(items, places, conflicts, split or paths[0].name)
    short = _fewer(limit, len(items), name) if reader.name != "mquake" else []
    sha256 = files[0][1] if len(files) == 1 else digest(files)
    told = [*request.notes, *short, *warnings]
    chosen: list[Any] = [items[n] for n in kept]
    if info is None and reader.name not in ("ours", "questions"):  # those two are of no set alone
        info, split = _whose(paths, reader)
    return LoadedSet(chosen, skipped, told, sha256, info, reader.name, split, files, seed, shuffle)


def _rows(paths: Sequence[Path]) -> tuple[list[Row], list[str], list[tuple[str, str]]]:
    """Good rows of all files, a sentence for each bad one, and the files' names and hashes."""
    rows: list[Row] = []
    skipped: list[str] = []
    files: list[tuple[str, str]] = []
    for path in paths:
        found, sha256, unit = records(path)
        files.append((path.name, sha256))
        for position, (line, record) in enumerate(found):
            place = f"{path.name} {unit} {line}"
            if isinstance(record, RequestError):
                skipped.append(f"{place}: {record}")
            else:
                rows.append(Row(place, record, position, path.name.partition(".")[0]))
    return rows, skipped, files


def _format(rows: Sequence[Row], info: SetInfo | None, name: str) -> tuple[Reader, list[Row]]:
    """The reader of the first row that any reader knows, and the rows that are not for it."""
    known = READERS if info is None else {key: READERS[key] for key in info.readers}
    by_reader: dict[str, list[Row]] = defaultdict(list)
    strange: list[Row] = []
    for row in rows:
        reader = recognised(row.record)
        if reader is None or reader.name not in known:
            strange.append(row)
        else:
            by_reader[reader.name].append(row)
    if not by_reader:
        has = ", ".join(list(rows[0].record)[:8])
        fields = "; ".join(f"{reader.name} ({reader.fields})" for reader in known.values())
        raise RequestError(f"{name} is in no known format; its first record has {has}; known are {fields}")
    first = next(iter(by_reader))
    others = [row for key, found in by_reader.items() if key != first for row in found]
    return READERS[first], [*strange, *others]


def _checked(
    items: Sequence[Item], places: Sequence[str], conflicts: Conflicts, split: str
) -> tuple[list[int], list[str]]:
    """Which items to keep and what to warn of; questions contradict each other only where they are to be forgotten."""
    edits = [item.edit for item in items if isinstance(item, Case)]
    if len(edits) == len(items):
        return check_conflicts(edits, conflicts, names=places)
    if not split.startswith("forget"):
        return list(range(len(items))), []
    forgets = [item.forget for item in items if isinstance(item, ForgetCase)]
    return check_forgets(forgets, conflicts, labels=places)


def _shuffled(items: Sequence[T], seed: int) -> list[T]:
    """In an order that a seed draws."""
    return random.Random(f"retcon-order-{seed}").sample(items, len(items))


def _fewer(limit: int | None, found: int, name: str) -> list[str]:
    """Never a silent truncation: a set that is smaller than what was asked for says so."""
    return [f"{name} has {found} good records, fewer than the {limit} asked for"] if limit and found < limit else []
