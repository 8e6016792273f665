"""One model in memory at a time."""

from typing import Any

from retcon.bench.models import Models


def test_a_model_is_loaded_when_it_is_asked_for_and_again_after_another() -> None:
    loaded: list[str] = []

    def load(name: str) -> Any:
        loaded.append(name)
        return name.upper()

    models = Models(load)
    found: list[Any] = [models.get(name) for name in ("a", "a", "b", "b", "a")]
    assert found == ["A", "A", "B", "B", "A"]
    assert loaded == ["a", "b", "a"]
