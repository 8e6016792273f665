"""`retcon stats`: second moments of a model's keys, collected once for all methods."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from retcon.cli.common import ModelOptions, OutputOptions
from retcon.cli.screen import screen

if TYPE_CHECKING:
    from retcon.stats import Moments

__all__ = ["run"]

DEFAULT_MODEL = ModelOptions()
DEFAULT_OUTPUT = OutputOptions()


def run(
    *,
    corpus: str,
    layers: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative=())] = (),
    tokens: int | None = None,
    seed: int = 0,
    cache: bool = True,
    model: ModelOptions = DEFAULT_MODEL,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> None:
    """Collect the statistics of a model's keys that methods need, ahead of time.

    Methods collect and keep them by themselves; this shows what is there and how long it takes.

    Parameters
    ----------
    corpus
        A text or JSONL file, plain or .gz, a dataset's id, or self: text that the model writes.
    layers
        The layers; by default those that methods edit.
    tokens
        How many tokens to use; a multiple of the key width by default.
    seed
        Of the sampling, for self.
    cache
        Keep the statistics on disk, and use those kept; --no-cache to measure.
    """
    with screen(output) as show:
        from retcon import stats
        from retcon.methods.family import edited_layers

        lm = model.load()
        started = time.perf_counter()
        paths = [lm.arch.mlp_out[layer] for layer in edited_layers(lm, layers or None)]
        source = corpus if corpus == stats.SELF else Path(corpus) if Path(corpus).exists() else corpus
        found = stats.moments(lm, paths, source, tokens_wanted=tokens, seed=seed, cached=cache)
        seconds = round(time.perf_counter() - started, 3)
        rows = [
            (path, str(len(kept.second)), str(kept.count), f"{_mean_square(kept):.4g}") for path, kept in found.items()
        ]
        show.table(["projection", "key width#", "tokens#", "mean squared key#"], rows)
        show.say(f"{seconds:.1f} s")
        modules = {path: {"width": len(kept.second), "tokens": kept.count} for path, kept in found.items()}
        provenance = next(iter(found.values())).provenance
        show.result({"modules": modules, "provenance": provenance, "seconds": seconds})


def _mean_square(kept: "Moments") -> float:
    return float(kept.second.trace() / len(kept.second))
