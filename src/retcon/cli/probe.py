"""`retcon probe`: try to get back what a patch makes a model forget."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from retcon.cli.common import ModelOptions, OutputOptions, load_patch
from retcon.cli.screen import screen
from retcon.cli.settings import parse_settings
from retcon.errors import RetconError

__all__ = ["run"]

DEFAULT_MODEL = ModelOptions()
DEFAULT_OUTPUT = OutputOptions()


def run(
    *,
    forget: Path,
    patch: Path,
    retain: Path | None = None,
    twin: Path | None = None,
    base_patch: Path | None = None,
    probes: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())] = (),
    settings: Annotated[tuple[str, ...], Parameter(name="--set", consume_multiple=True, negative=())] = (),
    limit: int | None = None,
    tokens: int = 40,
    plain: Annotated[bool, Parameter(negative=())] = False,
    reveal: Annotated[bool, Parameter(negative=())] = False,
    out: Path | None = None,
    seed: int = 0,
    skip_bad: Annotated[bool, Parameter(negative=())] = False,
    conflicts: Literal["error", "last"] = "error",
    model: ModelOptions = DEFAULT_MODEL,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> None:
    """Try to get forgotten answers back, and say what kind of forgetting it was.

    Attacks are made on the questions that the model answers right before it forgets. What is written holds figures
    and salted ids, no question and no answer, unless --reveal is given.

    Parameters
    ----------
    forget
        The questions whose answers must have gone: JSONL or CSV, as for `retcon forget`.
    patch
        The folder of the patch that makes the model forget.
    retain
        Questions to keep, in the same form; some attacks show them.
    twin
        The folder of a patch that makes of --model one that never saw the answers; only against it is anything called
        erased.
    base_patch
        The folder of a patch that makes of --model the model before forgetting, if that is not --model itself.
    probes
        The probes wanted, with spaces or commas between them: rephrase, few_shot, prefix_injection, affirmative_start,
        role_play, answer_then_decline, system_prompt, cloze, mixed, reverse, tokenisation, decoding, lens, quantise,
        relearn_same, relearn_disjoint, relearn_benign, detach; or prompts, relearn, all. By default all but
        relearn_benign.
    settings
        Options of probes as PROBE.key=value, for example relearn.lr=1e-4,1e-3 or quantise.group=128.
    limit
        Take the first so many questions.
    tokens
        The length of the answers.
    plain
        Ask without the chat template; by default questions are asked as they were when the patch was made.
    reveal
        Keep questions, answers and what was said in what is written.
    out
        A folder for probes.json and probes.md.
    seed
        Of everything that is drawn.
    skip_bad
        Skip bad lines of the files and list them.
    conflicts
        What to do with different answers to one question: refuse, or keep the last.
    """
    chat = model.asked(plain)
    if tokens < 1:
        raise RetconError(f"--tokens {tokens} leaves no room for an answer; take at least 1")
    with screen(output) as show:
        from retcon.probes import probe
        from retcon.probes.show import table, write
        from retcon.probes.table import chosen
        from retcon.requests import load_forget, load_retain

        names = [name for group in probes for name in group.split(",") if name] or None
        chosen(names)
        options = _options(settings)
        change, other, before = load_patch(patch), load_patch(twin), load_patch(base_patch)
        assert change is not None
        loaded = load_forget(forget, limit=limit, skip_bad=skip_bad, conflicts=conflicts)
        kept = [] if retain is None else load_retain(retain, skip_bad=skip_bad).items
        show.warn([*loaded.skipped, *loaded.warnings])
        found = probe(
            model.load(),
            loaded.items,
            patch=change,
            retain=kept,
            twin=other,
            start=before,
            names=names,
            settings=options,
            chat=chat,
            max_new_tokens=tokens,
            seed=seed,
            reveal=reveal,
        )
        show.print(table(found))
        written = [] if out is None else write(found, out)
        for path in written:
            show.say(f"written: {path}")
        show.result(found.to_dict() | {"written": [str(path) for path in written]})


def _options(settings: Sequence[str]) -> list[Any]:
    """The options of the probes that are named in `PROBE.key=value`; of a group, those that its probes share.

    Raises:
        RetconError: there is no such probe or option, or the value is of another type.
    """
    from retcon.probes.table import GROUPS, PROBES

    given: dict[type, list[str]] = {}
    for setting in settings:
        name, dot, rest = setting.partition(".")
        members = GROUPS.get(name, (name,))
        kinds = {PROBES[member].Config for member in members if member in PROBES}
        if not dot or "=" in name or len(kinds) != 1:
            known = ", ".join(["relearn", *PROBES])
            raise RetconError(f"--set {setting} names no one probe; write PROBE.key=value, with one of {known}")
        given.setdefault(kinds.pop(), []).append(rest)
    return [kind(**parse_settings(kind, values)) for kind, values in given.items()]
