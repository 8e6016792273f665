"""The keys of a run: what is taken, and what is refused by its name with the cure."""

from pathlib import Path
from typing import Any

import pytest

from retcon.bench.config import BUILTIN, load
from retcon.errors import RetconError
from retcon.methods import METHODS

SMALL: dict[str, Any] = {"methods": ["memit", "grace"], "edits": [10]}


def test_the_small_run_needs_no_file_and_the_example_is_the_same_run() -> None:
    config = load("builtin")
    assert (config.models, config.datasets, config.edits) == (["smollm2-135m"], ["builtin"], [10])
    assert set(config.methods) <= set(METHODS)
    assert load(Path(__file__).parents[2] / "examples" / "bench.toml") == load(BUILTIN) == config


def test_options_are_of_all_methods_that_have_them_and_of_one_where_it_is_named() -> None:
    config = load(SMALL | {"set": {"steps": 7, "memit": {"layers": [1, 2], "steps": 9}}})
    assert config.options("memit") == {"steps": 9, "layers": (1, 2)}
    assert config.options("grace") == {"steps": 7}
    assert load(SMALL | {"set": {"memit": {"layers": "none"}}}).options("memit") == {"layers": None}
    assert load(SMALL | {"set": {"statistics": "none"}}).options("memit") == {"statistics": "none"}  # a text there


def test_a_file_is_named_with_what_is_wrong_in_it(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    for text, sentence in (
        ('methods = ["memit"]\nedits = 10\n', r'^run.toml: "edits" must be a list in \[ \], not 10$'),
        ("edits = [1]\nmethods = memit\n", "is not TOML .*line 2.*; mend it there"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(RetconError, match=sentence):
            load(path)
    with pytest.raises(RetconError, match=r"there is no file .*none.toml; write one as in docs/bench.md"):
        load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"seed": [0]}, "there is no key \"seed\"; did you mean 'seeds'?"),
        ({"speed": 1}, 'there is no key "speed"; '),
        ({"methods": ["mimit"]}, "\"methods\": there is no method 'mimit'; did you mean 'memit'?"),
        ({"methods": []}, '"methods" must be a list of at least one, not []'),
        ({"metrics": ["efficiency"]}, "\"metrics\": there is no figure 'efficiency'; did you mean 'efficacy'?"),
        ({"edits": ["ten"]}, '"edits.0" must be a whole number, not "ten"'),
        ({"edits": [0]}, '"edits" holds 0; give whole numbers of at least 1'),
        ({"seeds": [-1]}, '"seeds" holds -1; give whole numbers of at least 0'),
        ({"mode": "stream"}, '"mode" cannot be "stream"'),
        ({"mode": "sequential"}, '"mode" is sequential and "chunk" is missing; add chunk = 10'),
        ({"chunk": 5}, '"chunk" belongs to mode = "sequential"'),
        ({"sample": 0}, '"sample" cannot be 0'),
        ({"set": {"depth": 3}}, '"set.depth": none of the methods has such an option'),
        ({"set": {"rome": {"steps": 3}}}, '"set.rome" is of no method of "methods" (memit, grace); take it out'),
        ({"set": {"memit": {"step": 3}}}, "\"set.memit.step\": memit has no such option; did you mean 'steps'?"),
        ({"set": {"steps": "many"}}, '"set": memit cannot take steps = "many"'),
    ],
)
def test_what_is_wrong_is_named_with_its_cure(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RetconError) as raised:
        load(SMALL | keys)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(RetconError, match='^"methods" is missing; add it$'):
        load({"edits": [1]})
