"""The target search, plain and slow: what `retcon.values` must agree with and is timed against.

One fact at a time; at every step the whole rows go through the whole model and logits are taken at every position, as
in published implementations. Nothing here is shared with the fast search but the tokens and the options.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retcon import hooks, tokens
from retcon.arch import frozen
from retcon.lm import LM
from retcon.requests import Edit
from retcon.values import SearchConfig

__all__ = ["PlainSearch", "search_one"]


@dataclass(frozen=True, slots=True)
class PlainTerms:
    """J(delta), term by term."""

    nll: Float[Tensor, ""]
    drift: Float[Tensor, ""]
    """kl * KL."""
    decay: Float[Tensor, ""]
    hit: bool
    """Whether every target token of every row is the argmax."""


class PlainSearch:
    """The search of one fact; `*parts` is an axis of two, attention and MLP, at `attn_and_mlp_out`, else nothing."""

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

    @property
    def modules(self) -> list[nn.Module]:
        """The modules whose outputs are shifted, one a part."""
        layer, lm = self.config.layer, self.lm
        if self.config.site == "layer_out":
            return [lm.block(layer)]
        if self.config.site == "module_out":
            return [lm.projection(layer)]
        return [lm.module(lm.arch.attn_out[layer]), lm.projection(layer)]

    @property
    def base_dtype(self) -> torch.dtype | None:
        """Shifts are fp32 on half-precision models."""
        return torch.float32 if self.lm.dtype in (torch.bfloat16, torch.float16) else None

    def _run(self, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits of all rows at all positions, and the site modules' outputs (rows, width, *parts, d)."""
        kept: dict[int, Tensor] = {}
        modules = self.modules
        shifts = [None] * len(modules) if delta is None else list(delta.view(len(modules), -1))

        def shifted(states: Tensor, part: int, shift: Tensor | None) -> Tensor:
            kept[part] = states.clone()  # falcon adds to it in place
            if shift is None:
                return states
            shape = states.shape
            states = states.reshape(len(self.sites), -1, shape[-1]).clone()
            for row, site in enumerate(self.sites):
                states[row, site] = states[row, site] + shift
            return states.reshape(shape)

        with ExitStack() as stack:
            for part, (module, shift) in enumerate(zip(modules, shifts, strict=True)):
                stack.enter_context(hooks.rewritten(module, partial(shifted, part=part, shift=shift)))
            logits: Tensor = self.lm.model(input_ids=self.ids, attention_mask=self.mask, use_cache=False).logits
        wide = logits if logits.dtype == torch.float64 else logits.float()
        parts = [kept[part].reshape(len(self.sites), -1, kept[part].shape[-1]) for part in range(len(modules))]
        states = parts[0] if len(parts) == 1 else torch.stack(parts, 2)
        return wide, states if self.base_dtype is None else states.to(self.base_dtype)

    def terms(self, delta: Float[Tensor, "*parts d"]) -> PlainTerms:
        """The terms of J(delta) as in `retcon.values`."""
        logits, _ = self._run(delta)
        logprobs = logits.log_softmax(-1)
        nll, hit = logits.new_zeros(()), True
        for row in range(len(self.sites) - 1):
            start = self.lengths[row] - len(self.target)
            for t, token in enumerate(self.target):
                nll = nll - logprobs[row, start + t, token] / len(self.target)
                hit = hit and int(logprobs[row, start + t].argmax()) == token
        nll = nll / (len(self.sites) - 1)
        now = logprobs[-1, self.sites[-1]]
        drift = (now.exp() * (now - self.clean)).sum()
        decay = self.config.weight_decay * (delta.norm(dim=-1) / self.base.norm(dim=-1) ** 2).sum()
        return PlainTerms(nll, self.config.kl * drift, decay, hit)

    def loss(self, delta: Float[Tensor, "*parts d"]) -> Float[Tensor, ""]:
        """J(delta) as in `retcon.values`, its likelihood at full weight."""
        terms = self.terms(delta)
        return terms.nll + terms.drift + terms.decay

    def loss_and_gradient(
        self, delta: Float[Tensor, "*parts d"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "*parts d"]]:
        """J and its gradient at a given shift."""
        with frozen(self.lm.model):
            delta = delta.detach().requires_grad_()
            loss = self.loss(delta)
            (gradient,) = torch.autograd.grad(loss, delta)
        return loss.detach(), gradient


@dataclass(frozen=True, slots=True)
class PlainResult:
    """What the plain search found."""

    base: Float[Tensor, "*parts d"]
    delta: Float[Tensor, "*parts d"]
    losses: list[float]


def search_one(
    lm: LM,
    edit: Edit,
    config: SearchConfig,
    templates: Sequence[str] = ("",),
    *,
    start: Float[Tensor, "*parts d"] | None = None,
    radius: Float[Tensor, "*parts"] | None = None,
) -> PlainResult:
    """Adam on one fact's shift, by `torch.optim`, with the stop and the clamp of the published methods."""
    plain = PlainSearch(lm, edit, config, templates)
    limit = config.clamp * plain.base.norm(dim=-1) if radius is None else radius
    delta = torch.zeros_like(plain.base) if start is None else _shortened(start, limit)
    delta.requires_grad_()
    optimizer = torch.optim.Adam([delta], lr=config.lr)
    losses: list[float] = []
    weight = 1.0
    with frozen(lm.model):
        for step in range(config.steps):
            optimizer.zero_grad()
            terms = plain.terms(delta)
            loss = weight * terms.nll + terms.drift + terms.decay
            losses.append(loss.item())
            stop = losses[-1] < config.stop or (config.relax and terms.hit and terms.drift.item() <= 0.01)
            if (stop and step >= config.earliest_stop) or step == config.steps - 1:
                break
            weight = 0.1 if config.relax and terms.hit else 1.0
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                delta.copy_(_shortened(delta, limit))
    return PlainResult(plain.base, delta.detach(), losses)


def _shortened(delta: Float[Tensor, "*parts d"], limit: Float[Tensor, "*parts"]) -> Float[Tensor, "*parts d"]:
    """Each part cut to its limit where it is longer."""
    length = delta.detach().norm(dim=-1)
    return torch.where((length > limit)[..., None], delta.detach() * (limit / length)[..., None], delta.detach())
