"""`retcon models`: which families can be edited, and what was found in one model."""

import json
from importlib import resources
from typing import Any

from retcon.cli.common import ModelOptions, OutputOptions
from retcon.cli.screen import screen

__all__ = ["describe", "families", "run", "search_kind", "write_kind"]

DEFAULT_OUTPUT = OutputOptions()


def families() -> list[dict[str, Any]]:
    """The families that Retcon is proven on, each with what its tiny random model shows in the tests."""
    table: list[dict[str, Any]] = json.loads((resources.files("retcon") / "data/families.json").read_text("utf-8"))
    return table


def run(
    name: str | None = None, *, device: str = "cpu", chat: bool = False, output: OutputOptions = DEFAULT_OUTPUT
) -> None:
    """List the model families that can be edited, or say what was found in one model.

    Parameters
    ----------
    name
        A folder, a GGUF file, a hub id, or smollm2-135m: its parts are found by structure and by short probes.
    device
        Where to run: cpu, cuda, cuda:1, mps ...
    chat
        Whether the model's chat template would be used.
    """
    with screen(output) as show:
        if name is not None:
            found = describe(ModelOptions(model=name, device=device, chat=chat))
            show.table(["what", "found"], ((key.replace("_", " "), _shown(value)) for key, value in found.items()))
            show.result(found)
            return
        rows = ((row["family"], row["models"], row["write"], row["search"]) for row in families())
        show.table(["family", "models", "MLP output", "target search"], rows)
        show.say("MLP output: how it comes to the residual stream; where it is normed, targets are sought before that.")
        show.say("`retcon models NAME` tells of any other dense decoder; mixtures of experts are refused.")
        show.result({"families": families()})


def describe(options: ModelOptions) -> dict[str, Any]:
    """What was found in a model."""
    from retcon import tokens

    lm = options.load()
    arch = lm.arch
    middle = arch.n_layers // 2
    before, _ = tokens.special_ids(lm)
    return {
        "name": lm.name,
        "revision": lm.revision,
        "family": arch.family,
        "proven": arch.family in {row["family"] for row in families()},
        "layers": arch.n_layers,
        "d_model": arch.d_model,
        "d_mlp": arch.d_mlp,
        "mlp_out": arch.mlp_out[middle],
        "attn_out": arch.attn_out[middle],
        "conv1d": arch.conv1d,
        "write": write_kind(arch.write_gain),
        "write_gain": arch.write_gain,
        "window": arch.window,
        "begins_with": lm.tokenizer.convert_ids_to_tokens(before),
        "search": search_kind(lm),
    }


def write_kind(gain: float | None) -> str:
    """What happens to the MLP's output on its way to the residual stream: "added", "scaled" or "normed"."""
    return "normed" if gain is None else "added" if gain == 1 else "scaled"


def search_kind(lm: Any) -> str:
    """Whether the fast target search holds on a model, probed against whole rows: "fast" or "whole rows"."""
    from retcon import values

    return "fast" if values.fast_path(lm, values.SearchConfig(layer=lm.arch.n_layers // 2)) else "whole rows"


def _shown(value: Any) -> str:
    if value is None or value == []:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
