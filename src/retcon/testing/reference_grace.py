"""GRACE, plain and slow: what `retcon.methods.grace` must agree with and is timed against.

One edit at a time; at every step the whole row goes through the whole model and logits are taken at every position, as
in published implementations. Keys are looked at one by one. Nothing here is shared with the fast way but the tokens and
the options. Left out is what the published method has not: keys of their own for edits that lose theirs, and deletion.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from retcon import hooks, tokens
from retcon.arch import frozen
from retcon.lm import LM
from retcon.methods.grace import GRACEConfig
from retcon.requests import Edit

__all__ = ["PlainGrace", "PlainKey"]


@dataclass(slots=True)
class PlainKey:
    """One key of the codebook."""

    key: Float[Tensor, " d_in"]
    value: Float[Tensor, " d_out"]
    radius: float
    label: list[int]
    """Ids of the answer."""


@dataclass
class PlainGrace:
    """A codebook that edits enter one after the other."""

    lm: LM
    config: GRACEConfig
    """Its steps, lr, stop, replacement, end_token and widest count; values begin at the layer's own output."""
    layer: int
    radius: float
    """Of a new key."""
    keys: list[PlainKey] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)
    """Of each edit, the loss at each evaluation."""

    def edit(self, edit: Edit) -> None:
        """Enter an edit: decide on its key, then seek that key's value."""
        prompt, label = self._ids(edit)
        with frozen(self.lm.model), torch.no_grad():
            query, output = self._read(prompt)
        near, distance = self._nearest(query)
        if near is not None and distance <= 1e-6 * (1 + float(query.norm())):
            if near.label != label:
                near.label, near.value = label, output
            chosen = near
        elif near is None or distance > self.radius + near.radius:
            chosen = self._added(PlainKey(query, output, self.radius, label))
        elif near.label != label:
            near.radius = distance / 2 - 1e-5
            chosen = self._added(PlainKey(query, output, distance / 2, label))
        elif distance <= near.radius:
            chosen = near
        elif self.config.widest is None or distance <= self.config.widest * self.radius:
            near.radius, chosen = distance, near
        else:
            chosen = self._added(PlainKey(query, near.value.clone(), self.radius, label))
        chosen.value = self._sought(prompt, label, chosen.value)

    def answers(self, edit: Edit) -> bool:
        """Whether every token of the answer is the argmax, with the codebook deciding by the prompt."""
        prompt, label = self._ids(edit)
        with frozen(self.lm.model), torch.no_grad():
            near, distance = self._nearest(self._read(prompt)[0])
            hit = near is not None and distance <= near.radius
            logits = self._logits(prompt, label, near.value if near is not None and hit else None)
        return all(int(logits[len(prompt) - 1 + t].argmax()) == token for t, token in enumerate(label))

    def _ids(self, edit: Edit) -> tuple[list[int], list[int]]:
        text = self.lm.render(edit.text)
        label = tokens.target_ids(self.lm, text, edit.target)
        if self.config.end_token and self.lm.tokenizer.eos_token_id is not None:
            label = [*label, int(self.lm.tokenizer.eos_token_id)]
        return tokens.encode(self.lm, text), label

    def _read(self, prompt: Sequence[int]) -> tuple[Tensor, Tensor]:
        """What the layer reads and gives at the prompt's last token."""
        module = {"here": self.lm.projection(self.layer)}
        with hooks.record(module, "input") as read, hooks.record(module, "output") as gave:
            self.lm.model(input_ids=torch.tensor([list(prompt)], device=self.lm.device), use_cache=False)
        return tuple(states["here"].reshape(len(prompt), -1)[-1].float() for states in (read, gave))  # type: ignore[return-value]

    def _nearest(self, query: Tensor) -> tuple[PlainKey | None, float]:
        """The nearest key, the newest of several."""
        near, least = None, float("inf")
        for one in self.keys:
            distance = float((one.key - query).norm())
            if distance <= least:
                near, least = one, distance
        return near, least

    def _added(self, key: PlainKey) -> PlainKey:
        self.keys.append(key)
        return key

    def _logits(self, prompt: Sequence[int], label: Sequence[int], value: Tensor | None) -> Tensor:
        """Logits at every position of the prompt and its answer, with the value in its places."""
        last = len(prompt) - 1
        modes = {"replace_last": [last], "replace_prompt": list(range(last))}
        places = modes.get(self.config.replacement, list(range(len(prompt) + len(label))))

        def put(states: Tensor) -> Tensor:
            changed = states.reshape(-1, states.shape[-1]).clone()
            if value is not None:
                changed[places] = value.to(states.dtype)
            return changed.view_as(states)

        ids = torch.tensor([[*prompt, *label]], device=self.lm.device)
        with ExitStack() as stack:
            stack.enter_context(hooks.rewritten(self.lm.projection(self.layer), put))
            logits: Tensor = self.lm.model(input_ids=ids, use_cache=False).logits[0]
        return logits if logits.dtype == torch.float64 else logits.float()

    def _sought(self, prompt: Sequence[int], label: Sequence[int], start: Tensor) -> Tensor:
        """The best value that Adam meets from `start` on."""
        value = start.to(torch.promote_types(self.lm.dtype, torch.float32)).clone().requires_grad_()
        adam = torch.optim.Adam([value], lr=self.config.lr)
        best, best_loss, best_held = start, float("inf"), False
        losses: list[float] = []
        with frozen(self.lm.model), torch.enable_grad():
            for step in range(self.config.steps):
                adam.zero_grad()
                rows = self._logits(prompt, label, value)[len(prompt) - 1 : -1]
                loss = -torch.stack([row.log_softmax(-1)[token] for row, token in zip(rows, label, strict=True)]).mean()
                held = all(int(row.argmax()) == token for row, token in zip(rows, label, strict=True))
                losses.append(float(loss.detach()))
                if (held and not best_held) or (held == best_held and losses[-1] < best_loss):
                    best, best_loss, best_held = value.detach().float().clone(), losses[-1], held
                if (held and losses[-1] < self.config.stop) or step == self.config.steps - 1:
                    break
                loss.backward()
                adam.step()
        self.losses.append(losses)
        return best
