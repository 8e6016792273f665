"""`retcon methods`: the methods there are, and the options of one."""

import dataclasses
import inspect
from typing import Any

from retcon.cli.common import OutputOptions
from retcon.cli.screen import screen
from retcon.cli.settings import field_docs

__all__ = ["run"]

DEFAULT_OUTPUT = OutputOptions()


def run(name: str | None = None, *, output: OutputOptions = DEFAULT_OUTPUT) -> None:
    """List the methods, or say what one does and which options --set takes.

    Parameters
    ----------
    name
        The method to tell of.
    """
    from retcon.methods import METHODS
    from retcon.methods import method as named

    with screen(output) as show:
        if name is None:
            firsts = {key: inspect.getdoc(method).splitlines()[0] for key, method in METHODS.items()}  # type: ignore[union-attr]
            show.table(["method", "what it does"], firsts.items())
            show.say("`retcon methods NAME` tells more of one and lists its options.")
            show.result({"methods": firsts})
            return
        method = type(named(name))
        options = _options(method.Config)
        show.say(inspect.getdoc(method) or "")
        show.say()
        rows = [(option["name"], option["type"], str(option["default"]), option["meaning"]) for option in options]
        show.table(["option", "type", "default", "meaning"], rows)
        show.result({"method": name, "about": inspect.getdoc(method), "options": options})


def _options(config: type) -> list[dict[str, Any]]:
    docs = field_docs(config)
    return [
        {
            "name": field.name,
            "type": field.type if isinstance(field.type, str) else inspect.formatannotation(field.type),
            "default": field.default,
            "meaning": docs.get(field.name, ""),
        }
        for field in dataclasses.fields(config)
    ]
