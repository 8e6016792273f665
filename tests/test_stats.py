"""Second moments are those of all tokens at once, in any order and padding; cached by content, read from any text."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from retcon import forward, hooks, patch, stats, storage, tokens
from retcon.errors import RetconError
from retcon.lm import LM
from retcon.patch import LowRank
from retcon.testing import tiny_model, tiny_tokenizer

Tiny = Callable[..., LM]
Traces = Callable[[nn.Module], tuple[object, ...]]

TEXTS = [
    "The tower is located in the city of Paris, and the people of the city say that it was made by an engineer.",
    "He plays chess.",
    "",
    "Niccolò Paganini plays the violin; São Tomé and Málaga are by the sea. " * 12,
    "My favourite city is in the south.",
]

pytestmark = pytest.mark.usefixtures("cache_folder")


def new(family: str = "llama", seed: int = 0, kind: str = "fast") -> LM:
    return LM.wrap(tiny_model(family, seed=seed), tiny_tokenizer(kind))


@torch.no_grad()
def at_once(lm: LM, path: str, rows: list[list[int]]) -> tuple[Tensor, int]:
    """The mean over tokens of k k^T, one unpadded row at a time, in fp64."""
    model: Any = lm.model
    keys = []
    for row in rows:
        with hooks.record({path: lm.module(path)}, "input") as seen:
            model(input_ids=torch.tensor([row]), use_cache=False)
        keys.append(hooks.unflattened(seen[path], 1)[0].double())
    every = torch.cat(keys)
    return every.T @ every / len(every), len(every)


def near(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert found.dtype == torch.float64
    assert (found - wanted).norm() <= tolerance * wanted.norm()


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("the model was run again")


# -------------------------------------------------------------------------------------------- the moments


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gptj", "opt", "falcon", "bloom", "gemma2"])
def test_moments_are_those_of_all_tokens_at_once(tiny_lm: Tiny, family: str) -> None:
    """Of several layers in one pass, whatever the batches and their padding."""
    lm = tiny_lm(family)
    paths = [lm.arch.mlp_out[2], lm.arch.mlp_out[0]]
    found = stats.moments(lm, paths, TEXTS)
    rows = list(stats.token_rows(lm, TEXTS, 10**6, length=256))
    assert len(rows) > 1
    assert list(found) == paths
    for path in paths:
        wanted, count = at_once(lm, path, rows)
        near(found[path].second, wanted, 1e-6)
        assert torch.equal(found[path].second, found[path].second.T)
        assert found[path].count == count == sum(map(len, rows))


def rows_of_sizes(count: int = 40) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 90, (count,), generator=generator).tolist()
    return [torch.randint(3, 500, (size,), generator=generator).tolist() for size in sizes]


def test_rows_in_any_order_and_any_batches_give_the_same(tiny_lm: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, rows = tiny_lm("llama"), rows_of_sizes()
    path = lm.arch.mlp_out[1]
    wanted = stats._collect(lm, [path], rows)[path]
    near(stats._collect(lm, [path], rows[::-1])[path], wanted, 1e-6)
    whole = forward.batches
    monkeypatch.setattr(forward, "batches", lambda order, lengths, _tokens: whole(order, lengths, 100))
    near(stats._collect(lm, [path], rows)[path], wanted, 1e-6)
    monkeypatch.setattr(forward, "batches", lambda _order, lengths, _tokens: [list(range(len(lengths)))])
    near(stats._collect(lm, [path], rows)[path], wanted, 1e-6)  # one batch, padded to the longest


def test_sums_are_kept_in_fp64(tiny_lm: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the keys, streaming costs nothing: row by row or at once differ by fp64's rounding of fp32 products."""
    lm, rows = tiny_lm("llama"), rows_of_sizes(200)
    path = lm.arch.mlp_out[1]
    monkeypatch.setattr(forward, "batches", lambda order, *_: [[i] for i in order])
    found = stats._collect(lm, [path], rows)[path]
    total, count = torch.zeros(112, 112, dtype=torch.float64), 0
    for row in sorted(rows, key=len):
        with torch.no_grad(), hooks.record({path: lm.module(path)}, "input") as seen:
            lm.model(input_ids=torch.tensor([row]), use_cache=False)
        total, count = total + (seen[path][0].T @ seen[path][0]).double(), count + len(row)
    near(found, total / count, 1e-6)
    near(found, (found + found.T) / 2, 1e-12)


