"""`retcon ask`: one or more prompts to a model, without and with a patch."""

from pathlib import Path

from retcon.cli.answers import answers
from retcon.cli.common import ModelOptions, OutputOptions, load_patch
from retcon.cli.screen import screen
from retcon.errors import RetconError

__all__ = ["run"]

DEFAULT_MODEL = ModelOptions()
DEFAULT_OUTPUT = OutputOptions()


def run(
    *prompts: str,
    patch: Path | None = None,
    tokens: int = 20,
    model: ModelOptions = DEFAULT_MODEL,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> None:
    """Ask the model, without and with a patch, side by side.

    Parameters
    ----------
    prompts
        What the model goes on with, each in quotes.
    patch
        The folder of a patch; without one only the model itself answers.
    tokens
        The length of the answers.
    """
    if not prompts:
        raise RetconError(
            'there is nothing to ask; write a prompt in quotes, as in: retcon ask "The capital of France is"'
        )
    if tokens < 1:
        raise RetconError(f"--tokens {tokens} leaves no room for an answer; take at least 1")
    with screen(output) as show:
        change = load_patch(patch)
        lm = model.load()
        before = answers(lm, prompts, tokens=tokens)
        after = before
        if change is not None:
            with change.on(lm.model):
                after = answers(lm, prompts, tokens=tokens)
        if change is None:
            show.table(["prompt", "answer"], zip(prompts, before, strict=True))
        else:
            show.table(["prompt", "before", "after"], zip(prompts, before, after, strict=True))
        rows = zip(prompts, before, after, strict=True)
        answered = [
            {"prompt": prompt, "before": old, "after": None if change is None else new} for prompt, old, new in rows
        ]
        show.result({"answers": answered, "patch": None if change is None else change.id})
