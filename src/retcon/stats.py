"""Second moments of keys: what the inputs of a projection look like over ordinary text.

`C = (1/T) sum_t k_t k_t^T`, uncentred, over the tokens of a stream of text; fp32 products of one batch, summed in fp64.
One pass collects all layers and stops above the last. Results are cached by content: the weights, the patches that are
on, the consumed token ids. A few times the key width of tokens is enough (arXiv 2506.04226).
"""

import gzip
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from retcon import forward, hooks, patch, progress, storage, tokens
from retcon.errors import RetconError
from retcon.lm import LM

__all__ = ["SELF", "Moments", "held_out", "keys", "moments", "texts_of", "token_rows"]

SELF = "self"
"""The source that samples the text from the model itself; it needs no file."""

_MAX_LENGTH = 256
_SAMPLE_LENGTH = 128
_TOKENS_PER_WIDTH, _OWN_TOKENS_PER_WIDTH = 16, 10
_HELD_OUT, _FEW = 1024, 128
"""Tokens held out, and how few of them a text may leave before the model's own take their place."""


@dataclass(frozen=True, slots=True)
class Moments:
    """The second moment of one projection's keys."""

    second: Float[Tensor, "d_k d_k"]
    """Mean of k k^T over tokens, fp64, in squared activation units."""
    count: int
    """Tokens seen."""
    provenance: dict[str, Any]
    """Where the text came from: source, seed, tokens, hash of the ids."""


def moments(
    lm: LM,
    paths: Sequence[str],
    source: str | Path | Iterable[str] = SELF,
    *,
    tokens_wanted: int | None = None,
    seed: int = 0,
    cached: bool = True,
) -> Mapping[str, Moments]:
    """Second moments of the inputs of the projections at `paths`; those in the cache are read when they are asked for.

    Args:
        lm: the model.
        paths: full module paths.
        source: `self`, a text or JSONL file (plain or .gz), a `datasets` id, or texts.
        tokens_wanted: how many tokens to use; by default 16 times the key width, 10 times for `self`, fewer where the
            text ends.
        seed: seed of the sampling, for `self`.
        cached: whether results are read from and written to the cache.

    Raises:
        RetconError: the source cannot be read or holds no text.
    """
    wanted = tokens_wanted or _usual(lm, source)
    state = _state(lm)
    rows, provenance = _rows(lm, source, wanted, seed, state if cached else None)
    count = provenance["tokens"]
    key = storage.digest(state, provenance["ids_sha256"], "moments-1")[:24]
    folder = storage.cache_dir("moments")
    if not cached:
        return {path: Moments(second, count, provenance) for path, second in _collect(lm, paths, rows).items()}
    files = {path: folder / f"{key}-{path}.safetensors" for path in paths}
    missing = [path for path, file in files.items() if _read(file) is None]
    if missing:
        for path, second in _collect(lm, missing, rows).items():
            _write(files[path], Moments(second, count, provenance))
    return _Kept(files)


def held_out(
    lm: LM,
    paths: Sequence[str],
    source: str | Path | Iterable[str] = SELF,
    *,
    tokens_wanted: int | None = None,
    seed: int = 0,
    cached: bool = True,
) -> dict[str, Float[Tensor, "d_k n"]]:
    """Keys of ordinary text that `moments`, with the same arguments, has not seen; about a thousand, fp64.

    They are of the text that follows; where it has ended, or is the model's own, of other text of the model's own.

    Raises:
        RetconError: the source cannot be read.
    """
    rows: list[list[int]] = []
    if source != SELF:
        seen = 0
        wanted = tokens_wanted or _usual(lm, source)
        for row in token_rows(lm, texts_of(source), wanted + _HELD_OUT, length=_MAX_LENGTH):
            if seen >= wanted:
                rows.append(row)
            seen += len(row)
    if sum(map(len, rows)) < _FEW:
        rows = _own_text(lm, _HELD_OUT, seed + 1, _state(lm) if cached else None)
    return keys(lm, paths, rows)


def keys(lm: LM, paths: Sequence[str], rows: list[list[int]]) -> dict[str, Float[Tensor, "d_k n"]]:
    """Inputs of the projections at `paths` at all tokens of some rows of ids; fp64, on the CPU."""
    found: dict[str, list[Tensor]] = {path: [] for path in paths}
    _read_keys(lm, paths, rows, lambda path, states: found[path].append(states.double().cpu()))
    return {path: torch.cat(parts).T for path, parts in found.items()}