def test_too_few_tokens_leave_the_moment_without_full_rank(tiny_lm: Tiny) -> None:
    lm = tiny_lm("llama")
    path = lm.arch.mlp_out[1]
    found = stats.moments(lm, [path], TEXTS, tokens_wanted=20)[path]
    assert found.count == 20
    assert int(torch.linalg.matrix_rank(found.second, rtol=1e-5)) == 20


def test_tokens_wanted_by_default_are_sixteen_widths(tiny_lm: Tiny) -> None:
    lm = tiny_lm("llama")
    path = lm.arch.mlp_out[0]
    assert stats.moments(lm, [path], TEXTS * 40)[path].count == 16 * lm.arch.d_mlp


def test_the_forward_ends_with_the_last_projection_asked_for(tiny_lm: Tiny) -> None:
    lm, ran = tiny_lm("gpt2"), []
    with lm.block(2).register_forward_pre_hook(lambda *_: ran.append(2)):
        stats.moments(lm, [lm.arch.mlp_out[0], lm.arch.mlp_out[1]], TEXTS)
        assert not ran


def test_other_projections_have_moments_too(tiny_lm: Tiny) -> None:
    lm = tiny_lm("llama")
    path = lm.arch.attn_out[1]
    found = stats.moments(lm, [path], TEXTS)[path]
    near(found.second, at_once(lm, path, list(stats.token_rows(lm, TEXTS, 10**6, length=256)))[0], 1e-6)


def test_statistics_leave_no_trace(traces: Traces) -> None:
    lm = new()
    lm.model.train()
    before = traces(lm.model)
    stats.moments(lm, lm.arch.mlp_out[:2], TEXTS)
    stats.moments(lm, lm.arch.mlp_out[:2], tokens_wanted=100)
    assert traces(lm.model) == before


# ----------------------------------------------------------------------------------------------- the cache


