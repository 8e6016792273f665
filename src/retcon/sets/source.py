"""From a name, a file or a folder to records: where the files are, and what they hold."""

import fnmatch
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from retcon.errors import RequestError
from retcon.requests.files import json_object, json_records, read_text
from retcon.sets.table import SetInfo
from retcon.storage import file_sha256

__all__ = ["ROOT_VARIABLE", "inside", "local", "records", "remote"]

ROOT_VARIABLE = "RETCON_DATA"
"""The environment variable that names the folder of sets."""

EXTRA = "pip install 'retcon-lm[datasets]'"
_DATA = (".json", ".jsonl", ".csv", ".parquet")

Records = Iterator[tuple[int, Mapping[str, Any] | RequestError]]


def local(info: SetInfo, split: str, root: Path | None) -> list[Path]:
    """The files of a split below `root` (by default `$RETCON_DATA`), in order; none where there are none.

    Raises:
        RequestError: the folder is not there, or several files could be meant.
    """
    folder = root or (Path(value) if (value := os.environ.get(ROOT_VARIABLE)) else None)
    if folder is None:
        return []
    if not folder.is_dir():
        raise RequestError(f"there is no folder {folder}; give the one that holds the files of {info.name}")
    for pattern in info.files[split]:
        found = sorted(path for path in folder.rglob(pattern) if path.is_file())
        if len(found) > 1 and "[" not in pattern:
            either = " or ".join(str(path.relative_to(folder)) for path in found[:3])
            raise RequestError(f"{info.name} {split} could be {either} in {folder}; give the path of the one you mean")
        if found:
            return found
    return []


def remote(info: SetInfo, split: str) -> list[Path]:
    """The data files of a split on the hub, fetched to its cache.

    Raises:
        RequestError: the hub does not have it, it is Parquet there and the extra is missing, or it cannot be fetched.
    """
    names = " or ".join(info.files[split])
    here = f"download {names} from {info.url} and give its path, or its folder as the root or in ${ROOT_VARIABLE}"
    if info.hub is None or split not in info.hub.files:
        raise RequestError(f"{info.name} {split} is not on this machine and not on the hub; {here}")
    repo, pattern = info.hub.repo, info.hub.files[split]
    if pattern.endswith(".parquet") and find_spec("pyarrow") is None:
        raise RequestError(
            f"{info.name} {split} is not on this machine; {here}; or, to fetch it from the hub, where it is Parquet, "
            f"{EXTRA}"
        )
    from huggingface_hub import snapshot_download

    try:  # files alone: nothing of a repository is run
        folder = Path(snapshot_download(repo, repo_type="dataset", allow_patterns=[pattern]))
    except (OSError, ValueError) as error:
        raise RequestError(f"{repo} cannot be fetched from the hub ({type(error).__name__}); {here}") from None
    files = (path for path in folder.rglob("*") if path.is_file())
    found = sorted(path for path in files if fnmatch.fnmatch(str(path.relative_to(folder)), pattern))
    if not found:
        raise RequestError(f"{repo} has no file {pattern} any more; {here}")
    return found


def inside(folder: Path) -> list[Path]:
    """The data files of a folder that a user gave, in order.

    Raises:
        RequestError: it has none.
    """
    found = sorted(path for path in folder.rglob("*") if path.is_file() and _is_data(path))
    if not found:
        raise RequestError(f"{folder} has no data file; its files should end with {', '.join(_DATA)}, plain or .gz")
    return found


def _is_data(path: Path) -> bool:
    return path.name.removesuffix(".gz").lower().endswith(_DATA)


def records(path: Path) -> tuple[Records, str, str]:
    """The records of a file, each with its line (Parquet: its row); the file's SHA-256; "line" or "row".

    Raises:
        RequestError: it cannot be read at all, or is Parquet and the extra is missing.
    """
    if path.suffix.lower() == ".parquet":
        return _parquet(path), file_sha256(path), "row"
    text, sha256 = read_text(path)
    begin = text.lstrip()[:1]
    return (_array(text) if begin == "[" else json_records(text)), sha256, "line"


def _array(text: str) -> Records:
    """The objects of a JSON array, each with the line where it begins; what cannot be parsed ends it."""
    decoder = json.JSONDecoder(object_pairs_hook=json_object)
    at, line, counted = text.index("[") + 1, 1, 0
    while True:
        while at < len(text) and (text[at].isspace() or text[at] == ","):
            at += 1
        line, counted = line + text.count("\n", counted, at), at
        if at >= len(text) or text[at] == "]":
            if at >= len(text):
                yield line, RequestError("the list does not end; the file is cut off, fetch it again")
            return
        try:
            record, at = decoder.raw_decode(text, at)
        except RequestError as error:
            yield line, error
            return
        except (RecursionError, ValueError) as error:
            yield line, RequestError(f"not JSON from here on ({getattr(error, 'msg', 'it nests too deep')})")
            return
        yield line, record if isinstance(record, dict) else RequestError("no object in { }")


def _parquet(path: Path) -> Records:
    if find_spec("pyarrow") is None:
        raise RequestError(f"{path.name} is Parquet, which needs {EXTRA}; or give it as JSONL")
    from pyarrow import parquet

    rows: Sequence[Mapping[str, Any]] = parquet.read_table(path).to_pylist()
    return iter(enumerate(rows, 1))
