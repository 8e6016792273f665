"""Files are written whole or not at all; caches live in one folder and are keyed by content."""

import hashlib
import hmac
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["cache_dir", "digest", "file_sha256", "new_file", "new_folder", "salted", "write_json"]


def cache_dir(*parts: str) -> Path:
    """The folder `$RETCON_CACHE` (default `~/.cache/retcon`) joined with `parts`, made if absent."""
    root = os.environ.get("RETCON_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "retcon"
    )
    folder = Path(root, *parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def digest(*parts: Any) -> str:
    """SHA-256 (hex) of JSON-able `parts`; bytes are hashed as they are."""
    sha = hashlib.sha256()
    for part in parts:
        data = (
            part
            if isinstance(part, bytes | memoryview)
            else json.dumps(part, sort_keys=True, ensure_ascii=False).encode()
        )
        sha.update((data.nbytes if isinstance(data, memoryview) else len(data)).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()


def salted(*texts: str) -> str:
    """The id of some texts: 16 hex digits, the same on this machine and in nobody's dictionary."""
    return hmac.new(_salt(), digest(*texts).encode(), "sha256").hexdigest()[:16]


def file_sha256(path: str | Path) -> str:
    """SHA-256 (hex) of a file, read in pieces."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it becomes `path` only if the block ends without an error."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path, keep: Iterable[str] = ()) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes the place of `path` only if the block ends without an error.

    Files of an older folder named in `keep` move over; all its other files go.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        temporary.chmod(0o777 & ~_umask())
        old = target.with_name(f".{target.name}.old-{os.getpid()}")
        if target.exists():
            for name in keep:
                if (target / name).exists() and not (temporary / name).exists():
                    shutil.move(target / name, temporary / name)
            target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _salt() -> bytes:
    """This machine's salt, made when it is first needed."""
    path = cache_dir() / "salt"
    if not path.exists():
        with new_file(path) as temporary:
            temporary.write_bytes(secrets.token_bytes(32))
        path.chmod(0o600)
    return path.read_bytes()
