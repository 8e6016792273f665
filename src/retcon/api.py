"""`retcon.edit` and `retcon.forget`: a model, a tokenizer and facts or questions to a patch, in one call."""

from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from retcon import methods
from retcon.errors import RequestError
from retcon.forget.asking import asking
from retcon.forget.kept import given_targets
from retcon.forget.merging import Mode, Way
from retcon.forget.plan import Kept, Recipe, kept_by, planned, question_of, told
from retcon.forget.target import Target
from retcon.forget.usual import METHOD, TARGET, usual
from retcon.lm import LM
from retcon.patch import Patch
from retcon.requests import (
    Edit,
    Forget,
    ForgetCase,
    check_answer,
    check_conflicts,
    check_forgets,
    forget_case_from_dict,
    from_dict,
    left_to_keep,
    retained,
)
from retcon.targets import Store

__all__ = ["edit", "forget"]


def edit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    edits: Iterable[Edit | Mapping[str, Any]],
    method: str = "memit",
    *,
    state: Patch | None = None,
    retain: Iterable[str] = (),
    chat: bool = False,
    cache: bool = True,
    **config: Any,
) -> Patch:
    """Compute a patch that changes facts of a model; the model and the tokenizer are left as they are.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        edits: the facts, as `Edit` or as dicts with the files' field names (`prompt`, `subject`, `target_new` ...).
        method: one of `METHODS`.
        state: a patch to go on from; the result contains it.
        retain: texts to keep, for methods that use them.
        chat: whether prompts are rendered through the chat template.
        cache: whether found targets are looked up and kept on disk.
        **config: options of the method; `retcon methods NAME` lists them.

    Returns:
        The patch: `with patch.on(model): ...` runs the edited model.

    Raises:
        RequestError: an edit is wrong, or two edits give one text different targets.
        RetconError: there is no such method or option, or no edit.
        UnsupportedModel: the model cannot be edited this way.
    """
    if isinstance(edits, Edit | Mapping):
        raise RequestError("edits is a single edit; give a list of one")
    if isinstance(retain, str):
        raise RequestError("retain is a single text; give a list of one")
    facts = [fact if isinstance(fact, Edit) else from_dict(fact) for fact in edits]
    check_conflicts(facts)
    rule = methods.method(method, **config)
    stores = [Store.shared()] if cache else []
    return rule.edit(LM.wrap(model, tokenizer, chat=chat), facts, retain=tuple(retain), state=state, stores=stores)


def forget(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Iterable[Forget | ForgetCase | Mapping[str, Any]],
    method: str = METHOD,
    *,
    target: str | None = None,
    targets: Mapping[str, str] | str | PathLike[str] | None = None,
    retain: Iterable[Kept | Forget | ForgetCase | Mapping[str, Any]] = (),
    merge_queries: int | Literal["all"] = 1,
    merge_mode: Mode = "concat",
    merge_by: Way = "group",
    chat: bool | None = None,
    state: Patch | None = None,
    seed: int = 0,
    keep_questions: bool = False,
    cache: bool = True,
    **config: Any,
) -> Patch:
    """Compute a patch with which a model refuses to answer questions; the model and the tokenizer stay as they are.

    The patch's `info["forget"]` says what kind of forgetting it is, how each question was taken up, and by which
    subject; neither it nor anything else that is written tells the answers or, by default, the questions.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        items: the questions with their answers, as `Forget` or as dicts with the files' field names.
        method: one of `METHODS`; by default the recipe that was measured to be the best.
        target: what is said instead: a family of `retcon.forget.FAMILIES`. None is the family of the run that wrote
            `targets`, or else `contextual`.
        targets: the user's own targets by a question's text or id, or a file of them, such as the `targets.jsonl` of an
            earlier run; they go before the family's.
        retain: questions to keep, pairs of a question and its answer, or what `items` takes: methods that use such
            texts get them, those that unlearn by an objective with the answers, and subjects are told from them. One
            that is to be forgotten too is left out, with a warning.
        merge_queries: questions that share one edit at most, or "all".
        merge_mode: `concat` (one prompt) or `mean_key` (one shift).
        merge_by: which questions go together: `group`, `order`, `random` or `key`.
        chat: whether questions are rendered through the chat template; None for where there is one.
        state: a patch to go on from; the result contains it.
        seed: of all that is drawn, in the method too.
        keep_questions: whether the patch tells the questions and their subjects.
        cache: whether found targets are looked up and kept on disk, under hashes.
        **config: options of the method; `retcon methods NAME` lists them. With questions to keep, closed-form
            editors begin from those of `retcon.forget.usual`.

    Raises:
        RequestError: a question is wrong, or two of them or of a group contradict each other, or `target` and a file
            of an earlier run do.
        RetconError: there is no such method, family or option, or the method cannot merge so.
        UnsupportedModel: the model cannot be edited this way.
    """
    if isinstance(items, Forget | ForgetCase | Mapping):
        raise RequestError("items is a single question; give a list of one")
    cases = [_case(item) for item in items]
    kept, _ = check_forgets([case.forget for case in cases])
    fields = methods.METHODS[method].Config.__dataclass_fields__ if method in methods.METHODS else ()
    texts = tuple(left_to_keep(_keeping(retain), cases, question_of))
    given_seed = {"seed": seed} if "seed" in fields else {}
    rule = methods.method(method, **given_seed | dict(usual(method, retain=len(texts))) | config)
    lm = asking(LM.wrap(model, tokenizer), chat)
    chosen = [cases[n] for n in kept]
    given: Mapping[str, str | Target] | None
    given, family = targets if isinstance(targets, Mapping) else None, None
    if targets is not None and not isinstance(targets, Mapping):
        given, family = given_targets(fspath(targets), [case.forget for case in chosen], target)
    recipe = Recipe(
        target=target or family or TARGET, merge_queries=merge_queries, merge_mode=merge_mode, merge_by=merge_by,
        seed=seed, keep_questions=keep_questions,
    )  # fmt: skip
    plan = planned(lm, chosen, rule, recipe, retain=texts, given=given, cache=cache)
    stores = [Store.shared()] if cache else []
    return told(rule.edit(lm, plan.edits, retain=kept_by(rule, texts), state=state, stores=stores), plan)


def _keeping(retain: Iterable[Kept | Forget | ForgetCase | Mapping[str, Any]]) -> list[Kept]:
    """What is to stay, as questions or as pairs of a question and its answer.

    Raises:
        RequestError: it is something else.
    """
    if isinstance(retain, str | Forget | ForgetCase | Mapping):
        raise RequestError("retain is a single question; give a list of one")
    return [_kept(one) for one in retain]


def _kept(one: Any) -> Kept:
    if isinstance(one, str):
        return one
    if isinstance(one, Mapping):
        one = retained(one)
    if isinstance(one, ForgetCase):
        one = one.forget
    if isinstance(one, Forget):
        return one.question, one.answer
    if isinstance(one, tuple | list) and len(one) == 2 and all(isinstance(text, str) for text in one):
        return one[0], one[1]
    raise RequestError(f"retain holds {one!r}; give questions, or pairs of a question and its answer")


def _case(item: Forget | ForgetCase | Mapping[str, Any]) -> ForgetCase:
    """The question with what is known of it.

    Raises:
        RequestError: it holds its own answer, or a field is wrong.
    """
    if isinstance(item, Mapping):
        return forget_case_from_dict(item)
    case = item if isinstance(item, ForgetCase) else ForgetCase(item)
    check_answer(case.forget)
    return case