def _usual(lm: LM, source: str | Path | Iterable[str]) -> int:
    """How many tokens are used where it is not said."""
    return (_OWN_TOKENS_PER_WIDTH if source == SELF else _TOKENS_PER_WIDTH) * lm.arch.d_mlp


def _state(lm: LM) -> str:
    """Hash of the weights and of the patches that are on."""
    return storage.digest(lm.fingerprint(), [item.id for item in patch.active(lm.model)])


def _collect(lm: LM, paths: Sequence[str], rows: list[list[int]]) -> dict[str, Tensor]:
    """The mean of k k^T over all tokens, of each projection: products in fp32, sums in fp64."""
    sums: dict[str, Tensor] = {}

    def add(path: str, states: Tensor) -> None:
        product = (states.T @ states).double()
        sums[path] = sums[path].add_(product) if path in sums else product

    _read_keys(lm, paths, rows, add)
    total = sum(len(row) for row in rows)
    return {path: ((value + value.T) / (2 * total)).cpu() for path, value in sums.items()}


def _read_keys(
    lm: LM, paths: Sequence[str], rows: list[list[int]], take: Callable[[str, Float[Tensor, "n d_k"]], None]
) -> None:
    """Hand over the keys of all tokens, batch by batch; the forward stops once the last projection has been read."""
    modules = {path: lm.module(path) for path in paths}
    order = [path for path in lm.arch.mlp_out if path in modules] or list(paths)
    last = order[-1] if len(order) == len(paths) else None
    with ExitStack() as stack:
        stack.enter_context(lm.inference())
        stack.enter_context(_exact_products())
        seen = stack.enter_context(hooks.record(modules, "input", stop_after=last))
        advance = stack.enter_context(progress.task("statistics", sum(len(row) for row in rows)))
        order_of_rows = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for batch in forward.batches(order_of_rows, [len(row) for row in rows], 2048):
            aligned = forward.align([rows[i] for i in batch], [0] * len(batch), lm.device)
            with hooks.stoppable():
                forward.call(lm, aligned.ids, aligned.mask, aligned.positions)
            real = aligned.mask.bool()
            for path, states in seen.items():
                take(path, hooks.unflattened(states, len(batch))[real].float())
            advance(int(real.sum()))


class _exact_products(ExitStack):  # noqa: N801 - used as a context manager
    """TF32 off for the block: products of keys in it lose half of their digits."""

    def __enter__(self) -> "_exact_products":
        super().__enter__()
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        self.callback(setattr, torch.backends.cuda.matmul, "allow_tf32", before)
        return self


# ------------------------------------------------------------------------------------------------- the text


def _rows(
    lm: LM, source: str | Path | Iterable[str], wanted: int, seed: int, state: str | None
) -> tuple[list[list[int]], dict[str, Any]]:
    """Rows of ids to run, and where they came from."""
    if source == SELF:
        rows = _own_text(lm, wanted, seed, state)
        name = SELF
    else:
        name = str(source) if isinstance(source, str | Path) else "texts"
        rows = list(token_rows(lm, texts_of(source), wanted, length=_MAX_LENGTH))
        if not rows:
            raise RetconError(f"{name} holds no text for statistics; name a file with some, or use self")
    sha = storage.digest(rows)
    count = sum(len(row) for row in rows)
    return rows, {"source": Path(name).name, "tokens": count, "seed": seed if name == SELF else None, "ids_sha256": sha}


def texts_of(source: str | Path | Iterable[str]) -> Iterator[str]:
    """Texts of a file (paragraphs of plain text, the `text` of JSONL records), a `datasets` id, or an iterable.

    `<unk>` marks, as in WikiText, are dropped.

    Raises:
        RetconError: there is no such file, or a JSONL record has no `text`.
    """
    if not isinstance(source, str | Path):
        yield from source
        return
    path = Path(source).expanduser()
    if not path.is_file():
        yield from _hub_texts(str(source))
        return
    try:
        yield from _file_texts(path)
    except (EOFError, OSError, UnicodeDecodeError) as error:
        raise RetconError(f"{path} cannot be read as text ({error}); give UTF-8 text or JSONL, plain or .gz") from error


