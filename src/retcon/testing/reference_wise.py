"""WISE, plain and slow: what `retcon.methods.wise` must agree with and is timed against.

One edit at a time; at every step all rows, ordinary ones too, go through the whole model with the side weight in the
place of the layer's own, and logits are taken at every position, as in published implementations. Scores are summed
token by token. Nothing here is shared with the fast way but the tokens and the options. There is one memory, which is
never closed, and a score is a mean at any length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retcon import hooks, tokens
from retcon.arch import frozen
from retcon.lm import LM
from retcon.methods.wise import WISEConfig
from retcon.patch.base import projection
from retcon.patch.gated import ACTIVATIONS
from retcon.requests import Edit

__all__ = ["PlainLoss", "PlainRow", "PlainWise"]


class PlainLoss(NamedTuple):
    """The loss of one evaluation, in its parts."""

    answer: float
    """Mean over rows of the mean cross-entropy of the answer's tokens, in nats."""
    margins: float
    replay: float

    @property
    def total(self) -> float:
        """Their sum."""
        return self.answer + self.margins + self.replay


class PlainRow(NamedTuple):
    """A prompt and its answer as ids, and the tokens of the prompt that are its subject."""

    prompt: list[int]
    target: list[int]
    subject: Sequence[int] = ()


@dataclass
class PlainWise:
    """A side memory that edits are written into one after the other."""

    lm: LM
    config: WISEConfig
    layer: int
    activation: str
    scale: float
    """What the margins are multiplied by."""
    templates: Sequence[str]
    """Contexts that each prompt is also trained in."""
    mask: Bool[Tensor, "d_out d_in"]
    """The entries that may change."""
    threshold: float = float("inf")
    written: list[Edit] = field(default_factory=list)

    def __post_init__(self) -> None:
        module, _, transposed = projection(self.lm.model, self.lm.arch.mlp_out[self.layer])
        stored: Tensor = module.weight  # type: ignore[assignment]
        weight = stored.detach().T if transposed else stored.detach()
        self.weight = weight.to(torch.promote_types(self.lm.dtype, torch.float32)).clone()
        self.side = self.weight.clone()
        bias: Any = module.bias
        self.bias: Tensor | None = None if bias is None else bias.detach()

    @property
    def delta(self) -> Float[Tensor, "d_out d_in"]:
        """The side weight less the layer's own."""
        return self.side - self.weight

    def write(
        self,
        edit: Edit,
        ordinary: Sequence[str],
        others: Sequence[Edit] = (),
        own: Edit | None = None,
    ) -> list[PlainLoss]:
        """Train the memory on an edit; the loss of each evaluation.

        Args:
            edit: the edit.
            ordinary: prompts that are to stay outside.
            others: edits of other memories, one each, that are replayed.
            own: an earlier edit of this memory that is replayed with them.
        """
        rows = self._rows(edit)
        against = [PlainRow(tokens.encode(self.lm, self.lm.render(text)), []) for text in ordinary]
        groups = [[row._replace(target=[]) for row in self._rows(one)] for one in [*others, *([own] if own else [])]]
        found: list[PlainLoss] = []
        low, high = self.weight - self.config.clip, self.weight + self.config.clip
        with frozen(self.lm.model), torch.enable_grad():
            for _ in range(self.config.steps):
                side = self.side.requires_grad_()
                answer, margins, apart = self._losses(side, rows, against)
                replay = self._replay(side, groups, own is not None)
                loss = answer + margins + replay
                (slope,) = torch.autograd.grad(loss, side)
                self.side = side.detach()
                found.append(PlainLoss(float(answer.detach()), float(margins.detach()), float(replay.detach())))
                if self._done(found, apart):
                    break
                self.side = (self.side - self.config.lr * slope * self.mask).clamp(low, high)
        self.written.append(edit)
        return found

    def _done(self, found: Sequence[PlainLoss], apart: bool) -> bool:
        """Whether the last loss is small enough to end."""
        last, config = found[-1], self.config
        if config.stop_on == "answer":
            return apart and last.answer <= config.stop and last.replay <= config.stop
        change = abs(last.total - found[-2].total) if len(found) > 1 else float("inf")
        return change <= config.stop_change and last.total <= config.stop

    def measure(self) -> None:
        """The threshold: the least score of the edits written, each the mean over its rows."""
        scores = [torch.stack(self._prompt_scores(self._rows(edit))).mean() for edit in self.written]
        self.threshold = float(torch.stack(scores).min())

    def takes(self, edit: Edit) -> bool:
        """Whether an edit's bare prompt passes the memory."""
        (score,) = self._prompt_scores(self._rows(edit)[:1])
        return float(score) > self.config.act_ratio * self.threshold

    def answers(self, edit: Edit) -> bool:
        """Whether every token of the answer is the argmax after the bare prompt, which is routed first."""
        row = self._rows(edit)[0]
        with frozen(self.lm.model), torch.no_grad():
            logits, _, _ = self._run(self.side if self.takes(edit) else self.weight, [row])
        last = len(row.prompt) - 1
        return all(int(logits[0, last + t].argmax()) == token for t, token in enumerate(row.target))

    def _rows(self, edit: Edit) -> list[PlainRow]:
        rows = []
        for prefix in ("", *self.templates[: self.config.templates]):
            text = self.lm.render(prefix + edit.text)
            prompt = tokens.encode(self.lm, text)
            subject = _covering(self.lm, prompt, edit.subject) if self.config.scope == "subject" else []
            rows.append(PlainRow(prompt, tokens.target_ids(self.lm, text, edit.target), subject))
        return rows

    def _run(self, side: Tensor, rows: Sequence[PlainRow]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, own outputs and side outputs of the layer, at all positions of all rows."""
        width = max(len(row.prompt) + len(row.target) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long, device=self.lm.device)
        attended = torch.zeros_like(ids)
        for place, row in enumerate(rows):  # padded on the right: no position changes
            length = len(row.prompt) + len(row.target)
            ids[place, :length] = torch.tensor(row.prompt + row.target)
            attended[place, :length] = 1
        module = self.lm.projection(self.layer)
        kept: dict[str, Tensor] = {}

        def through(states: Tensor) -> Tensor:
            read = seen["here"].reshape(len(rows), width, -1).to(side.dtype)
            kept["own"] = states.reshape(len(rows), width, -1).to(side.dtype)
            kept["side"] = torch.nn.functional.linear(read, side, None if self.bias is None else self.bias.to(side))
            return kept["side"].to(states.dtype).view_as(states)

        with hooks.record({"here": module}, "input") as seen, hooks.rewritten(module, through):
            logits: Tensor = self.lm.model(input_ids=ids, attention_mask=attended, use_cache=False).logits
        return (logits if logits.dtype == torch.float64 else logits.float()), kept["own"], kept["side"]

    def _score(self, own: Tensor, side: Tensor, places: Sequence[int]) -> Tensor:
        """The mean over some tokens of a row of how far the side weight takes the layer's output."""
        act = ACTIVATIONS[self.activation]
        apart = own.new_zeros(())
        for place in places:
            moved = side[place] - own[place] if self.config.score == "linear" else act(side[place]) - act(own[place])
            apart = apart + torch.linalg.vector_norm(moved) / len(places)
        return apart

    def _prompt_scores(self, rows: Sequence[PlainRow]) -> list[Tensor]:
        """The routing score of each row."""
        with frozen(self.lm.model), torch.no_grad():
            _, own, side = self._run(self.side, rows)
            return [self._score(own[r], side[r], range(len(row.prompt))) for r, row in enumerate(rows)]

    def _losses(
        self, side: Tensor, rows: Sequence[PlainRow], ordinary: Sequence[PlainRow]
    ) -> tuple[Tensor, Tensor, bool]:
        """The loss of the answers, that of the margins, and whether the one between the rows is kept."""
        logits, own, changed = self._run(side, [*rows, *ordinary])
        logprobs = logits.log_softmax(-1)
        answer = logits.new_zeros(())
        inside, outside = [], []
        for r, row in enumerate(rows):
            for t, token in enumerate(row.target):
                answer = answer - logprobs[r, len(row.prompt) - 1 + t, token] / len(row.target) / len(rows)
            more = len(row.target) - 1 if self.config.margin_tokens == "all" else 0
            places = list(range(len(row.prompt) + more))
            if self.config.scope == "subject":
                inside.append(self._score(own[r], changed[r], row.subject))
                outside.append(self._score(own[r], changed[r], [place for place in places if place not in row.subject]))
            else:
                inside.append(self._score(own[r], changed[r], places))
        if self.config.scope == "prompt":
            for r, row in enumerate(ordinary, len(rows)):
                outside.append(self._score(own[r], changed[r], range(len(row.prompt))))
        alpha, beta, gamma = (self.scale * side for side in (self.config.alpha, self.config.beta, self.config.gamma))
        margins = _positive([b - a + gamma for b in outside for a in inside])
        margins = margins + _positive([b - alpha for b in outside]) + _positive([beta - a for a in inside])
        apart = all(float(a.detach() - b.detach()) >= gamma for b in outside for a in inside)
        return answer, margins.to(answer), apart

    def _replay(self, side: Tensor, groups: Sequence[Sequence[PlainRow]], own: bool) -> Tensor:
        """The loss of what is replayed; with `own`, the last group is of this very memory."""
        total = side.new_zeros(())
        kept_out = len(groups) - own
        for number, rows in enumerate(groups):
            _, gave, changed = self._run(side, rows)
            scores = [self._score(gave[r], changed[r], range(len(row.prompt))) for r, row in enumerate(rows)]
            if number < kept_out:
                total = total + _positive([one - self.scale * self.config.alpha for one in scores]) / kept_out
            else:
                total = total + _positive([self.scale * self.config.beta - one for one in scores])
        return total


def _positive(values: Sequence[Tensor]) -> Tensor:
    """The mean of the positive ones; zero where there is none."""
    above = [value for value in values if float(value.detach()) > 0]
    return torch.stack(above).mean() if above else torch.zeros((), device=values[0].device, dtype=values[0].dtype)


def _covering(lm: LM, prompt: list[int], subject: str | None) -> list[int]:
    """The shortest run of tokens whose text holds the subject, the last of several."""
    for length in range(1, len(prompt) + 1):
        for start in range(len(prompt) - length, -1, -1):
            if subject and subject in tokens.decode(lm, prompt[start : start + length]):
                return list(range(start, start + length))
    return []
