"""`retcon models`: the table is what tiny models of each family show, and a model tells what was found in it."""

import pytest
from tests.cli.conftest import Retcon

from retcon import arch
from retcon.cli.models import families, search_kind, write_kind
from retcon.lm import LM
from retcon.testing import FAMILIES, tiny_model, tiny_tokenizer


def test_the_table_has_the_proven_families() -> None:
    assert [row["family"] for row in families()] == list(FAMILIES)


@pytest.mark.parametrize("row", families(), ids=lambda row: str(row["family"]))
def test_the_table_says_what_the_tiny_model_shows(row: dict[str, str]) -> None:
    lm = LM.wrap(tiny_model(row["family"]), tiny_tokenizer())
    assert row["family"] in (lm.arch.family, lm.arch.family.removesuffix("_text"))
    assert row["write"] == write_kind(lm.arch.write_gain)
    assert row["search"] == search_kind(lm)


def test_the_families_are_listed(retcon: Retcon) -> None:
    said = retcon("models", "--json")
    assert said.json == {"families": families()}
    assert "olmo2" in said.err


def test_a_model_tells_what_was_found(retcon: Retcon, model: str) -> None:
    found = retcon("models", model, "--json").json
    assert (found["family"], found["proven"], found["layers"], found["search"]) == ("llama", True, 4, "fast")
    assert found["mlp_out"] == arch.find(tiny_model("llama")).mlp_out[2]
    assert "down_proj" in retcon("models", model).out


def test_a_model_that_is_not_there_is_named(retcon: Retcon, tmp_path: object) -> None:
    said = retcon("models", f"{tmp_path}/none")
    assert (said.code, said.err.count("\n")) == (2, 1)
