"""What to ask a model: the cases as token ids, made once for the unedited and the edited model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from retcon import tokens
from retcon.arch import max_positions
from retcon.errors import RetconError
from retcon.evaluate.answers import Ids, Pair
from retcon.evaluate.generating import budget
from retcon.evaluate.prefixes import joined
from retcon.lm import LM
from retcon.metrics import METRICS
from retcon.metrics.match import gen_start
from retcon.metrics.perplexity import ordinary_text, windows
from retcon.metrics.summary import SCORES
from retcon.requests import Case

__all__ = [
    "OF_TEXT",
    "CaseQuestions",
    "Encoder",
    "Plan",
    "Question",
    "asked_freely",
    "make",
    "neighbour_openings",
    "pairs",
    "read",
    "resolve",
    "text_pairs",
]

FIRST_TOKENS = 5
"""How many greedy tokens specificity compares."""

FLUENCY_TOKENS, FLUENCY_CASES = 100, 50
"""Length of the text whose fluency is measured, and for how many cases (the first ones) it is written."""

WINDOW, TEXT_TOKENS = 512, 8_000
"""Perplexity: tokens in a window, tokens of the text in all."""

TEXT_LETTERS = 50 * TEXT_TOKENS
"""No more of a long text is tokenised."""

OF_TEXT = frozenset({"perplexity", "log_perplexity", "log_perplexity_change"})
"""Figures of ordinary text."""

TWO_HOP = ("two-hop", "2-hop")
"""Kinds of questions that need the edited fact and one more; data sets name them so."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, the edit's new answer to it, and the answers that were or are true (any of them counts)."""

    text: str
    prompt: Ids
    new: Ids
    true: tuple[Ids, ...]
    accepted: tuple[str, ...] = ()
    """What the model may begin with where it writes freely; none: it is not asked to."""
    most: int = 0
    """How many tokens it may write."""
    kind: str | None = None
    """What it asks for, of questions on what follows from an edit."""


@dataclass(frozen=True, slots=True)
class CaseQuestions:
    """All that is asked for one case."""

    edit: Question
    prefixed: tuple[Question, ...]
    paraphrases: tuple[Question, ...]
    neighbours: tuple[Question, ...]
    opening: Ids | None
    """Where free text begins, for the cases whose fluency is measured."""
    portability: tuple[Question, ...] = ()
    """What follows from the edit."""
    passages: tuple[tuple[int, tuple[Question, ...]], ...] = ()
    """The edit prompt behind running text: the length of that in tokens, and the prompt behind each passage."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything to ask of a model, and the figures that are wanted from it."""

    wanted: frozenset[str]
    """Names of `METRICS`, those that others are made of included."""
    cases: tuple[CaseQuestions, ...]
    windows: tuple[Pair, ...]
    """The text for perplexity: what is given and what is scored."""


def resolve(asked: Sequence[str]) -> frozenset[str]:
    """The figures asked for and those they are made of.

    Raises:
        RetconError: a name is not known.
    """
    for name in asked:
        if name not in METRICS:
            raise RetconError(f"there is no metric {name!r}; choose from {', '.join(METRICS)}")
    return frozenset(asked).union(*(SCORES.get(name, ()) for name in asked))


def make(
    lm: LM,
    cases: Sequence[Case],
    wanted: frozenset[str],
    prefixes: Sequence[str],
    text: str | Path | None,
    passages: Mapping[int, Sequence[str]] | None = None,
) -> Plan:
    """Turn cases, prefixes and the text for perplexity into token ids, leaving out what no wanted figure needs.

    Args:
        lm: the model, for its tokenizer.
        cases: how each edit is judged.
        wanted: names of figures.
        prefixes: what stands before the edit prompts for `efficacy_prefixed`.
        text: for perplexity.
        passages: running text by its length in tokens, to stand before the edit prompts too; none at length 0.

    Raises:
        RetconError: a prompt behind a passage is longer than the model can read.
    """
    encoder, limit = Encoder(lm), max_positions(lm.model)
    questions = []
    for n, case in enumerate(cases):
        opening = encoder.ids((*case.generation_prompts, case.edit.text)[0]) if "fluency" in wanted else None
        if n >= FLUENCY_CASES or (limit and opening and len(opening) + FLUENCY_TOKENS > limit):
            opening = None
        questions.append(_case(encoder, case, wanted, prefixes, passages or {}, opening))
    return Plan(wanted, tuple(questions), tuple(text_pairs(lm, text) if wanted & OF_TEXT else ()))


