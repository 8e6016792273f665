"""The target search, plain and slow: what `retcon.values` must agree with and is timed against.

One fact at a time; at every step the whole rows go through the whole model and logits are taken at every position, as
in published implementations. Nothing here is shared with the fast search but the tokens and the options.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from retcon import hooks, tokens
from retcon.arch import frozen
from retcon.lm import LM
from retcon.requests import Edit
from retcon.values import SearchConfig

__all__ = ["PlainSearch", "search_one"]


class PlainSearch:
    """The search of one fact."""

    def __init__(self, lm: LM, edit: Edit, config: SearchConfig, templates: Sequence[str] = ("",)) -> None:
        self.lm, self.config = lm, config
        self.target = tokens.target_ids(lm, lm.render(edit.text), edit.target)
        rows, self.sites = [], []
        for text in templates:
            found = tokens.locate_subject(lm, edit.prompt, edit.subject or "", text)
            rows.append(found.ids + self.target[:-1])
            self.sites.append(found.site)
        found = tokens.locate_subject(lm, "{} is a", edit.subject or "")
        rows.append(found.ids)
        self.sites.append(found.site)
        width = max(len(row) for row in rows)
        self.lengths = [len(row) for row in rows]
        self.ids = torch.zeros(len(rows), width, dtype=torch.long, device=lm.device)
        self.mask = torch.zeros_like(self.ids)
        for i, row in enumerate(rows):  # padded on the right: no position changes
            self.ids[i, : len(row)] = torch.tensor(row)
            self.mask[i, : len(row)] = 1
        with frozen(lm.model), torch.no_grad():
            logits, states = self._run(None)
        self.base = states[0, self.sites[0]].clone()
        self.clean = logits[-1, self.sites[-1]].log_softmax(-1)

    def _run(self, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits of all rows at all positions, and the site module's output."""
        module = (
            self.lm.block(self.config.layer)
            if self.config.site == "layer_out"
            else self.lm.projection(self.config.layer)
        )
        kept: list[Tensor] = []

        def shifted(states: Tensor) -> Tensor:
            kept.append(states.clone())  # falcon adds to it in place
            if delta is None:
                return states
            shape = states.shape
            states = states.reshape(len(self.sites), -1, shape[-1]).clone()
            for row, site in enumerate(self.sites):
                states[row, site] = states[row, site] + delta
            return states.reshape(shape)

        with hooks.rewritten(module, shifted):
            logits: Tensor = self.lm.model(input_ids=self.ids, attention_mask=self.mask, use_cache=False).logits
        wide = logits if logits.dtype == torch.float64 else logits.float()
        states = kept[0].reshape(len(self.sites), -1, kept[0].shape[-1])
        return wide, states if self.base_dtype is None else states.to(self.base_dtype)

    @property
    def base_dtype(self) -> torch.dtype | None:
        """Shifts are fp32 on half-precision models."""
        return torch.float32 if self.lm.dtype in (torch.bfloat16, torch.float16) else None

    def loss(self, delta: Float[Tensor, " d"]) -> Float[Tensor, ""]:
        """J(delta) as in `retcon.values`."""
        logits, _ = self._run(delta)
        logprobs = logits.log_softmax(-1)
        nll = logits.new_zeros(())
        for row in range(len(self.sites) - 1):
            start = self.lengths[row] - len(self.target)
            for t, token in enumerate(self.target):
                nll = nll - logprobs[row, start + t, token] / len(self.target)
        nll = nll / (len(self.sites) - 1)
        now = logprobs[-1, self.sites[-1]]
        drift = (now.exp() * (now - self.clean)).sum()
        decay: Tensor = self.config.weight_decay * delta.norm() / self.base.norm() ** 2
        return nll + self.config.kl * drift + decay

    def loss_and_gradient(self, delta: Float[Tensor, " d"]) -> tuple[Float[Tensor, ""], Float[Tensor, " d"]]:
        """J and its gradient at a given shift."""
        with frozen(self.lm.model):
            delta = delta.detach().requires_grad_()
            loss = self.loss(delta)
            (gradient,) = torch.autograd.grad(loss, delta)
        return loss.detach(), gradient


@dataclass(frozen=True, slots=True)
class PlainResult:
    """What the plain search found."""

    base: Float[Tensor, " d"]
    delta: Float[Tensor, " d"]
    losses: list[float]


def search_one(lm: LM, edit: Edit, config: SearchConfig, templates: Sequence[str] = ("",)) -> PlainResult:
    """Adam on one fact's shift, by `torch.optim`, with the stop and the clamp of the published methods."""
    plain = PlainSearch(lm, edit, config, templates)
    delta = torch.zeros_like(plain.base).requires_grad_()
    optimizer = torch.optim.Adam([delta], lr=config.lr)
    losses: list[float] = []
    with frozen(lm.model):
        for step in range(config.steps):
            optimizer.zero_grad()
            loss = plain.loss(delta)
            losses.append(loss.item())
            if losses[-1] < config.stop or step == config.steps - 1:
                break
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                limit = config.clamp * plain.base.norm()
                if delta.norm() > limit:
                    delta.mul_(limit / delta.norm())
    return PlainResult(plain.base, delta.detach(), losses)
