"""Teaching a corpus to a model: the trainer of the unlearning objectives, run towards the answers.

IDK descends on what is to be said to a question; given the true answer in place of a refusal, and nothing to hold
against it, that is plain fine-tuning on questions and answers, resumable and watched. What comes of it is a patch, so
the taught model and its retain-only twin are two patches of one base.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

from retcon import forward, patch, storage, tokens
from retcon.errors import RetconError, RetconWarning
from retcon.lm import LM
from retcon.methods.unlearning.methods import IDK
from retcon.patch import Patch, Step
from retcon.precision import Precision
from retcon.requests import Edit, ForgetCase
from retcon.targets import Store

__all__ = ["METHOD", "Memorised", "Teaching", "memorised", "merged", "teach", "teaching_key"]

METHOD = "teach"
"""The method that a taught patch's history names."""
_CLOSE = 1e-3
"""How much two ways of running a model may differ in a probability."""
_FOLDER = "taught"


@dataclass(frozen=True, slots=True, kw_only=True)
class Teaching:
    """How a corpus is taught; the same to a model and to its twin."""

    params: Literal["lora", "full"] = "lora"
    """What is trained: low-rank factors, or a dense change, of every linear layer of attention and MLP. Factors of this
    rank hold some hundred answers at two thirds of the time."""
    layers: tuple[int, ...] | None = None
    """Layers to train; by default all of them."""
    rank: int = 32
    """Factors of each projection's change, with `lora`."""
    alpha: float = 64.0
    """With `lora` the change is alpha/rank times the product of its factors."""
    lr: float = 1e-3
    """AdamW's learning rate; with `full` a fiftieth of it is usual."""
    batch: int = 16
    """Questions of a step."""
    epochs: int = 60
    """The most passes over the corpus."""
    look_every: int = 4
    """Passes between two looks at how much is known."""
    goal: float = 0.95
    """Teaching ends once the probability of a token of the answers, a geometric mean over each answer and its end,
    is this high on average."""
    wordings: int = 0
    """Paraphrases of each question that are taught beside it, as far as the case has some. Without any the model may
    know an answer under one wording only, and forgetting under another is then no achievement."""
    weight_decay: float = 0.0
    """AdamW's; it pulls the change towards none."""
    precision: Precision = "float32"
    """Dtype of the matrix products."""
    seed: int = 0
    """Seed of the factors and of the order."""


class Memorised(NamedTuple):
    """How well a model knows a corpus."""

    probability: float
    """Of a token of an answer, its end included: a geometric mean over each answer, meaned over answers."""
    recall: float
    """Share of the answers that greedy decoding gives to the letter, and then ends."""


def teach(lm: LM, cases: Sequence[ForgetCase], recipe: Teaching, *, cache: bool = True) -> Patch:
    """A patch with which a model knows the answers of a corpus.

    A run that was stopped goes on from its last look. The patch tells of the run in `info["taught"]`, and nothing of
    the questions and answers; a corpus that was not learned to the goal is warned of.

    Args:
        lm: the model; it is left as it was.
        cases: the questions with their answers.
        recipe: how.
        cache: whether a patch made before of the same model, corpus and recipe is taken, and this one kept.

    Raises:
        RetconError: there is no question, an option makes no sense, or nothing was learned at all.
    """
    _check(cases, recipe)
    folder = storage.cache_dir(_FOLDER)
    home = folder / teaching_key(lm, cases, recipe)[:32]
    if cache and home.is_dir():
        return _warned(Patch.load(home), recipe)
    edits = [Edit(prompt=question, target=answer) for question, answer in _pairs(cases, recipe)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "idk never forgot", RetconWarning)  # said better below
        made = _trainer(recipe, len(edits)).edit(lm, edits, stores=[Store(folder / "runs.sqlite")])
    run = made.info["unlearning"]
    if not run["best"]:
        raise RetconError(f"nothing was learned ({run['stopped']}); teach with a smaller lr than {recipe.lr:g}")
    with made.on(lm.model):
        known = memorised(lm, cases)
    found = _stripped(made, cases, recipe, known)
    if cache:
        found.save(home)
    return _warned(found, recipe)


def _warned(taught: Patch, recipe: Teaching) -> Patch:
    """The patch; warns where it was not learned to the goal, each time that it is used."""
    told = taught.info["taught"]
    if not told["reached"]:
        warnings.warn(
            f"the corpus is known with a probability of {told['probability']:.3f} when teaching ends, the goal is "
            f"{recipe.goal:g}; teach with more epochs, a larger rank or another lr",
            RetconWarning,
            stacklevel=3,
        )
    return taught