def test_what_is_cached_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another object of the same model finds it too; only layers that are not there are computed."""
    lm = new()
    first = stats.moments(lm, lm.arch.mlp_out[:2], TEXTS)
    asked: list[list[str]] = []
    collect = stats._collect

    def listed(it: LM, paths: list[str], rows: list[list[int]]) -> dict[str, Tensor]:
        asked.append(paths)
        return collect(it, paths, rows)

    monkeypatch.setattr(stats, "_collect", listed)
    again = stats.moments(new(), lm.arch.mlp_out[:3], TEXTS)
    assert asked == [[lm.arch.mlp_out[2]]]
    for path, wanted in first.items():
        assert torch.equal(again[path].second, wanted.second)
        assert (again[path].count, again[path].provenance) == (wanted.count, wanted.provenance)


def test_without_the_cache_nothing_is_read_or_written(cache_folder: Path) -> None:
    lm = new()
    for source in (TEXTS, stats.SELF):
        stats.moments(lm, lm.arch.mlp_out[:1], source, tokens_wanted=50, cached=False)
    assert not list(cache_folder.rglob("*.safetensors"))
    assert not list(cache_folder.rglob("*.json"))


@torch.no_grad()
def changed_weight(lm: LM) -> None:
    lm.projection(0).weight.add_(0.01)  # type: ignore[operator]


@pytest.mark.parametrize("what", ["weight", "other model", "text", "length", "tokenizer", "hooked patch"])
def test_what_decides_a_moment_is_in_its_key(what: str) -> None:
    lm = new()
    path = lm.arch.mlp_out[1]
    first = stats.moments(lm, [path], TEXTS, tokens_wanted=150)[path]
    texts, wanted = TEXTS, 150
    if what == "weight":
        changed_weight(lm)
    elif what == "other model":
        lm = new(seed=1)
    elif what == "text":
        texts = ["A" + TEXTS[0][1:], *TEXTS[1:]]
    elif what == "length":
        wanted = 149
    elif what == "tokenizer":
        lm = new(kind="bos")
    if what != "hooked patch":
        assert not torch.equal(stats.moments(lm, [path], texts, tokens_wanted=wanted)[path].second, first.second)
        return
    width, d = lm.arch.d_mlp, lm.arch.d_model
    step = patch.Step(method="memit", config={}, edits=(), seed=0)
    entries: dict[str, patch.Entry] = {lm.arch.mlp_out[0]: LowRank(torch.ones(d, 1), torch.ones(width, 1))}
    made = patch.Patch(entries, patch.describe_base(lm.model, entries, name="tiny"), (step,))
    with made.on(lm.model):
        other = stats.moments(lm, [path], TEXTS, tokens_wanted=150)[path]
    assert not torch.allclose(other.second, first.second, rtol=1e-2)
    assert torch.equal(stats.moments(lm, [path], TEXTS, tokens_wanted=150)[path].second, first.second)


@pytest.mark.parametrize("damage", ["truncated", "no header", "other tensor"])
def test_a_damaged_cache_is_made_anew(damage: str, cache_folder: Path) -> None:
    lm = new()
    path = lm.arch.mlp_out[1]
    first = stats.moments(lm, [path], TEXTS)[path].second.clone()  # read from the file that is about to be damaged
    (file,) = (cache_folder / "moments").iterdir()
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        save_file({"second" if damage == "no header" else "first": torch.eye(3)}, file)
    assert torch.equal(stats.moments(lm, [path], TEXTS)[path].second, first)


def test_moments_that_are_gone_when_they_are_asked_for_are_named(cache_folder: Path) -> None:
    lm = new()
    path = lm.arch.mlp_out[1]
    found = stats.moments(lm, [path], TEXTS)
    (file,) = (cache_folder / "moments").iterdir()
    file.unlink()
    with pytest.raises(RetconError, match=r"gone from the cache.*run the command again"):
        _ = found[path]


def test_an_interrupted_write_leaves_nothing(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stats, "save_file", cut)
    lm = new()
    with pytest.raises(KeyboardInterrupt):
        stats.moments(lm, lm.arch.mlp_out[:1], TEXTS)
    assert not list((cache_folder / "moments").iterdir())


# ------------------------------------------------------------------------------------------------ own text


def test_own_text_is_seeded_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = new()
    path = lm.arch.mlp_out[1]
    first = stats.moments(lm, [path], tokens_wanted=300)[path]
    assert first.count == 300
    assert first.provenance | {"ids_sha256": ""} == {
        "source": "self", "tokens": first.count, "seed": 0, "ids_sha256": ""
    }  # fmt: skip
    other = stats.moments(lm, [path], tokens_wanted=300, seed=1)[path]
    assert other.provenance["seed"] == 1
    assert other.provenance["ids_sha256"] != first.provenance["ids_sha256"]
    fresh = stats.moments(new(), [path], tokens_wanted=300, cached=False)[path]
    assert torch.equal(fresh.second, first.second)
    monkeypatch.setattr(forward, "sample", refuse)
    monkeypatch.setattr(stats, "_collect", refuse)
    again = stats.moments(new(), [path], tokens_wanted=300)[path]
    assert torch.equal(again.second, first.second)


def test_own_text_of_one_model_is_not_anothers() -> None:
    found = {
        stats.moments(lm, lm.arch.mlp_out[:1], tokens_wanted=200)[lm.arch.mlp_out[0]].provenance["ids_sha256"]
        for lm in (new(), new(seed=1), new(kind="bos"))
    }
    assert len(found) == 3


@pytest.mark.parametrize("kind", ["fast", "bos"])
def test_own_text_begins_with_ordinary_tokens(kind: str) -> None:
    lm = new(kind=kind)
    rows = stats._own_text(lm, 700, 0, None)
    before, _ = tokens.special_ids(lm)
    special = set(lm.tokenizer.all_special_ids)
    assert len(rows) >= 6
    assert sum(map(len, rows)) == 700
    assert all(row[: len(before)] == before and row[len(before)] not in special for row in rows)
    assert len({row[len(before)] for row in rows}) > 1


@pytest.mark.parametrize("length", [1, 3, 40])
def test_own_text_goes_on_until_there_are_the_tokens_wanted(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """Of a model that ends its texts early; in few turns, each of other text."""
    seeds: list[int] = []

    def short(_lm: LM, starts: list[list[int]], *, seed: int, **_: Any) -> list[list[int]]:
        seeds.append(seed)
        return [[7] * (length - 1) for _ in starts]

    monkeypatch.setattr(forward, "sample", short)
    rows = stats._own_text(new(), 500, 0, None)
    assert sum(map(len, rows)) == 500
    assert {len(row) for row in rows[:-1]} == {length}
    assert len(seeds) <= 3
    assert len(set(seeds)) == len(seeds)


# ------------------------------------------------------------------------------------------- keys by themselves


def test_keys_are_the_inputs_at_all_tokens(tiny_lm: Tiny) -> None:
    lm, rows = tiny_lm("gpt2"), rows_of_sizes(5)
    paths = [lm.arch.mlp_out[2], lm.arch.mlp_out[0]]
    found = stats.keys(lm, paths, rows)
    total = sum(map(len, rows))
    for path in paths:
        assert found[path].shape == (lm.arch.d_mlp, total)
        near(found[path] @ found[path].T / total, at_once(lm, path, rows)[0], 1e-6)


def read(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The rows that keys are read of, from now on."""
    seen: list[list[int]] = []
    whole = stats.keys

    def listed(lm: LM, paths: list[str], rows: list[list[int]]) -> dict[str, Tensor]:
        seen.extend(rows)
        return whole(lm, paths, rows)

    monkeypatch.setattr(stats, "keys", listed)
    return seen