def _case(
    encoder: "Encoder",
    case: Case,
    wanted: frozenset[str],
    prefixes: Sequence[str],
    passages: Mapping[int, Sequence[str]],
    opening: Ids | None,
) -> CaseQuestions:
    edit = case.edit
    old = () if edit.old is None else (edit.old,)
    names = (encoder.plain(edit.target), *case.aliases)
    return CaseQuestions(
        edit=encoder.question(edit.text, edit.target, old, names if "efficacy_gen" in wanted else ()),
        prefixed=tuple(encoder.question(joined(prefix, edit.text), edit.target) for prefix in prefixes),
        paraphrases=tuple(
            encoder.question(prompt, edit.target, old, names if "generalization_gen" in wanted else ())
            for prompt in case.paraphrases
            if wanted & {"generalization", "generalization_prob", "generalization_gen"}
        ),
        neighbours=tuple(
            encoder.question(
                probe.prompt, edit.target, probe.answers, probe.answers if "specificity_gen" in wanted else ()
            )
            for probe in case.neighbours
            if wanted & {"specificity", "specificity_prob", "specificity_gen", "neighbourhood_kl"}
        ),
        opening=opening,
        portability=tuple(
            encoder.open_question(probe.prompt, probe.answers, probe.kind)
            for probe in case.portability
            if "portability_gen" in wanted or ("two_hop_gen" in wanted and probe.kind in TWO_HOP)
        ),
        passages=tuple(
            (length, tuple(encoder.behind(text, edit.text, edit.target) for text in texts or ("",)))
            for length, texts in passages.items()
        ),
    )


def pairs(plan: Plan, first: Mapping[Ids, Ids]) -> Iterator[Pair]:
    """Every (prompt, continuation) whose score the wanted figures need.

    Args:
        plan: what is asked.
        first: the unedited model's first greedy tokens at neighbour prompts, empty for the unedited model itself.
    """
    wanted = plan.wanted
    for case in plan.cases:
        groups: tuple[tuple[str, str, Sequence[Question]], ...] = (
            ("efficacy", "efficacy_prob", (case.edit,)),
            ("efficacy_prefixed", "", case.prefixed),
            ("generalization", "generalization_prob", case.paraphrases),
            ("", "specificity_prob", case.neighbours),
        )
        yield from ((question.prompt, question.new) for _, behind in case.passages for question in behind)
        for strict, prob, questions in groups:
            for question in questions:
                if strict in wanted or (prob in wanted and question.true):
                    yield question.prompt, question.new
                if prob in wanted:
                    yield from ((question.prompt, true) for true in question.true)
        if "specificity" in wanted:
            yield from ((question.prompt, first[question.prompt]) for question in case.neighbours if first)


def asked_freely(plan: Plan, said: Mapping[Ids, str]) -> dict[Ids, int]:
    """The prompts after which the model is to write by itself, and by how many tokens at most.

    Args:
        plan: what is asked.
        said: what the unedited model writes at neighbour prompts; only those that it gets right are asked.
    """
    found: dict[Ids, int] = {}
    for case in plan.cases:
        near = [one for one in case.neighbours if gen_start(said.get(one.prompt, ""), one.accepted)]
        for question in (case.edit, *case.paraphrases, *case.portability, *near):
            if question.accepted and question.most:
                found[question.prompt] = max(found.get(question.prompt, 0), question.most)
    return found


def neighbour_openings(plan: Plan) -> dict[Ids, int]:
    """The same of neighbour prompts, all of them: what to ask the unedited model."""
    found: dict[Ids, int] = {}
    for question in (question for case in plan.cases for question in case.neighbours if question.most):
        found[question.prompt] = max(found.get(question.prompt, 0), question.most)
    return found