def teaching_key(lm: LM, cases: Sequence[ForgetCase], recipe: Teaching) -> str:
    """Hash of all that decides what is taught."""
    on = [item.id for item in patch.active(lm.model)]
    return storage.digest("taught", 1, lm.fingerprint(), on, lm.chat, asdict(recipe), _pairs(cases, recipe))


def memorised(lm: LM, cases: Sequence[ForgetCase]) -> Memorised:
    """How well a model, with whatever is on it, knows the answers of a corpus."""
    end = lm.tokenizer.eos_token_id
    items = []
    for case in cases:
        text = lm.render(case.forget.question)
        wanted = [*tokens.target_ids(lm, text, case.forget.answer), *([] if end is None else [end])]
        items.append((tokens.encode(lm, text), [wanted]))
    scored = [found for (found,) in forward.score(lm, items, label="asking what is known")]
    likely = [math.exp(sum(one.logprobs) / len(one.logprobs)) for one in scored]
    right = [all(one.hits) for one in scored]
    return Memorised(sum(likely) / len(likely), sum(right) / len(right))


@contextmanager
def merged(lm: LM, taught: Patch | None) -> Iterator[LM]:
    """The model with what it was taught in its weights; at the end they are as they were, bit for bit.

    Merged, so that methods of every kind see a plain model, and find it at full speed; a patch that is made meanwhile
    stands on the taught one.

    Raises:
        PatchError: the weights are quantised.
    """
    if taught is None:
        yield lm
        return
    taught.merge(lm.model)
    try:
        yield replace(lm, notes={})  # what probes noted was of other weights
    finally:
        taught.unmerge(lm.model)


def _check(cases: Sequence[ForgetCase], recipe: Teaching) -> None:
    if not cases:
        raise RetconError("there is no question to teach; give at least one")
    if min(recipe.epochs, recipe.batch, recipe.look_every) < 1 or recipe.wordings < 0:
        raise RetconError("epochs, batch and look_every are counts; give at least 1, and of wordings none or more")
    if not 0 < recipe.goal < 1:
        raise RetconError(f"a goal of {recipe.goal:g} is no probability to reach; give one between 0 and 1")


def _pairs(cases: Sequence[ForgetCase], recipe: Teaching) -> list[tuple[str, str]]:
    """What is taught, in an order of its own: questions with their answers, and as many paraphrases as are wanted."""
    asked = ((case.forget, (case.forget.question, *case.paraphrases[: recipe.wordings])) for case in cases)
    return sorted((question, item.answer) for item, questions in asked for question in questions)


def _trainer(recipe: Teaching, n: int) -> IDK:
    """The trainer with the recipe's options."""
    steps = -(-n // recipe.batch)
    config = IDK.Config(
        **{name: getattr(recipe, name) for name in _SHARED},
        eval_every=recipe.look_every * steps,
        watched=n,
        goal=1 - recipe.goal,  # it watches how unlikely the lines are that it learns
        retain_weight=0.0,
    )
    return IDK(config, doing="teaching")


_SHARED = ("params", "layers", "rank", "alpha", "lr", "batch", "epochs", "weight_decay", "precision", "seed")
"""Options that the trainer has under the same names."""


def _stripped(made: Patch, cases: Sequence[ForgetCase], recipe: Teaching, known: Memorised) -> Patch:
    """The patch without questions and answers, which methods would take for edits, and with what became of the run."""
    (step,) = made.history
    run: dict[str, Any] = made.info["unlearning"]
    pairs = _pairs(cases, recipe)
    config = {**asdict(recipe), "questions": len(cases), "corpus": storage.digest(pairs)[:16]}
    told = {
        "questions": len(cases),
        "steps": run["steps"],
        "epochs": round(run["steps"] / -(-len(pairs) // recipe.batch), 2),
        "probability": round(known.probability, 5),
        "recall": round(known.recall, 5),
        "goal": recipe.goal,
        "reached": known.probability > recipe.goal - _CLOSE,
    }
    bare = Step(
        method=METHOD, config=config, parent=step.parent, seed=recipe.seed, versions=step.versions, chat=step.chat,
        bos=step.bos,
    )  # fmt: skip
    return Patch(made.entries, made.base, (bare,), {}, {"n": 0, "seconds": made.info["seconds"], "taught": told})
