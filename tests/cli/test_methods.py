"""`retcon methods`: the table, and the options of one."""

import dataclasses

import pytest
from tests.cli.conftest import Retcon

from retcon.methods import METHODS


def test_the_methods_are_listed_with_what_they_do(retcon: Retcon) -> None:
    found = retcon("methods", "--json").json["methods"]
    assert list(found) == list(METHODS)
    assert all(len(about) > 20 for about in found.values())


@pytest.mark.parametrize("name", METHODS)
def test_every_option_of_a_method_is_explained(retcon: Retcon, name: str) -> None:
    options = retcon("methods", name, "--json").json["options"]
    assert [option["name"] for option in options] == [field.name for field in dataclasses.fields(METHODS[name].Config)]
    assert [option["name"] for option in options if not option["meaning"]] == []
    assert "meaning" in retcon("methods", name).out