def _file_texts(path: Path) -> Iterator[str]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    jsonl = ".jsonl" in path.suffixes
    with opener(path, "rt", encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if jsonl and line.strip():
                try:
                    yield str(json.loads(line)["text"]).replace("<unk>", "")
                except (ValueError, KeyError, TypeError) as error:
                    raise RetconError(f'{path}: line {number}: write one JSON object a line with a "text"') from error
            elif line.strip():
                yield line.replace("<unk>", "").strip()


def _hub_texts(name: str) -> Iterator[str]:
    try:
        import datasets  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise RetconError(
            f"{name}: there is no such file; for a hub data set run `pip install retcon-lm[datasets]`"
        ) from None
    for record in datasets.load_dataset(name, split="train", streaming=True):
        if "text" not in record:
            raise RetconError(f'{name}: its records have no "text" column')
        yield str(record["text"])


def token_rows(lm: LM, texts: Iterable[str], wanted: int, *, length: int) -> Iterator[list[int]]:
    """Cut texts, joined by line breaks, into rows of `length` ids (each with BOS where the model has one)."""
    before, _ = tokens.special_ids(lm)
    body = length - len(before)
    left: list[int] = []
    count = 0
    for text in texts:
        left += tokens.encode(lm, text + "\n")[len(before) :]
        while len(left) >= body:
            row, left = left[:body], left[body:]
            row = [*before, *row][: wanted - count]
            yield row
            count += len(row)
            if count >= wanted:
                return
    if left:
        yield [*before, *left][: wanted - count]


def _own_text(lm: LM, wanted: int, seed: int, state: str | None) -> list[list[int]]:
    """Text that the model writes at temperature 1, each sample begun with an ordinary token drawn at random."""
    before, _ = tokens.special_ids(lm)
    special = set(lm.tokenizer.all_special_ids)
    embeddings: Any = lm.model.get_input_embeddings()
    size = min(len(lm.tokenizer), int(embeddings.weight.shape[0]))
    key = storage.digest(state, wanted, seed, before, sorted(special), size, "own-text-1")[:24]
    path = storage.cache_dir("text") / f"{key}.json"
    if state is not None and path.is_file():
        return [[int(i) for i in row] for row in json.loads(path.read_text(encoding="utf-8"))]
    ordinary = torch.tensor([i for i in range(size) if i not in special])
    generator = torch.Generator().manual_seed(seed)
    rows: list[list[int]] = []
    count, n = 0, -(-wanted // _SAMPLE_LENGTH)
    while count < wanted:
        first = ordinary[torch.randint(len(ordinary), (n,), generator=generator)].tolist()
        starts = [[*before, token] for token in first]
        new = _SAMPLE_LENGTH - len(starts[0])
        drawn = seed + len(rows)  # other text in each turn
        out = forward.sample(lm, starts, max_new_tokens=new, seed=drawn, label="writing text for statistics")
        for start, ids in zip(starts, out, strict=True):
            row = (start + ids)[: wanted - count]
            if row:
                rows.append(row)
            count += len(row)
        n = 1 + math.ceil((wanted - count) * len(rows) / count)  # the model ends some texts early
    if state is not None:
        storage.write_json(path, rows)
    return rows


# ------------------------------------------------------------------------------------------------ the cache


class _Kept(Mapping[str, Moments]):
    """Moments in files, each read anew when it is asked for: those of all layers at once would fill memory."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    def __getitem__(self, path: str) -> Moments:
        found = _read(self._files[path])
        if found is None:
            raise RetconError(f"{self._files[path]} has gone from the cache or is damaged; run the command again")
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _write(path: Path, value: Moments) -> None:
    with storage.new_file(path) as temporary:
        header = {"provenance": json.dumps(value.provenance), "count": str(value.count)}
        save_file({"second": value.second}, temporary, metadata=header)


def _read(path: Path) -> Moments | None:
    """A cached result, or None where there is none that can be read."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            return Moments(file.get_tensor("second"), int(header["count"]), json.loads(header["provenance"]))
    except (OSError, ValueError, KeyError, SafetensorError):
        return None
