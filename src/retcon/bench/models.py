"""The models of a bench, one in memory at a time."""

from collections.abc import Callable

from retcon.lm import LM

__all__ = ["Models"]


class Models:
    """Loads a model when it is asked for, and lets go of the one before."""

    def __init__(self, load: Callable[[str], LM]) -> None:
        """`load` makes a model of its name."""
        self._load = load
        self._name: str | None = None
        self._lm: LM | None = None

    def get(self, name: str) -> LM:
        """The model of that name.

        Raises:
            RetconError: it cannot be loaded.
        """
        if self._lm is None or self._name != name:
            self._lm = None  # before the next one takes its room
            self._name, self._lm = name, self._load(name)
        return self._lm
