"""Files: what is read is what was written, or it is refused in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from retcon.errors import PatchError
from retcon.patch import Patch, files
from retcon.storage import digest, file_sha256
from retcon.testing import tiny_model

Make = Callable[..., Patch]


@pytest.fixture
def saved(llama: PreTrainedModel, make: Make, tmp_path: Path) -> Path:
    return make(llama, 1, state={"cat.keys": torch.ones(2, 3)}, info={"seconds": {"solve": 0.5}}).save(tmp_path / "p")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any], *, seal: bool = True) -> None:
    """Change the manifest; with `seal`, as somebody would who also mends its own hash."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("sha256")
    old = digest(manifest)
    change(manifest)
    manifest["sha256"] = digest(manifest) if seal else old
    (folder / "manifest.json").write_text(json.dumps(manifest))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(PatchError, match=match) as caught:
        Patch.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dense", [False, True])
def test_loading_gives_back_what_was_saved(
    model: PreTrainedModel, make: Make, logits: Callable[[nn.Module], Tensor], tmp_path: Path, dense: bool
) -> None:
    first = make(
        model, 1, dense=dense, state={"keys": torch.ones(2, 3)}, info={"seconds": {"solve": 0.5}, "bad": float("nan")}
    )
    patch = first + make(model, 2)
    again = Patch.load(patch.save(tmp_path / "p"))
    assert again.id == patch.id
    assert again.history == patch.history
    assert again.base == patch.base
    assert again.contains == patch.contains
    assert again.info == {"seconds": {"solve": 0.5}, "bad": None}
    assert torch.equal(again.state["keys"], patch.state["keys"])
    for path, entry in patch.entries.items():
        for name, tensor in entry.tensors().items():
            assert torch.equal(again.entries[path].tensors()[name], tensor)
    with patch.on(model):
        before = logits(model)
    with again.on(model):
        assert torch.equal(logits(model), before)


def test_the_manifest_can_be_read_by_a_person(saved: Path) -> None:
    assert sorted(file.name for file in saved.iterdir()) == ["manifest.json", "patch.safetensors"]
    text = (saved / "manifest.json").read_text()
    manifest = json.loads(text)
    assert list(manifest)[:4] == ["schema", "summary", "id", "parent"]
    assert manifest["summary"] == "1 edit by memit on tiny, 3 modules, rank 3"
    assert manifest["history"][0]["edits"][0]["subject"] == "Player 1"
    assert manifest["history"][0]["config"] == {"layers": [1, 2]}
    assert text.count("\n") > 50


def test_saving_again_replaces_the_patch_and_keeps_other_files(llama: PreTrainedModel, make: Make, saved: Path) -> None:
    (saved / "report.html").write_text("fine")
    patch = make(llama, 2)
    patch.save(saved)
    assert Patch.load(saved).id == patch.id
    assert (saved / "report.html").read_text() == "fine"