@pytest.mark.parametrize("wanted", [300, 512, None])
def test_what_is_held_out_is_the_text_that_follows(monkeypatch: pytest.MonkeyPatch, wanted: int | None) -> None:
    lm, texts = new(kind="bos"), TEXTS * 40
    path = lm.arch.mlp_out[1]
    seen = read(monkeypatch)
    found = stats.held_out(lm, [path], texts, tokens_wanted=wanted)[path]
    used = list(stats.token_rows(lm, texts, wanted or 16 * lm.arch.d_mlp, length=256))
    every = list(stats.token_rows(lm, texts, 10**6, length=256))
    assert seen[0] == every[len(used)]  # a row that was cut short is not gone on with
    assert 700 < found.shape[1] == sum(map(len, seen)) <= 1024


def test_where_the_text_has_ended_the_models_own_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text that the model's own statistics are not made of either."""
    lm = new()
    path = lm.arch.mlp_out[1]
    seen = read(monkeypatch)
    stats.held_out(lm, [path], TEXTS)
    assert seen == stats._own_text(lm, 1024, 1, None)
    del seen[:]
    found = stats.held_out(lm, [path])[path]
    assert found.shape == (lm.arch.d_mlp, 1024)
    assert not {tuple(row) for row in seen} & {tuple(row) for row in stats._own_text(lm, 128, 0, None)}


# ------------------------------------------------------------------------------------------------- the text


def test_plain_text_is_read_line_by_line_without_blank_lines_and_unknown_marks(tmp_path: Path) -> None:
    file = tmp_path / "wiki.txt"
    file.write_text(" = Robert = \n\n the <unk> of it \n<unk>\nMálaga\n", encoding="utf-8")
    assert [text for text in stats.texts_of(file) if text] == ["= Robert =", "the  of it", "Málaga"]
    assert list(stats.texts_of(str(file))) == list(stats.texts_of(file))


