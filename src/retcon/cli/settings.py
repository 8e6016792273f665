"""`--set key=value` for a method's config: values get the types of the config's fields."""

import ast
import dataclasses
import difflib
import inspect
import itertools
import textwrap
import types
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from retcon.errors import RetconError

__all__ = ["field_docs", "parse_settings", "value_of"]


def parse_settings(config: type, settings: Sequence[str]) -> dict[str, Any]:
    """The fields of the dataclass `config` that `settings` ("key=value") name, as values of the fields' types.

    Lists and tuples are written with commas, an absent value as `none`; the last of two settings of one field counts.

    Raises:
        RetconError: a setting without "=", an unknown key (with the known ones), a value of another type.
    """
    hints = get_type_hints(config)
    known = [field.name for field in dataclasses.fields(config)]
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = (part.strip() for part in setting.partition("="))
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}? Known" if near else "known"
            raise RetconError(f"--set {setting}: there is no option {key!r}; {hint} are {', '.join(known)}")
        if not equals:
            raise RetconError(f"--set {key} has no value; write --set {key}=VALUE")
        try:
            values[key] = value_of(text, hints[key])
        except ValueError:
            raise RetconError(f"--set {setting}: {text!r} is not {_words(hints[key])}; mend the value") from None
    return values


def field_docs(config: type) -> dict[str, str]:
    """The docstring under each field of the dataclass `config` and of its bases, on one line."""
    docs: dict[str, str] = {}
    for base in reversed(config.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, below in itertools.pairwise(body.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                docs[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return docs


def value_of(text: str, hint: Any) -> Any:
    """`text` as a value of the type `hint`; ValueError where it is none."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or hint is str:
        return text
    if origin in (Union, types.UnionType):
        return _first(text, inner)
    if origin is Literal:
        return next(choice for choice in inner if str(choice) == text) if text in map(str, inner) else _refuse(text)
    if hint in (types.NoneType, None):
        return None if text.lower() in ("none", "null", "") else _refuse(text)
    if hint is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        return words[text.lower()] if text.lower() in words else _refuse(text)
    if origin in (tuple, list, Sequence, set, frozenset):
        parts = [value_of(part.strip(), inner[0]) for part in text.split(",") if part.strip()]
        return parts if origin is list else tuple(parts)
    if hint in (int, float):
        return hint(text)
    return _refuse(text)


def _first(text: str, hints: Sequence[Any]) -> Any:
    """The first type of a union that takes the text; plain text only if no other does."""
    for hint in sorted(hints, key=lambda hint: hint is str):
        try:
            return value_of(text, hint)
        except ValueError:
            continue
    return _refuse(text)


def _refuse(text: str) -> Any:
    raise ValueError(text)


def _words(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "none"}
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(_words(part) for part in inner)
    if origin in (tuple, list, Sequence):
        return f"a list with commas, each {_words(inner[0])}"
    return names.get(hint, str(hint))
