"""`retcon locate`: JSON, a screen and figures; bad input is one sentence."""

import json
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Retcon

from retcon.lm import LM
from retcon.locate import Tracing, attribute, trace
from retcon.requests import load_edits

PROMPT = ["--prompt", "Big Ben is located in the city of", "--subject", "Big Ben"]


def test_a_file_of_facts_is_traced(retcon: Retcon, model: str, edits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = retcon("locate", "--model", model, "--edits", edits, "--limit", 2, "--out", out, "--json")
    assert said.code == 0
    assert (said.json["how"], said.json["kind"], said.json["n"], said.json["noises"]) == ("tracing", "hidden", 2, 3)
    found = trace(LM.load(model), load_edits(edits, limit=2).items, Tracing())
    for fact, wanted in zip(said.json["facts"], found, strict=True):
        assert (fact["tokens"], fact["subject_tokens"]) == (list(wanted.tokens), list(wanted.subject))
        assert fact["restored"][2] == pytest.approx(wanted.restored[2].tolist(), rel=1e-5)
        assert (fact["high"], fact["low"]) == pytest.approx((wanted.high, wanted.low), rel=1e-5)
        best = fact["strongest"]
        assert fact["restored"][best["layer"]][best["token"]] == best["probability"] == max(map(max, fact["restored"]))
    names = sorted(path.name for path in out.iterdir())
    first, second = "000-ada-lovelace-hidden", "001-the-blue-tower-hidden"
    assert names == [f"{first}.png", f"{first}.svg", f"{second}.png", f"{second}.svg", "locate.json"]
    figures = [f"{stem}.{kind}" for stem in (first, second) for kind in ("svg", "png")]
    assert said.json["written"] == [str(out / name) for name in ["locate.json", *figures]]
    kept = json.loads((out / "locate.json").read_text())
    assert kept == {key: value for key, value in said.json.items() if key != "written"}
    assert "* subject" in said.err


def test_a_published_file_is_read_as_by_the_other_commands(retcon: Retcon, model: str, tmp_path: Path) -> None:
    asked = {"prompt": "{} lies in", "subject": "The Blue Tower", "target_new": {"str": "Rome"}}
    record = {"case_id": 7, "requested_rewrite": asked | {"target_true": {"str": "Paris"}}}
    file = tmp_path / "counterfact.json"
    file.write_text(json.dumps([record]), encoding="utf-8")
    (fact,) = retcon("locate", "--model", model, "--edits", file, "--noises", 1, "--json").json["facts"]
    assert (fact["prompt"], fact["subject"], fact["answer"]) == ("The Blue Tower lies in", "The Blue Tower", "Paris")


def test_a_prompt_is_traced_as_it_stands(retcon: Retcon, model: str) -> None:
    said = retcon("locate", "--model", model, *PROMPT, "--kind", "mlp", "--window", 2, "--noises", 1, "--json")
    (fact,) = said.json["facts"]
    assert (fact["prompt"], fact["subject"], fact["known"]) == ("Big Ben is located in the city of", "Big Ben", True)
    assert (said.json["kind"], said.json["window"], said.json["written"]) == ("mlp", 2, [])
    braced = ["--prompt", "{} is located in the city of", "--subject", "Big Ben", "--target", "Rome"]
    (other,) = retcon("locate", "--model", model, *braced, "--noises", 1, "--json").json["facts"]
    assert (other["answer"], other["known"], other["tokens"]) == ("Rome", False, fact["tokens"])


@pytest.mark.parametrize("how", ["gradient", "integrated"])
def test_neurons_are_scored(retcon: Retcon, model: str, edits: Path, tmp_path: Path, how: str) -> None:
    out = tmp_path / "out"
    command = ["locate", "--model", model, "--edits", edits, "--limit", 2, "--how", how, "--steps", 2, "--out", out]
    said = retcon(*command, "--answer", "contrast", "--json")
    facts = load_edits(edits, limit=2).items
    found = attribute(LM.load(model), facts, range(4), answer="contrast", how=how, steps=2)  # type: ignore[arg-type]
    for i, fact in enumerate(said.json["facts"]):
        assert (fact["answer"], fact["against"]) == (facts[i].old, facts[i].target)
        assert [layer["layer"] for layer in fact["layers"]] == [0, 1, 2, 3]
        assert [layer["mass"] for layer in fact["layers"]] == pytest.approx(found.mass()[i].tolist(), rel=1e-4)
        strongest = fact["layers"][1]["neurons"][0]
        scores = found.scores[1][i]
        assert strongest["neuron"] == int(scores.abs().argmax())
        assert strongest["score"] == pytest.approx(float(scores[strongest["neuron"]]), rel=1e-4)
    assert (out / f"001-the-blue-tower-{how}.svg").is_file()
    assert "strongest neurons" in said.err


def test_layers_are_suggested_with_the_evidence(retcon: Retcon, model: str, edits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["locate", "--model", model, "--edits", edits, "--suggest", "--width", 2, "--answer", "greedy"]
    said = retcon(*command, "--noises", 1, "--out", out, "--json")
    first, second = said.json["suggested"]
    assert second == first + 1
    assert (said.json["kind"], said.json["used"], list(said.json["evidence"])) == ("mlp", 4, ["tracing", "gradient"])
    assert [len(values) for values in said.json["evidence"].values()] == [4, 4]
    assert said.json["windows"]["tracing"] == said.json["suggested"]
    assert sorted(path.name for path in out.iterdir()) == ["layers.png", "layers.svg", "locate.json"]
    assert f"Suggested layers: {first} {second}" in retcon(*command, "--noises", 1).out
    by_mass = retcon(*command, "--how", "gradient", "--json").json
    assert (by_mass["by"], list(by_mass["evidence"]), "kind" in by_mass) == ("gradient", ["gradient"], False)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give --edits FILE, or --prompt"),
        (["--edits", "f.jsonl", "--prompt", "x"], "give --edits FILE, or --prompt"),
        (["--edits", "f.jsonl", "--subject", "x"], "--subject and --target go with --prompt"),
        (["--edits", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
        (["--prompt", "Big Ben is in"], "name it with --subject"),
        (["--prompt", "Big Ben is in", "--suggest", "--how", "gradient"], "name it with --subject"),
        (["--prompt", "Big Ben is in", "--subject", "Big Bill"], "'Big Bill' is not in the prompt"),
        (["--prompt", "a man, a plan", "--subject", "a"], "is in the prompt 4 times; write the one meant as {}"),
        ([*PROMPT, "--answer", "contrast", "--how", "gradient"], "--answer contrast needs the new answer"),
        ([*PROMPT, "--target", "Rome", "--answer", "contrast"], "tracing looks at one answer"),
        ([*PROMPT, "--kind", "mpl"], 'Invalid value "mpl" for --kind'),
        ([*PROMPT, "--noises", "0"], "0 noises are no sample"),
        ([*PROMPT, "--how", "integrated", "--steps", "1"], "1 step is no integral"),
        ([*PROMPT, "--suggest", "--window", "3"], "give --width, not --window"),
        ([*PROMPT, "--suggest", "--kind", "hidden"], "layers are suggested by mlp or attn"),
        ([*PROMPT, "--suggest", "--width", "9"], "a window of 9 layers does not fit; this model has 3 above layer 0"),
    ],
)
def test_bad_input_is_one_sentence(retcon: Retcon, model: str, arguments: list[str], sentence: str) -> None:
    said = retcon("locate", "--model", model, *arguments)
    assert (said.code, said.out) == (2, "")
    assert sentence in said.err
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1


def test_a_missing_extra_is_named_before_the_model_is_loaded(
    retcon: Retcon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said = retcon("locate", "--model", "nowhere", *PROMPT, "--out", tmp_path / "out")
    assert said.code == 2
    assert said.err == "error: figures need matplotlib: run `pip install 'retcon-lm[explain]'`\n"
    assert not (tmp_path / "out").exists()
