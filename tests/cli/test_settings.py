"""--set key=value: typed by the config, refused with the names there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from retcon.cli.settings import field_docs, parse_settings
from retcon.errors import RetconError


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """Options."""

    layers: tuple[int, ...] | None = None
    """Which layers,
    in order."""
    ridge: float = 1.5
    """How strong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Parent):
    """More options."""

    steps: int = 25
    """How many."""
    fast: bool = True
    name: str | None = None
    """What it is called."""
    kind: Literal["a", "b"] = "a"
    ridge: float = 2.5
    """How strong here."""
    words: Sequence[str] = ()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("layers=5,6, 7", (5, 6, 7)),
        ("layers=4", (4,)),
        ("layers=none", None),
        ("ridge=1e4", 10_000.0),
        ("steps = 3", 3),
        ("fast=no", False),
        ("fast=True", True),
        ("name=none", None),
        ("name=a=b", "a=b"),
        ("kind=b", "b"),
        ("words=x,y", ("x", "y")),
    ],
)
def test_values_have_the_types_of_their_fields(setting: str, value: Any) -> None:
    (found,) = parse_settings(Config, [setting]).values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("rigde=1", "there is no option 'rigde'; did you mean ridge? Known are layers, ridge, steps"),
        ("colour=1", "there is no option 'colour'; known are layers, ridge, steps, fast, name, kind, words"),
        ("steps", "--set steps has no value; write --set steps=VALUE"),
        ("steps=3.5", "'3.5' is not a whole number"),
        ("ridge=strong", "'strong' is not a number"),
        ("fast=maybe", "'maybe' is not true or false"),
        ("kind=c", "'c' is not one of a, b"),
        ("layers=a,b", "'a,b' is not a list with commas, each a whole number or none"),
    ],
)
def test_a_wrong_setting_says_what_there_is(setting: str, sentence: str) -> None:
    with pytest.raises(RetconError) as caught:
        parse_settings(Config, [setting])
    assert sentence in str(caught.value)


def test_the_last_of_two_settings_counts() -> None:
    assert parse_settings(Config, ["steps=1", "steps=2"]) == {"steps": 2}


def test_docs_of_fields_are_read_from_the_class_and_its_bases() -> None:
    assert field_docs(Config) == {
        "layers": "Which layers, in order.",
        "ridge": "How strong here.",
        "steps": "How many.",
        "name": "What it is called.",
    }
