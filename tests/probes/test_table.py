"""The table of probes: names, groups, options that are frozen and documented."""

import dataclasses

import pytest

from retcon.cli.settings import field_docs
from retcon.errors import RetconError
from retcon.probes.table import GROUPS, PROBES, chosen


def test_by_default_all_but_the_benign_arm_are_run_in_the_tables_order() -> None:
    assert chosen(None) == [name for name in PROBES if name != "relearn_benign"]
    assert chosen(["all"]) == list(PROBES)


def test_groups_and_names_are_taken_once_in_the_tables_order() -> None:
    assert chosen(["detach", "relearn", "relearn_same"]) == ["relearn_same", "relearn_disjoint", "detach"]
    assert len(GROUPS["prompts"]) == 10


@pytest.mark.parametrize(
    ("names", "said"),
    [(["relern"], "there is no probe 'relern'; use some of rephrase"), ([], "no probe is named"), ("lens", "a list")],
)
def test_other_names_are_refused(names: list[str], said: str) -> None:
    with pytest.raises(RetconError, match=said):
        chosen(names)


@pytest.mark.parametrize("kind", dict.fromkeys(attack.Config for attack in PROBES.values()))
def test_options_are_frozen_and_documented(kind: type) -> None:
    options = kind()
    assert set(field_docs(kind)) >= {field.name for field in dataclasses.fields(options)}
    for field in dataclasses.fields(options):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(options, field.name, 1)
