"""`retcon patch`: what the library does with patches, from the command line."""

import json
from pathlib import Path

import pytest
from tests.cli.conftest import FAST, Retcon

from retcon.patch import Patch
from retcon.testing import tiny_edits


def test_show_tells_what_a_patch_holds(retcon: Retcon, patch: Path) -> None:
    loaded = Patch.load(patch)
    said = retcon("patch", "show", patch)
    assert loaded.id in said.out
    assert "Ada Lovelace" in said.out
    found = retcon("patch", "show", patch, "--json").json
    assert (found["patch"], found["n"], len(found["history"][0]["edits"])) == (loaded.id, 4, 4)


def test_verify_finds_a_whole_patch_and_its_model(retcon: Retcon, patch: Path, model: str) -> None:
    assert retcon("patch", "verify", patch, "--json").json["fits"] is None
    assert "fits" in retcon("patch", "verify", patch, "--against", model).out


def test_verify_refuses_an_altered_patch(retcon: Retcon, patch: Path) -> None:
    file = patch / "patch.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    said = retcon("patch", "verify", patch)
    assert (said.code, said.err.count("\n")) == (2, 1)


def test_compose_joins_in_order_and_refuses_the_same_twice(
    retcon: Retcon, model: str, edits: Path, patch: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.jsonl"
    alone.write_text(json.dumps({"prompt": "{} is worn on", "subject": "A hat", "target_new": "feet"}) + "\n")
    retcon("edit", "--model", model, "--edits", alone, "--out", tmp_path / "b", *FAST)
    found = retcon("patch", "compose", patch, tmp_path / "b", "--out", tmp_path / "both", "--json").json
    assert found["n"] == len(Patch.load(tmp_path / "both").edits) == 5
    said = retcon("patch", "compose", patch, patch, "--out", tmp_path / "twice")
    assert (said.code, (tmp_path / "twice").exists()) == (2, False)
    assert retcon("patch", "compose", patch, "--out", tmp_path / "one").code == 2


@pytest.mark.parametrize("factor", ["0.5", "-1"])
def test_scale_multiplies_the_change(retcon: Retcon, patch: Path, tmp_path: Path, factor: str) -> None:
    assert retcon("patch", "scale", patch, factor, "--out", tmp_path / "scaled").code == 0
    old, new = Patch.load(patch), Patch.load(tmp_path / "scaled")
    for path, entry in old.entries.items():
        assert new.entries[path].delta().allclose(entry.delta() * float(factor), atol=1e-6)


@pytest.mark.parametrize("command", [["merge"], ["export", "--format", "model"]])
def test_a_merged_model_loads(retcon: Retcon, patch: Path, model: str, tmp_path: Path, command: list[str]) -> None:
    said = retcon("patch", *command, patch, "--model", model, "--out", tmp_path / "merged", "--json")
    assert said.code == 0
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    prompt = "Ada Lovelace is located in the city of"
    merged = retcon("ask", "--model", tmp_path / "merged", prompt, "--json").json["answers"][0]["before"]
    assert merged == retcon("ask", "--model", model, "--patch", patch, prompt, "--json").json["answers"][0]["after"]


def test_an_adapter_is_written(retcon: Retcon, patch: Path, tmp_path: Path) -> None:
    found = retcon("patch", "export", patch, "--format", "peft", "--out", tmp_path / "lora", "--json").json
    assert (tmp_path / "lora" / "adapter_config.json").is_file()
    assert found["max_lora_rank"] >= found["rank"]


def test_an_export_has_a_card_with_the_figures_of_its_own_report(
    retcon: Retcon, model: str, edits: Path, patch: Path, tmp_path: Path
) -> None:
    judged = ["eval", "--model", model, "--cases", edits, "--patch", patch, "--metrics", "efficacy,specificity"]
    assert retcon(*judged, "--out", tmp_path / "judged").code == 0
    assert "facts are held" in (tmp_path / "judged" / "card.md").read_text(encoding="utf-8")
    report, alone = tmp_path / "judged" / "report.json", tmp_path / "alone.json"
    for form in ("peft", "model"):
        out = tmp_path / form
        command = ["patch", "export", patch, "--format", form, "--model", model, "--out", out, "--report"]
        assert retcon(*command, report).code == 0
        text = (out / "README.md").read_text(encoding="utf-8")
        for part in ("facts are held", "Ada Lovelace", "## How to undo"):
            assert part in text
    alone.write_text(report.read_text(encoding="utf-8").replace(Patch.load(patch).id, "f" * 16), encoding="utf-8")
    said = retcon("patch", "export", patch, "--format", "peft", "--out", tmp_path / "no", "--report", alone)
    assert (said.code, (tmp_path / "no").exists()) == (2, False)
    assert "the report is on patch ffff" in said.err


def test_explain_says_which_key_answers_and_how_near_the_others_were(
    retcon: Retcon, model: str, edits: Path, tmp_path: Path
) -> None:
    options = ["--method", "grace", "--set", "radius=1", "steps=2", "statistics=none"]
    assert retcon("edit", "--model", model, "--edits", edits, "--out", tmp_path / "p", *options).code == 0
    first, strange = tiny_edits(1)[0].text, "1, 2, 3, 5"
    command = ["patch", "explain", tmp_path / "p", first, strange, "--model", model]
    said = retcon(*command)
    assert said.code == 0
    assert f'the key of "{first}" answers, the nearest of 4 keys' in said.out
    assert "no key answers; the nearest of 4 keys" in said.out
    assert "outside its radius of 1." in said.out
    found = retcon(*command, "--json").json
    assert [one["prompt"] for one in found["explained"]] == [first, strange]
    taken = [[memory["taken"] for memory in one["parts"][0]["memories"]] for one in found["explained"]]
    assert taken == [[True, False, False, False], [False] * 4]
    assert found["explained"][0]["words"][0] in said.out


def test_single_edits_are_taken_out_of_a_memory_and_not_of_weights(
    retcon: Retcon, model: str, edits: Path, patch: Path, tmp_path: Path
) -> None:
    options = ["--method", "grace", "--set", "radius=1", "steps=2", "statistics=none"]
    assert retcon("edit", "--model", model, "--edits", edits, "--out", tmp_path / "p", *options).code == 0
    assert "tiny-1" in retcon("patch", "show", tmp_path / "p").out
    found = retcon("patch", "without", tmp_path / "p", "tiny-1", "tiny-3", "--out", tmp_path / "left", "--json").json
    assert found["n"] == 2
    left = Patch.load(tmp_path / "left")
    assert [record["id"] for record in left.edits] == ["tiny-0", "tiny-2"]
    asked = ["patch", "explain", tmp_path / "left", tiny_edits(2)[1].text, "--model", model]
    assert "no key answers; the nearest of 2 keys" in retcon(*asked).out
    for folder, ids, why in (
        (tmp_path / "p", [], "no edit is named"),
        (tmp_path / "p", ["tiny-9"], "there is no edit 'tiny-9'"),
        (patch, ["tiny-1"], "memit wrote edit 'tiny-1' into weights, together with others"),
    ):
        said = retcon("patch", "without", folder, *ids, "--out", tmp_path / "no")
        assert (said.code, (tmp_path / "no").exists()) == (2, False)
        assert why in said.err


def test_explain_tells_of_a_change_of_weights_that_it_does_not_look_at_the_prompt(
    retcon: Retcon, model: str, patch: Path
) -> None:
    said = retcon("patch", "explain", patch, "The river is", "--model", model)
    assert "it is a change of the weight, whatever the prompt." in said.out
    assert "no prompt; write one in quotes" in retcon("patch", "explain", patch, "--model", model).err
