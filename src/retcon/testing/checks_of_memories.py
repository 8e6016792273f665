"""The contract of methods, its clauses on patches that look at the prompt (`routes = True`); others pass at once."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from retcon import forward, patch, tokens
from retcon.errors import PatchError
from retcon.patch import LowRank, Patch, Step, describe_base
from retcon.patch.base import projection
from retcon.patch.context import ROOT
from retcon.testing.contract import Check, Trial

__all__ = ["CHECKS"]

_NEW_TOKENS = 5
_FOREIGN = (
    "1, 2, 3, 5",
    "The teacher wrote a book",
    "What is the name of the river?",
    "chess is",
    "She was born in",
    "0 0 0",
)
"""Prompts that nobody edited, and that are like none of the edits; on a random model a memory may still take some."""


def rows_and_paddings_agree(trial: Trial) -> None:
    """Padded on the left or on the right, in a batch with others or alone, a row gets the same logits."""
    if not _routes(trial):
        return
    wide = trial.wide()
    rows = [tokens.encode(wide.lm, wide.lm.render(edit.text)) for edit in wide.edits]
    rows.append(rows[0][:-1])
    rows += [tokens.encode(wide.lm, wide.lm.render(text)) for text in _FOREIGN]
    with wide.patch.on(wide.lm.model):
        alone = torch.cat([_last_logits(wide, [row], [len(row)]) for row in rows])
        left = _last_logits(wide, rows, [len(row) for row in rows])
        right = _last_logits(wide, rows, [0] * len(rows))
    plain = _last_logits(wide, rows, [len(row) for row in rows])
    bare = torch.cat([_last_logits(wide, [row], [len(row)]) for row in rows])
    for number, wanted in enumerate(alone):
        for how, found in (("left", left), ("right", right)):
            gap = float((found[number] - wanted).abs().max() / wanted.abs().max())
            assert gap < 1e-4, f"padded on the {how}, row {number} differs from itself alone by {gap:.1e}"
    # a context adds columns, so that there the row must be alone to be run in the same shape
    patched, unpatched = (alone, bare) if ROOT in wide.patch.entries else (left, plain)
    same = [torch.equal(patched[number], unpatched[number]) for number in range(len(wide.edits) + 1, len(rows))]
    assert any(same), "prompts that were not edited are all answered otherwise than by the bare model"
    assert not torch.equal(left[0], plain[0]), "an edited prompt is answered as by the bare model"


def generation_agrees_with_and_without_a_cache(trial: Trial) -> None:
    """Greedy generation with a cache, without one, and teacher forcing say the same after edited prompts."""
    if not _routes(trial):
        return
    wide = trial.wide()
    prompts = [tokens.encode(wide.lm, wide.lm.render(edit.text)) for edit in wide.edits]
    with wide.patch.on(wide.lm.model):
        cached = forward.greedy(wide.lm, prompts, max_new_tokens=_NEW_TOKENS, stop_at_eos=False)
        uncached = [list[int]() for _ in prompts]
        for _ in range(_NEW_TOKENS):
            rows = [prompt + ids for prompt, ids in zip(prompts, uncached, strict=True)]
            splits = [len(prompt) for prompt in prompts]
            with patch.prompts(wide.lm.model, max(splits) - 1):
                best = _last_logits(wide, rows, splits).argmax(-1).tolist()
            uncached = [[*ids, token] for ids, token in zip(uncached, best, strict=True)]
        forced = forward.score(wide.lm, [(prompt, [ids]) for prompt, ids in zip(prompts, cached, strict=True)])
        # a second continuation runs against the prompt's cache
        twice = forward.score(
            wide.lm, [(prompt, [[*ids, 5], ids]) for prompt, ids in zip(prompts, cached, strict=True)]
        )
    assert cached == uncached, "with a cache something else is said than without one"
    assert all(all(scored.hits) for (scored,) in forced), "what is said is not the argmax under teacher forcing"
    for (one,), (_, other) in zip(forced, twice, strict=True):
        gap = max(abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True))
        assert gap < 1e-4, f"as a second continuation an answer is rated otherwise, by {gap:.1e}"


def what_looks_at_the_prompt_is_no_change_of_a_weight(trial: Trial) -> None:
    """Merging, a LoRA, a model of its own and `delta` are refused with the reason, and nothing is written."""
    if not _routes(trial):
        return
    made, model = trial.patch, trial.lm.model
    deeds: list[Callable[[], object]] = [
        lambda: made.merge(model),
        lambda: made.to_lora(trial.folder / "lora"),
        lambda: made.to_lora(trial.folder / "lora", rank=4),
        lambda: made.export_model(model, trial.lm.tokenizer, trial.folder / "model"),
        *(entry.delta for entry in made.entries.values() if not entry.folds),
    ]
    for deed in deeds:
        reason = _refusal(deed)
        assert "prompt" in reason, f"the refusal gives no reason: {reason or 'there is none'}"
    assert not list(trial.folder.iterdir()), "a refused export left something"
    assert not patch.active(model)


def it_mixes_with_changes_of_weights(trial: Trial) -> None:
    """Added to a low-rank change of the same and of another module, saved and loaded, it acts as both on the model."""
    if not _routes(trial):
        return
    made, lm = trial.patch, trial.lm
    path = next((path for path in made.entries if path != ROOT), lm.arch.mlp_out[0])
    other = next(name for name in lm.arch.mlp_out if name != path)
    for where in ([other], [path], [other, path]):
        change = _low_rank(trial, where)
        for first, second in ((change, made), (made, change)):
            with first.on(lm.model), second.on(lm.model):
                stacked = trial.logits()
            whole = first + second
            folder = whole.save(trial.folder / f"{len(where)}-{where[0]}-{first is made}")
            loaded = Patch.load(folder)
            assert loaded.id == whole.id
            for one in (whole, loaded, whole.compress()):
                with one.on(lm.model):
                    found = trial.logits()
                gap = float((found.double() - stacked.double()).abs().max() / stacked.double().abs().max())
                assert gap < 1e-5, f"as a sum the two differ from both on the model by {gap:.1e}"
            assert "key" in whole.summary
    nothing = made.scale(0.0)
    plain = trial.logits()
    with nothing.on(lm.model):
        gap = float((trial.logits() - plain).abs().max() / plain.abs().max())
    assert gap < 1e-5, "scaled by zero, the patch has an effect"


CHECKS: tuple[Check, ...] = (
    rows_and_paddings_agree,
    generation_agrees_with_and_without_a_cache,
    what_looks_at_the_prompt_is_no_change_of_a_weight,
    it_mixes_with_changes_of_weights,
)


def _routes(trial: Trial) -> bool:
    return bool(getattr(trial.method, "routes", False))


def _last_logits(trial: Trial, rows: Sequence[list[int]], splits: Sequence[int]) -> Tensor:
    """Logits after each row's last token."""
    aligned = forward.align(rows, splits, trial.lm.device)
    columns = torch.arange(aligned.width, device=trial.lm.device)
    last = torch.where(aligned.mask.bool(), columns, -1).amax(1)
    with trial.lm.inference():
        logits: Tensor = forward.call(trial.lm, aligned.ids, aligned.mask, aligned.positions).logits
    return logits[torch.arange(len(rows)), last].double()


def _low_rank(trial: Trial, paths: Sequence[str]) -> Patch:
    """A small random change of some projections."""
    generator = torch.Generator().manual_seed(3)
    entries = {}
    for path in paths:
        d_out, d_in = projection(trial.lm.model, path)[1]
        U, V = torch.randn(d_out, 2, generator=generator), torch.randn(d_in, 2, generator=generator)
        entries[path] = LowRank(0.02 * U, V)
    step = Step(method="hand", config={"paths": list(paths)}, edits=({"id": f"hand-{len(paths)}"},))
    return Patch(dict(entries), describe_base(trial.lm.model, paths, name=trial.lm.name), (step,))


def _refusal(deed: Callable[[], object]) -> str:
    try:
        deed()
    except PatchError as error:
        return str(error)
    return ""