def test_saving_into_a_folder_of_something_else_is_refused(llama: PreTrainedModel, make: Make, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(PatchError, match="holds other files, which would be lost; name a new folder"):
        make(llama).save(tmp_path)
    with pytest.raises(PatchError, match="holds other files"):
        make(llama).save(tmp_path / "thesis.txt")
    (tmp_path / "empty").mkdir()
    make(llama).save(tmp_path / "empty")


@pytest.mark.parametrize("fails_at", ["save_file", "write_json"])
def test_a_killed_save_leaves_the_old_patch_whole(
    llama: PreTrainedModel, make: Make, saved: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    old, write = Patch.load(saved).id, getattr(files, fails_at)

    def killed(*arguments: Any, **options: Any) -> None:
        write(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(files, fails_at, killed)
    for target in (saved, saved.parent / "new"):
        with pytest.raises(KeyboardInterrupt):
            make(llama, 2).save(target)
    assert Patch.load(saved).id == old
    assert [file.name for file in saved.parent.iterdir()] == ["p"]


def test_no_patch(tmp_path: Path) -> None:
    refused(tmp_path, r"holds no patch: there is no manifest\.json")
    refused(tmp_path / "nowhere", r"holds no patch: there is no manifest\.json")


def test_truncated_tensors(saved: Path) -> None:
    data = (saved / "patch.safetensors").read_bytes()
    (saved / "patch.safetensors").write_bytes(data[:-100])
    refused(saved, r"patch\.safetensors is truncated \([\d,]+ of [\d,]+ bytes\)")


def test_missing_tensors(saved: Path) -> None:
    (saved / "patch.safetensors").unlink()
    refused(saved, r"patch\.safetensors is missing")


@pytest.mark.parametrize("longer", [False, True])
def test_altered_tensors(saved: Path, longer: bool) -> None:
    data = bytearray((saved / "patch.safetensors").read_bytes())
    data[-1] ^= 1
    (saved / "patch.safetensors").write_bytes(data + b"x" * longer)
    refused(saved, r"patch\.safetensors has been altered")


def test_truncated_manifest(saved: Path) -> None:
    text = (saved / "manifest.json").read_text()
    (saved / "manifest.json").write_text(text[: len(text) // 2])
    refused(saved, r"manifest\.json is truncated or no JSON")


def test_altered_manifest(saved: Path) -> None:
    rewrite(saved, lambda m: m["history"][0]["edits"][0].update(target_new="poker"), seal=False)
    refused(saved, r"manifest\.json has been altered")
    rewrite(saved, lambda m: None)
    refused(saved, "but says")


def test_tensors_that_do_not_belong_to_the_manifest(
    saved: Path, llama: PreTrainedModel, make: Make, tmp_path: Path
) -> None:
    other = make(llama, 2, rank=3).save(tmp_path / "other")
    told = json.loads((other / "manifest.json").read_text())["tensors"]
    (saved / "patch.safetensors").write_bytes((other / "patch.safetensors").read_bytes())
    refused(saved, "has been altered|is truncated")
    rewrite(saved, lambda m: m.update(tensors=told))
    refused(saved, "does not hold the tensors")
    rewrite(saved, lambda m: m.update(state=[]))
    refused(saved, "but says")
    rewrite(saved, lambda m: m["entries"].update(extra={"kind": "dense", "shape": [1, 1], "rank": 1}))
    refused(saved, "lacks the tensor")


@pytest.mark.parametrize("name", ["../p/patch.safetensors", "/etc/passwd", "sub/patch.safetensors", "..", ""])
@pytest.mark.parametrize("seal", [False, True])
def test_a_path_outside_the_folder(saved: Path, name: str, seal: bool) -> None:
    rewrite(saved, lambda m: m["tensors"].update(file=name), seal=seal)
    refused(saved, "a file outside the patch's folder|never from a pickle")


def test_a_pickle(saved: Path) -> None:
    torch.save({"x": torch.ones(1)}, saved / "patch.pt")
    rewrite(saved, lambda m: m["tensors"].update(file="patch.pt"))
    refused(saved, "never from a pickle")


def test_a_pickle_under_the_right_name(saved: Path) -> None:
    torch.save({"x": torch.ones(1)}, saved / "patch.safetensors")
    size, sha = (saved / "patch.safetensors").stat().st_size, file_sha256(saved / "patch.safetensors")
    rewrite(saved, lambda m: m["tensors"].update(bytes=size, sha256=sha))
    refused(saved, "is no safetensors file")


@pytest.mark.parametrize("schema", [2, None, "1"])
def test_an_unknown_schema(saved: Path, schema: Any) -> None:
    rewrite(saved, lambda m: m.update(schema=schema))
    refused(saved, "and this retcon reads 1; update retcon")


def test_an_unknown_kind_of_entry_and_an_unknown_field(saved: Path) -> None:
    rewrite(saved, lambda m: next(iter(m["entries"].values())).update(kind="gated"))
    refused(saved, "an entry of the unknown kind 'gated'; update retcon")
    rewrite(saved, lambda m: m.update(extra=1))
    refused(saved, "extra: Extra inputs are not permitted")


def test_a_manifest_that_is_no_object(saved: Path) -> None:
    (saved / "manifest.json").write_text("[1]")
    refused(saved, "has schema None")


def test_a_foreign_base(saved: Path) -> None:
    with pytest.raises(PatchError, match="was made for tiny; .* is another weight in"):
        Patch.load(saved).attach(tiny_model("llama", layers=3, seed=3))