def text_pairs(lm: LM, text: str | Path | None) -> list[Pair]:
    """The windows of a text (the shipped one by default): what is given, and the tokens to score.

    Where the tokenizer begins texts with a special token, each window begins with it and all its tokens are scored;
    elsewhere a window's first token is only given.
    """
    start, _ = tokens.special_ids(lm)
    ids = tokens.encode(lm, read(text)[:TEXT_LETTERS])
    body = ids[len(start) :] if ids[: len(start)] == start else ids
    limit = max_positions(lm.model)
    size = WINDOW if limit is None else min(WINDOW, limit - len(start))
    found = []
    for window in windows(body, size, TEXT_TOKENS):
        given = (*start, *window[: 0 if start else 1])
        scored = tuple(window[0 if start else 1 :])
        if scored:
            found.append((tuple(given), scored))
    return found


def read(text: str | Path | None) -> str:
    """The text itself, what a file holds, or the text shipped with the package.

    Raises:
        RetconError: the file cannot be read, or there is no text.
    """
    if text is None:
        return ordinary_text()
    if isinstance(text, Path):
        try:
            text = text.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RetconError(f"{text} cannot be read as UTF-8 text ({error}); give another text file") from None
    if not text.strip():
        raise RetconError("the text for perplexity is empty; give some paragraphs, or none to use the shipped ones")
    return text


class Encoder:
    """Texts to ids, each text once: neighbour prompts come back in many cases."""

    def __init__(self, lm: LM) -> None:
        self._lm = lm
        self._limit, self._end = max_positions(lm.model), str(lm.tokenizer.eos_token or "")
        self._prompts: dict[str, tuple[str, Ids]] = {}
        self._targets: dict[tuple[str, str], Ids] = {}

    def ids(self, prompt: str) -> Ids:
        """Of a prompt, rendered."""
        return self._rendered(prompt)[1]

    def question(self, prompt: str, new: str, true: Sequence[str] = (), accepted: Sequence[str] = ()) -> Question:
        """A prompt with its new answer, the true ones, and what is accepted where the model writes freely."""
        target = self.target(prompt, new)
        # Where the new answer is also the right one, there is nothing to prefer.
        others = [ids for ids in (self.target(prompt, answer) for answer in true) if ids != target]
        kept = tuple(others) if len(others) == len(true) else ()
        return Question(prompt, self.ids(prompt), target, kept, tuple(accepted), self._most(prompt, accepted))

    def open_question(self, prompt: str, accepted: Sequence[str], kind: str | None = None) -> Question:
        """A prompt after which the model only writes freely."""
        return Question(prompt, self.ids(prompt), (), (), tuple(accepted), self._most(prompt, accepted), kind)

    def behind(self, text: str, prompt: str, new: str) -> Question:
        """A prompt behind a text, with its new answer; without a text, the bare prompt."""
        question = self.question(joined(text, prompt) if text else prompt, new)
        if self._limit is not None and len(question.prompt) + len(question.new) > self._limit:
            raise RetconError(
                f"the model reads {self._limit} tokens, and a prompt behind running text has {len(question.prompt)}; "
                "give shorter lengths to --prefix-tokens (prefix_tokens=)"
            )
        return question

    def plain(self, target: str) -> str:
        """A target without the end token that it may end with: what is seen of it in a text."""
        return target.removesuffix(self._end).rstrip() if self._end else target

    def _most(self, prompt: str, accepted: Sequence[str]) -> int:
        """How many tokens may be written after a prompt: none where nothing is accepted, or the model has no room."""
        if not accepted:
            return 0
        most = budget(max(len(self.target(prompt, answer)) for answer in accepted))
        return most if self._limit is None else max(0, min(most, self._limit - len(self.ids(prompt))))

    def _rendered(self, prompt: str) -> tuple[str, Ids]:
        if prompt not in self._prompts:
            text = self._lm.render(prompt)
            self._prompts[prompt] = text, tuple(tokens.encode(self._lm, text))
        return self._prompts[prompt]

    def target(self, prompt: str, target: str) -> Ids:
        """Of what follows a prompt."""
        # The ids depend on the prompt only through its last letter, which says whether a space is due.
        text, _ = self._rendered(prompt)
        key = (text[-1:], target)
        if key not in self._targets:
            self._targets[key] = tuple(tokens.target_ids(self._lm, text, target))
        return self._targets[key]
