"""What a bench is asked for: the keys of its TOML file, checked before anything runs."""

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from retcon.errors import RetconError
from retcon.methods import METHODS
from retcon.metrics import METRICS

__all__ = ["BUILTIN", "Config", "load"]


class Config(BaseModel):
    """Every combination of models, sets, numbers of edits, seeds and methods is one cell."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    models: list[str] = Field(["smollm2-135m"], min_length=1)
    """Folders, GGUF files, hub ids, or the default model."""
    methods: list[str] = Field(min_length=1)
    """Of `retcon methods`."""
    datasets: list[str] = Field(["builtin"], min_length=1)
    """Names of `retcon sets`, with `NAME:SPLIT` for another split than the first, or paths."""
    edits: list[int] = Field(min_length=1)
    """How many edits a cell has: the first so many good records of its set."""
    seeds: list[int] = Field([0], min_length=1)
    """Of what sets draw, of methods, samples and intervals."""
    shuffle: bool = False
    """Whether each seed puts a set's records in an order of its own, and so takes other facts."""
    mode: Literal["batch", "sequential"] = "batch"
    """All edits in one call, or a fold over chunks, each on top of those before it."""
    chunk: int | None = Field(None, ge=1)
    """Edits of one step of the fold."""
    set: dict[str, Any] = {}
    """Options of all methods that have them, and tables of those of one method."""
    metrics: list[str] | None = Field(None, min_length=1)
    """Figures of `retcon eval`; all by default."""
    sample: int | None = Field(None, ge=1)
    """Judge a seeded sample of so many cases of a cell."""
    text: str | None = None
    """A file with the text for perplexity; by default the one that comes with Retcon."""
    device: str = "cpu"
    """Where models run."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights in memory."""
    chat: bool = False
    """Ask through the models' chat templates."""

    def options(self, method: str) -> dict[str, Any]:
        """The options that are given for a method: its own, and those of all that it has."""
        known = METHODS[method].Config.__dataclass_fields__
        shared = {name: value for name, value in self.set.items() if name in known and not isinstance(value, dict)}
        given = shared | self.set.get(method, {})
        return {name: _value(method, name, value) for name, value in given.items()}


BUILTIN = {"methods": ["memit", "rome", "locft-bf"], "datasets": ["builtin"], "edits": [10]}
"""The run that `builtin` names: three methods, ten facts of the set that comes with Retcon, the default model."""


def load(source: "Config | Mapping[str, Any] | str | Path") -> Config:
    """The configuration of a TOML file, of a mapping, or the one called `builtin`.

    Raises:
        RetconError: the file cannot be read, or a key is wrong; the message names it and the cure.
    """
    if isinstance(source, Config):
        return _checked(source)
    if isinstance(source, Mapping):
        return _parsed(source)
    path = Path(source)
    if str(source) == "builtin" and not path.exists():
        return _parsed(BUILTIN)
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RetconError(
            f"there is no file {path}; write one as in docs/bench.md, or take `builtin` for a small run"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RetconError(f"{path} cannot be read ({error}); give a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise RetconError(f"{path} is not TOML ({error}); mend it there") from None
    try:
        return _parsed(record)
    except RetconError as error:
        raise RetconError(f"{path.name}: {error}") from None


def _parsed(record: Mapping[str, Any]) -> Config:
    try:
        return _checked(Config.model_validate(dict(record)))
    except ValidationError as error:
        raise RetconError(_sentence(error)) from None


def _checked(config: Config) -> Config:
    """The configuration, once all its names are known to mean something."""
    _known("methods", "method", config.methods, METHODS)
    _known("metrics", "figure", config.metrics or (), METRICS)
    for key, least in (("edits", 1), ("seeds", 0)):
        if wrong := [number for number in getattr(config, key) if number < least]:
            raise RetconError(f'"{key}" holds {wrong[0]}; give whole numbers of at least {least}')
    if config.mode == "sequential" and config.chunk is None:
        raise RetconError('"mode" is sequential and "chunk" is missing; add chunk = 10, the edits of one step')
    if config.mode == "batch" and config.chunk is not None:
        raise RetconError('"chunk" belongs to mode = "sequential"; add that, or leave chunk out')
    _check_options(config)
    return config


def _known(key: str, what: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise RetconError(f'"{key}": there is no {what} {name!r}{_near(name, known)}')


def _near(name: str, known: Iterable[str]) -> str:
    """What else may have been meant."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(names)}"


def _check_options(config: Config) -> None:
    """Each option is of a method that is asked for, and of the type that it has there."""
    fields = {name: METHODS[name].Config.__dataclass_fields__ for name in config.methods}
    for name, value in config.set.items():
        if isinstance(value, dict):
            if name not in fields:
                raise RetconError(f'"set.{name}" is of no method of "methods" ({", ".join(fields)}); take it out')
            for key in value:
                if key not in fields[name]:
                    raise RetconError(f'"set.{name}.{key}": {name} has no such option{_near(key, fields[name])}')
        elif not any(name in known for known in fields.values()):
            every = sorted({option for known in fields.values() for option in known})
            raise RetconError(f'"set.{name}": none of the methods has such an option{_near(name, every)}')
    for method in config.methods:
        config.options(method)


def _value(method: str, name: str, value: Any) -> Any:
    """An option as the method's configuration has it; TOML has no null, for which "none" stands.

    Raises:
        RetconError: it is of another type.
    """
    kind = TypeAdapter(get_type_hints(METHODS[method].Config)[name])
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        if value == "none":
            try:
                return kind.validate_python(None)
            except ValidationError:
                pass
        reason = error.errors()[0]["msg"]
        said = json.dumps(value, default=str)
        raise RetconError(f'"set": {method} cannot take {name} = {said} ({reason}); mend the value') from None


def _sentence(error: ValidationError) -> str:
    """The first complaint in our words: which key, what is wrong, what to write."""
    # A misspelt key is missing as well as unknown: say the latter, which names the culprit.
    first = min(error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f'there is no key "{key}"{_near(key, Config.model_fields)}'
    if first["type"] == "missing":
        return f'"{key}" is missing; add it'
    wanted = {
        "string_type": "text in quotes", "list_type": "a list in [ ]", "int_type": "a whole number",
        "dict_type": "a table", "bool_type": "true or false", "too_short": "a list of at least one",
    }  # fmt: skip
    said = json.dumps(first["input"], default=str)[:80]
    if first["type"] in wanted:
        return f'"{key}" must be {wanted[first["type"]]}, not {said}'
    return f'"{key}" cannot be {said} ({first["msg"]}); mend it'