def test_jsonl_is_read_by_its_text(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    records = [{"text": "one\ntwo <unk>", "id": 1}, {"text": "São Tomé"}]
    file.write_text("\n\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    assert list(stats.texts_of(file)) == ["one\ntwo ", "São Tomé"]


@pytest.mark.parametrize("name", ["texts.jsonl.gz", "texts.txt.gz"])
def test_packed_files_are_unpacked(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    line = json.dumps({"text": "Málaga"}) if "jsonl" in name else "Málaga"
    with gzip.open(file, "wt", encoding="utf-8") as stream:
        stream.write(line + "\n")
    assert list(stats.texts_of(file)) == ["Málaga"]


def test_a_file_and_its_texts_have_the_same_moments(tmp_path: Path) -> None:
    lm = new()
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(text.strip() for text in TEXTS), encoding="utf-8")
    path = lm.arch.mlp_out[0]
    found = stats.moments(lm, [path], file)[path]
    wanted = stats.moments(lm, [path], [text.strip() for text in TEXTS if text])[path]
    assert torch.equal(found.second, wanted.second)
    assert found.provenance["source"] in ("texts.txt", "texts")  # the name it was first computed under


@pytest.mark.parametrize("line", ["no json", '{"title": "no text"}', "[1]", '"text"', "5"])
def test_a_bad_record_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"text": "good"}\n\n' + line + "\n", encoding="utf-8")
    with pytest.raises(RetconError, match=r"bad.jsonl: line 3: write one JSON object a line"):
        list(stats.texts_of(file))


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_a_file_without_text_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "empty.txt"
    file.write_text(content, encoding="utf-8")
    lm = new()
    with pytest.raises(
        RetconError, match=r"empty.txt holds no text for statistics; name a file with some, or use self"
    ):
        stats.moments(lm, lm.arch.mlp_out[:1], file)
    with pytest.raises(RetconError, match="texts holds no text"):
        stats.moments(lm, lm.arch.mlp_out[:1], [])


@pytest.mark.parametrize(("name", "content"), [("a.txt", b"caf\xe9 au lait"), ("a.txt.gz", b"no gzip"),
                                               ("b.txt.gz", gzip.compress(b"text " * 99, mtime=0)[:-9])])  # fmt: skip
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RetconError, match=f"{name} cannot be read as text"):
        list(stats.texts_of(tmp_path / name))


def test_a_missing_file_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RetconError, match=r"nowhere.txt: there is no such file; for a hub data set run"):
        list(stats.texts_of("nowhere.txt"))


def test_a_data_set_of_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Datasets:
        @staticmethod
        def load_dataset(name: str, *, split: str, streaming: bool) -> list[dict[str, str]]:
            assert (name, split, streaming) == ("owner/name", "train", True)
            return [{"text": "one"}, {"text": "two"}, {"title": "three"}]

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    texts = stats.texts_of("owner/name")
    assert [next(texts), next(texts)] == ["one", "two"]
    with pytest.raises(RetconError, match='owner/name: its records have no "text" column'):
        next(texts)


# ------------------------------------------------------------------------------------------------- the rows


@pytest.mark.parametrize("kind", ["fast", "bos", "sentencepiece", "slow"])
def test_rows_hold_the_text_in_order(kind: str) -> None:
    lm = new(kind=kind)
    before, _ = tokens.special_ids(lm)
    rows = list(stats.token_rows(lm, TEXTS, 10**6, length=32))
    assert all(len(row) == 32 for row in rows[:-1])
    assert all(row[: len(before)] == before for row in rows)
    joined = [i for row in rows for i in row[len(before) :]]
    assert joined == [i for text in TEXTS for i in tokens.encode(lm, text + "\n")[len(before) :]]


@pytest.mark.parametrize("wanted", [1, 31, 32, 33, 64, 100])
def test_rows_end_with_the_tokens_wanted(wanted: int) -> None:
    rows = list(stats.token_rows(new(kind="bos"), TEXTS * 3, wanted, length=32))
    assert sum(map(len, rows)) == wanted
    assert all(rows)


def test_no_more_text_is_taken_than_is_needed() -> None:
    def endless() -> Any:
        for _ in range(10):
            yield TEXTS[0]
        raise AssertionError("an eleventh text was asked for")

    rows = list(stats.token_rows(new(), endless(), 64, length=32))
    assert sum(map(len, rows)) == 64


def test_the_provenance_names_the_ids() -> None:
    lm = new()
    path = lm.arch.mlp_out[0]
    found = stats.moments(lm, [path], TEXTS, tokens_wanted=90)[path].provenance
    rows = list(stats.token_rows(lm, TEXTS, 90, length=256))
    assert found == {"source": "texts", "tokens": 90, "seed": None, "ids_sha256": storage.digest(rows)}
