"""`retcon locate`: which layers, tokens and neurons hold a fact."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from retcon.cli.common import ModelOptions, OutputOptions
from retcon.cli.screen import Screen, screen
from retcon.errors import RetconError

if TYPE_CHECKING:
    from retcon.lm import LM
    from retcon.locate import Attributions, Suggestion, Trace, Tracing
    from retcon.requests import Edit

__all__ = ["run"]

DEFAULT_MODEL = ModelOptions()
DEFAULT_OUTPUT = OutputOptions()
NEURONS = 10
"""Neurons of a layer that the JSON names."""
UNNAMED = "unnamed"
"""Stands for the target of a prompt whose answer is asked of the model; it is never looked at."""


def run(
    *,
    edits: Path | None = None,
    prompt: str | None = None,
    subject: str | None = None,
    target: str | None = None,
    how: Literal["tracing", "gradient", "integrated"] = "tracing",
    kind: Literal["hidden", "mlp", "attn"] | None = None,
    answer: Literal["old", "new", "contrast", "greedy"] = "old",
    suggest: Annotated[bool, Parameter(negative=())] = False,
    width: int = 5,
    limit: int | None = None,
    noise: float = 3.0,
    noises: int = 3,
    window: int | None = None,
    steps: int = 20,
    seed: int = 0,
    out: Path | None = None,
    model: ModelOptions = DEFAULT_MODEL,
    output: OutputOptions = DEFAULT_OUTPUT,
) -> None:
    """Find which layers, tokens and neurons hold a fact, or suggest layers to edit.

    Tracing corrupts the subject and restores one state at a time; the darker a cell, the more of the answer it brings
    back. Gradient and integrated score the MLPs' neurons at the subject's last token.

    Parameters
    ----------
    edits
        A file of facts, as for `retcon edit`.
    prompt
        One fact instead of a file: its prompt, the subject written out or as {}.
    subject
        The subject of --prompt.
    target
        The answer of --prompt to look at; by default what the model says.
    how
        Causal tracing, or attribution by gradient x activation or by integrated gradients.
    kind
        What tracing restores: block outputs (hidden, the default), or the MLPs' or attentions' outputs of a window.
    answer
        Of a file's facts: the old answer (the model's own where none is given), the new, old against new, or the
        model's own.
    suggest
        Suggest layers to edit, by averages over the facts; tracing then restores MLP outputs.
    width
        How many layers to suggest.
    limit
        Take the first so many facts.
    noise
        The noise on the subject, in standard deviations of subject embeddings.
    noises
        Draws of the noise to average over.
    window
        Layers restored together, for mlp and attn: 10 by default; for --suggest it is --width.
    steps
        Points of the integral, for integrated.
    seed
        Of the noise.
    out
        A folder for locate.json and for the figures, SVG and PNG.
    """
    with screen(output) as show:
        facts = _facts(edits, prompt, subject, target, answer, limit, show)
        if prompt is not None and subject is None and (how == "tracing" or suggest):
            raise RetconError("tracing corrupts the subject of the prompt; name it with --subject")
        if how == "tracing" and answer == "contrast":
            raise RetconError("--answer contrast is for --how gradient or integrated; tracing looks at one answer")
        if suggest and answer == "contrast":
            raise RetconError("--answer contrast does not go with --suggest; take old, new or greedy")
        if suggest and window is not None:
            raise RetconError("--suggest restores as many layers as it suggests; give --width, not --window")
        from retcon import locate, storage
        from retcon.locate import figure

        if out is not None:
            figure.require()
        lm = model.load()
        said: dict[str, Any] = {"model": lm.name, "how": how, "n": len(facts)}
        traced = locate.Tracing(
            kind=kind or ("mlp" if suggest else "hidden"),
            answer="old" if answer == "contrast" else answer,
            noise=noise,
            noises=noises,
            window=10 if window is None else window,
            seed=seed,
        )
        if suggest:
            chosen = locate.suggest(lm, facts, by=how, width=width, tracing=traced, steps=steps)
            written = _show_suggestion(show, lm, chosen, out)
            said |= {"suggested": list(chosen.layers)} | _suggestion(chosen)
        elif how == "tracing":
            traces = locate.trace(lm, facts, traced)
            written = _show_traces(show, traces, facts, out)
            said |= _options(traced) | {"facts": [_trace(t, e) for t, e in zip(traces, facts, strict=True)]}
        else:
            found = locate.attribute(lm, facts, range(lm.arch.n_layers), answer=answer, how=how, steps=steps)
            written = _show_neurons(show, found, facts, out)
            said |= {"facts": [_scores(found, i, edit) for i, edit in enumerate(facts)]}
        if out is not None:
            storage.write_json(out / "locate.json", said)
            show.say("Written: " + ", ".join(str(path) for path in [out / "locate.json", *written]))
            written = [out / "locate.json", *written]
        show.result(said | {"written": [str(path) for path in written]})


# ------------------------------------------------------------------------------------------------- the facts


def _facts(
    edits: Path | None,
    prompt: str | None,
    subject: str | None,
    target: str | None,
    answer: str,
    limit: int | None,
    show: Screen,
) -> "list[Edit]":
    """The facts of a file, or the one of --prompt."""
    from retcon.requests import Edit
    from retcon.sets import load_edits

    if (edits is None) == (prompt is None):
        raise RetconError('there is nothing to locate or too much; give --edits FILE, or --prompt "..." --subject S')
    if edits is not None:
        if subject is not None or target is not None:
            raise RetconError("--subject and --target go with --prompt; a file names its own")
        loaded = load_edits(edits, limit=limit)
        show.warn([*loaded.skipped, *loaded.warnings])
        return loaded.items
    assert prompt is not None  # one of the two is given
    if target is None and answer in ("new", "contrast"):
        raise RetconError(f"--answer {answer} needs the new answer; add --target")
    old = None if answer in ("new", "contrast") else target
    return [Edit(_braced(prompt, subject), subject, target or UNNAMED, old)]


def _braced(prompt: str, subject: str | None) -> str:
    """The prompt with {} for a subject that is written out in it once."""
    if subject is None or "{}" in prompt:
        return prompt
    if prompt.count(subject) > 1:
        raise RetconError(f"{subject!r} is in the prompt {prompt.count(subject)} times; write the one meant as {{}}")
    if subject not in prompt:
        raise RetconError(f"{subject!r} is not in the prompt; write the subject as it stands there, or as {{}}")
    return prompt.replace(subject, "{}")


# ----------------------------------------------------------------------------------------- screens and figures


def _show_traces(show: Screen, traces: "Sequence[Trace]", facts: "Sequence[Edit]", out: Path | None) -> list[Path]:
    from retcon.locate import figure, view

    written = []
    for i, (trace, edit) in enumerate(zip(traces, facts, strict=True)):
        show.print(view.heat(trace))
        show.say()
        if out is not None:
            written += figure.save(figure.heat_map(trace), out / _name(i, edit, trace.config.kind))
    return written


def _show_neurons(show: Screen, found: "Attributions", facts: "Sequence[Edit]", out: Path | None) -> list[Path]:
    from retcon.locate import figure, view

    written = []
    for i, edit in enumerate(facts):
        show.print(view.neurons(found, i, edit.text))
        if out is not None:
            written += figure.save(figure.neuron_bars(found, i, edit.text), out / _name(i, edit, found.how))
    return written


def _show_suggestion(show: Screen, lm: "LM", chosen: "Suggestion", out: Path | None) -> list[Path]:
    from retcon.locate import figure, view

    show.print(view.reasons(chosen))
    return [] if out is None else figure.save(figure.layer_bars(chosen, lm.name), out / "layers")


def _name(index: int, edit: "Edit", what: str) -> str:
    """A file's name for a fact.

    >>> from retcon.requests import Edit
    >>> _name(2, Edit("{} is in", "São Tomé / Príncipe", "x"), "mlp")
    '002-são-tomé-príncipe-mlp'
    """
    words = re.sub(r"[^\w]+", "-", (edit.subject or edit.text).lower()).strip("-")[:40]
    return f"{index:03d}-{words}-{what}"


# ---------------------------------------------------------------------------------------------------- the JSON


def _options(traced: "Tracing") -> dict[str, Any]:
    shown = {"kind": traced.kind, "noise": traced.noise, "noises": traced.noises, "seed": traced.seed}
    return shown | ({} if traced.kind == "hidden" else {"window": traced.window})


def _trace(trace: "Trace", edit: "Edit") -> dict[str, Any]:
    values = trace.restored
    layer, place = divmod(int(values.argmax()), values.shape[1])
    return {
        "id": edit.id,
        "prompt": trace.prompt,
        "subject": edit.subject,
        "answer": trace.answer,
        "token": trace.token,
        "known": trace.known,
        "high": _round(trace.high),
        "low": _round(trace.low),
        "tokens": list(trace.tokens),
        "subject_tokens": list(trace.subject),
        "strongest": {"layer": layer, "token": trace.columns[place], "probability": _round(float(values.max()))},
        "restored": [[_round(value) for value in row] for row in values.tolist()],
    }


def _scores(found: "Attributions", fact: int, edit: "Edit") -> dict[str, Any]:
    mass = found.mass()[fact].tolist()
    layers = []
    for place, layer in enumerate(found.layers):
        scores = found.scores[layer][fact]
        order = scores.abs().argsort(descending=True)[:NEURONS].tolist()
        neurons = [{"neuron": n, "score": _round(float(scores[n]))} for n in order]
        held = int(found.top(layer, 0.8)[fact].sum())
        layers.append({"layer": layer, "mass": _round(mass[place]), "neurons_for_80": held, "neurons": neurons})
    return {
        "id": edit.id,
        "prompt": edit.text,
        "subject": edit.subject,
        "answer": found.answers[fact],
        "against": found.against[fact] or None,
        "logprob": _round(float(found.logprob[fact])),
        "layers": layers,
    }


def _suggestion(chosen: "Suggestion") -> dict[str, Any]:
    return {
        "by": chosen.by,
        "share": _round(chosen.share),
        "used": chosen.used,
        "evidence": {name: [_round(value) for value in values] for name, values in chosen.evidence.items()},
        "windows": {name: list(window) for name, window in chosen.windows.items()},
    } | ({} if chosen.tracing is None else _options(chosen.tracing))


def _round(value: float) -> float:
    """Six digits are more than a probability or a score is good for."""
    return float(f"{value:.6g}")
