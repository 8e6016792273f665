"""`retcon ask`: side by side, and as JSON."""

from pathlib import Path

from tests.cli.conftest import Retcon


def test_a_prompt_is_answered_by_the_model_alone(retcon: Retcon, model: str) -> None:
    said = retcon("ask", "--model", model, "Big Ben is located in", "--tokens", 3)
    assert said.code == 0
    assert "answer" in said.out
    assert "after" not in said.out


def test_a_prompt_is_answered_without_and_with_the_patch(retcon: Retcon, model: str, patch: Path) -> None:
    prompts = ["Ada Lovelace is located in the city of", "Big Ben"]
    found = retcon("ask", "--model", model, *prompts, "--patch", patch, "--tokens", 3, "--json").json
    assert [answer["prompt"] for answer in found["answers"]] == prompts
    assert found["answers"][0]["before"] != found["answers"][0]["after"]
    assert "after" in retcon("ask", "--model", model, *prompts, "--patch", patch).out
