"""Reference numbers by the plainest computation there is: fp64, dense matrices, one row at a time, no engine.

    .venv/bin/python tests/parity/record.py        # writes tests/parity/reference_numbers.json

Only the tiny model, its tokenizer and the edits are Retcon's. The equations are those of ROME (arXiv 2202.05262), MEMIT
(arXiv 2210.07229), EMMET (arXiv 2403.14236), AlphaEdit (arXiv 2410.02355), PMET (arXiv 2308.08742), BLUE (arXiv
2502.03748) and ECE (doi 10.1145/3696410.3714835) as the docstrings of Retcon state them. Record again only when a
change of the mathematics is meant, and say so in CHANGELOG.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retcon.requests import Edit
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer

FILE = Path(__file__).with_name("reference_numbers.json")

FAMILIES = ("llama", "gpt2", "granite")
"""RoPE and a gated MLP; Conv1D, biases and LayerNorm; a residual multiplier of a half."""
BLOCKS = {"llama": "model.layers", "gpt2": "transformer.h", "granite": "model.layers"}
MLP_OUT = {"llama": "mlp.down_proj", "gpt2": "mlp.c_proj", "granite": "mlp.down_proj"}
ATTN_OUT = {"llama": "self_attn.o_proj", "gpt2": "attn.c_proj", "granite": "self_attn.o_proj"}
GAIN = {"llama": 1.0, "gpt2": 1.0, "granite": 0.5}

FACTS = 3
TEMPLATES = ("", "The tower is in Paris. ", "He plays chess. ")
LAYERS = (1, 2)
STEPS, WEIGHT_DECAY, KL, CLAMP, STOP = 6, 0.5, 0.0625, 0.75, 5e-2
RATES = {"adam": (0.3, 0.9), "normalised": (0.12, 0.5)}
"""Learning rate and decay of the mean gradient, of each way to descend."""
RIDGE = 3.0
WEIGHT, MU = 20.0, 0.3
"""EMMET's."""
L2, ENERGY = 2.0, 0.05
"""AlphaEdit's ridge, and the share of the statistics' trace that its null space may have."""
CHOSEN = (3, 5, 8, 13, 21, 34, 55, 89)
"""Coordinates of a key that a restricted solve may use."""
TEXT = (
    "The river is in the north of the country, near the sea.",
    "She was born in a small town by the river, and she worked there for most of her life.",
    "The company that made the plane is located in the city of Chicago.",
    "The teacher wrote a book on the history of the river, in the language of that country.",
    "My favourite city is in the south, and the capital of Peru is Lima.",
    "They say that chess is a sport too, and that the phone was made by Nokia.",
) * 3


class Plain:
    """A tiny model in fp64 and the few things done with it."""

    def __init__(self, family: str) -> None:
        self.model: Any = tiny_model(family, dtype=torch.float64)
        self.model.requires_grad_(False)
        self.tokenizer: Any = tiny_tokenizer("fast")
        self.gain = GAIN[family]
        self.family = family

    def block(self, layer: int) -> Any:
        return self.model.get_submodule(f"{BLOCKS[self.family]}.{layer}")

    def path(self, layer: int) -> str:
        return f"{BLOCKS[self.family]}.{layer}.{MLP_OUT[self.family]}"

    def attention(self, layer: int) -> Any:
        return self.model.get_submodule(f"{BLOCKS[self.family]}.{layer}.{ATTN_OUT[self.family]}")

    def projection(self, layer: int) -> Any:
        return self.model.get_submodule(self.path(layer))

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def row(self, edit: Edit, template: str) -> tuple[list[int], int]:
        """Ids of a prompt, and the index of the token that holds the subject's last character."""
        before, after = edit.prompt.split("{}")
        text = template + before + str(edit.subject) + after
        last = len(template + before + str(edit.subject)) - 1
        offsets = self.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        (site,) = (i for i, (start, end) in enumerate(offsets) if start <= last < end)
        return self.ids(text), site

    @contextmanager
    def shifted(self, module: Any, site: int, delta: Tensor) -> Iterator[None]:
        """Add `delta` to the hidden state that a module returns at one token."""

        def add(_module: Any, _inputs: Any, output: Any) -> Any:
            states = (output[0] if isinstance(output, tuple) else output).clone()
            states[0, site] += delta
            return (states, *output[1:]) if isinstance(output, tuple) else states

        hook = module.register_forward_hook(add)
        yield
        hook.remove()

    def seen(self, module: Any, ids: list[int], site: int, *, entering: bool = False) -> Tensor:
        """What a module returns, or is given, at one token."""
        kept: list[Tensor] = []
        hook = module.register_forward_hook(
            lambda _m, inputs, output: kept.append(
                inputs[0] if entering else output[0] if isinstance(output, tuple) else output
            )
        )
        self.model(torch.tensor([ids]))
        hook.remove()
        return kept[0].reshape(-1, kept[0].shape[-1])[site].clone()

    def loss(self, edit: Edit, deltas: Sequence[Tensor], modules: Sequence[Any], bases: Sequence[Tensor]) -> Tensor:
        """NLL + kl KL + weight_decay sum of |delta| / |h0|^2, each row by itself."""
        target = self.ids(" " + edit.target)
        total = torch.zeros((), dtype=torch.float64)

        def logits(ids: list[int], site: int, *, moved: bool) -> Tensor:
            with ExitStack() as stack:
                for module, delta in zip(modules, deltas, strict=True):
                    if moved:
                        stack.enter_context(self.shifted(module, site, delta))
                found: Tensor = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            return found

        for template in TEMPLATES:
            ids, site = self.row(edit, template)
            logprobs = logits(ids + target, site, moved=True)
            hits = [logprobs[len(ids) - 1 + t, token] for t, token in enumerate(target)]
            total = total - torch.stack(hits).mean() / len(TEMPLATES)
        ids, site = self.row(Edit("{} is a", edit.subject, "thing"), "")
        clean, now = (logits(ids, site, moved=moved)[site] for moved in (False, True))
        total = total + KL * (now.exp() * (now - clean)).sum()
        for delta, base in zip(deltas, bases, strict=True):
            total = total + WEIGHT_DECAY * delta.norm() / base.norm() ** 2
        return total

    def search(
        self, edit: Edit, modules: Sequence[Any], optimizer: str = "adam"
    ) -> tuple[list[Tensor], list[Tensor], float]:
        """Clean states, deltas and last loss of one fact: the descent written out, STEPS - 1 updates at most."""
        lr, momentum = RATES[optimizer]
        bases = [self.seen(module, *self.row(edit, "")) for module in modules]
        deltas, firsts, seconds = ([torch.zeros_like(base) for base in bases] for _ in range(3))
        value = math.nan
        for step in range(1, STEPS):
            moving = [delta.clone().requires_grad_() for delta in deltas]
            loss = self.loss(edit, moving, modules, bases)
            value = loss.item()
            if value < STOP:
                break
            for i, gradient in enumerate(torch.autograd.grad(loss, moving)):
                if optimizer == "adam":
                    firsts[i] = momentum * firsts[i] + (1 - momentum) * gradient
                    seconds[i] = 0.999 * seconds[i] + 0.001 * gradient**2
                    spread = (seconds[i] / (1 - 0.999**step)).sqrt() + 1e-8
                    deltas[i] = deltas[i] - lr * (firsts[i] / (1 - momentum**step)) / spread
                else:  # a step of lr |h0| along the running mean of the gradient's direction
                    firsts[i] = momentum * firsts[i] + gradient / gradient.norm()
                    deltas[i] = deltas[i] - lr * bases[i].norm() * firsts[i] / firsts[i].norm()
                deltas[i] = deltas[i] * min(1.0, float(CLAMP * bases[i].norm() / deltas[i].norm()))
        return bases, deltas, value

    def moments(self, layer: int) -> tuple[Tensor, int]:
        """C = (1/T) sum k k^T over TEXT, in rows of 256 ids."""
        ids = [token for text in TEXT for token in self.ids(text + "\n")]
        rows = [ids[start : start + 256] for start in range(0, len(ids), 256)]
        keys: list[Tensor] = []
        hook = self.projection(layer).register_forward_hook(lambda _m, inputs, _o: keys.append(inputs[0]))
        for row in rows:
            self.model(torch.tensor([row]))
        hook.remove()
        K = torch.cat([key.reshape(-1, key.shape[-1]) for key in keys])
        return K.T @ K / len(K), len(K)

    def write(self, layer: int, change: Tensor) -> None:
        """Add an (out, in) matrix to the projection's weight."""
        weight = self.projection(layer).weight
        weight.data += change.T if self.family == "gpt2" else change


def safe(second: Tensor, count: int) -> Tensor:
    """C with a small ridge where there were few tokens for its width."""
    width = len(second)
    eps = 1e-3 if count < width else 1e-6 if count < 10 * width else 0.0
    return second + eps * second.diagonal().mean() * torch.eye(width, dtype=torch.float64)


def searches(plain: Plain, edits: Sequence[Edit]) -> dict[str, Any]:
    """Loss and gradient at a fixed shift, and the outcome of the search, at both sites."""
    found: dict[str, Any] = {}
    for site, module in (("layer_out", plain.block(2)), ("module_out", plain.projection(2))):
        rows = []
        for number, edit in enumerate(edits):
            base = plain.seen(module, *plain.row(edit, ""))
            fixed = fixed_delta(base, number).requires_grad_()
            loss = plain.loss(edit, [fixed], [module], [base])
            (gradient,) = torch.autograd.grad(loss, fixed)
            numbers: dict[str, Any] = {
                "base_norm": base.norm().item(),
                "fixed_loss": loss.item(),
                "fixed_gradient_norm": gradient.norm().item(),
            }
            for optimizer in RATES:
                _, (delta,), last = plain.search(edit, [module], optimizer)
                numbers[optimizer] = {
                    "delta_norm": delta.norm().item(),
                    "delta_first": delta[0].item(),
                    "last_loss": last,
                }
            rows.append(numbers)
        found[site] = rows
    return found


def fixed_delta(base: Tensor, number: int) -> Tensor:
    """A shift that is not zero: a third of the clean state's length, in the direction (sin 1, sin 2, ...)."""
    direction = torch.sin(torch.arange(1, len(base) + 1, dtype=torch.float64) + number)
    shift: Tensor = base.norm() / 3 * direction / direction.norm()
    return shift


def keys_of(plain: Plain, edits: Sequence[Edit], layer: int) -> Tensor:
    """K: keys at the subject, half of the bare prompt's, half of the templates' mean; a column a fact."""
    columns = []
    for edit in edits:
        seen = [plain.seen(plain.projection(layer), *plain.row(edit, text), entering=True) for text in TEMPLATES]
        columns.append(seen[0] / 2 + torch.stack(seen[1:]).mean(0) / 2)
    return torch.stack(columns, 1)


def states_of(plain: Plain, edits: Sequence[Edit], module: Any) -> Tensor:
    """What a module returns at the subject of the bare prompts; a column a fact."""
    return torch.stack([plain.seen(module, *plain.row(edit, "")) for edit in edits], 1)


def targets_of(plain: Plain, edits: Sequence[Edit], modules: Sequence[Any]) -> Tensor:
    """h0 + delta of the last of the modules; a column a fact."""
    found = [plain.search(edit, modules) for edit in edits]
    return torch.stack([bases[-1] + deltas[-1] for bases, deltas, _ in found], 1)


def restored(plain: Plain) -> None:
    """Take all changes off."""
    for layer in LAYERS:
        plain.projection(layer).weight.data = Plain(plain.family).projection(layer).weight.data


Rule = Callable[[int, Tensor, Tensor], Tensor]
"""From the layer, K and its share of R to the change of the weight."""


def spread(plain: Plain, edits: Sequence[Edit], rule: Rule) -> dict[int, Tensor]:
    """Changes of all layers to targets at the last one, each taking its even share; they stay on."""
    top = plain.block(LAYERS[-1])
    targets = targets_of(plain, edits, [top])
    changes = {}
    for index, layer in enumerate(LAYERS):
        K = keys_of(plain, edits, layer)
        R = (targets - states_of(plain, edits, top)) / plain.gain / (len(LAYERS) - index)
        changes[layer] = rule(layer, K, R)
        plain.write(layer, changes[layer])
    return changes


def at_every_layer(plain: Plain, edits: Sequence[Edit], rule: Rule) -> dict[int, Tensor]:
    """Changes of all layers (BLUE has two), each to targets sought at it on the model so far, in full; they stay on."""
    changes = {}
    for layer in LAYERS:
        block = plain.block(layer)
        targets = targets_of(plain, edits, [block])
        R = (targets - states_of(plain, edits, block)) / plain.gain
        changes[layer] = rule(layer, keys_of(plain, edits, layer), R)
        plain.write(layer, changes[layer])
    return changes


def norms(name: str, changes: Mapping[int, Tensor]) -> dict[str, float]:
    return {f"{name}_layer_{layer}": change.norm().item() for layer, change in changes.items()}


def memit_rule(plain: Plain) -> Rule:
    """R K^T (lambda C + K K^T)^{-1}, by a dense inverse."""
    moments = {layer: plain.moments(layer) for layer in LAYERS}

    def rule(layer: int, K: Tensor, R: Tensor) -> Tensor:
        change: Tensor = R @ K.T @ torch.linalg.inv(RIDGE * safe(*moments[layer]) + K @ K.T)
        return change

    return rule


def memit(plain: Plain, edits: Sequence[Edit]) -> dict[str, float]:
    """MEMIT over two layers, BLUE on it, and its solve on some coordinates alone, as ECE has it."""
    rule = memit_rule(plain)
    moments = {layer: plain.moments(layer) for layer in LAYERS}

    def restricted(layer: int, K: Tensor, R: Tensor) -> Tensor:
        chosen = list(CHOSEN)
        A = RIDGE * safe(*moments[layer])[chosen][:, chosen] + K[chosen] @ K[chosen].T
        change = torch.zeros(len(R), len(K), dtype=torch.float64)
        change[:, chosen] = R @ K[chosen].T @ torch.linalg.inv(A)
        return change

    found: dict[str, float] = {}
    for name, way, one in (
        ("memit", spread, rule),
        ("memit_blue", at_every_layer, rule),
        ("restricted", spread, restricted),
    ):
        found |= norms(name, way(plain, edits, one))
        restored(plain)
    return found


def emmet(plain: Plain, edits: Sequence[Edit]) -> dict[str, float]:
    """EMMET as published, R (K^T (w C)^{-1} K + mu I)^{-1} K^T (w C)^{-1}, with mu and without."""
    moments = {layer: plain.moments(layer) for layer in LAYERS}
    found: dict[str, float] = {}
    for name, mu in (("emmet", MU), ("emmet_exact", 0.0)):

        def rule(layer: int, K: Tensor, R: Tensor, mu: float = mu) -> Tensor:
            A = torch.linalg.inv(WEIGHT * safe(*moments[layer]))
            core = torch.linalg.inv(K.T @ A @ K + mu * torch.eye(K.shape[1], dtype=torch.float64))
            change: Tensor = R @ core @ K.T @ A
            return change

        found |= norms(name, spread(plain, edits, rule))
        restored(plain)
    return found


def alphaedit(plain: Plain, edits: Sequence[Edit]) -> dict[str, float]:
    """AlphaEdit as published, R K^T P (K_p K_p^T P + K K^T P + L2 I)^{-1}: a batch, and a second on top of it."""
    projectors, past = {}, {}
    for layer in LAYERS:
        sizes, directions = torch.linalg.eigh(plain.moments(layer)[0])
        free = directions[:, sizes.clamp_min(0).cumsum(0) <= ENERGY * sizes.clamp_min(0).sum()]
        projectors[layer] = free @ free.T
        past[layer] = torch.zeros(len(sizes), 0, dtype=torch.float64)

    def rule(layer: int, K: Tensor, R: Tensor) -> Tensor:
        P, before = projectors[layer], past[layer]
        past[layer] = torch.cat([before, K], 1)
        system = before @ before.T @ P + K @ K.T @ P + L2 * torch.eye(len(P), dtype=torch.float64)
        change: Tensor = R @ K.T @ P @ torch.linalg.inv(system)
        return change

    found = {f"alphaedit_free_{layer}": float(P.trace()) for layer, P in projectors.items()}
    found |= norms("alphaedit", spread(plain, edits[:-1], rule))
    found |= norms("alphaedit_second", spread(plain, edits[-1:], rule))
    restored(plain)
    return found


def pmet(plain: Plain, edits: Sequence[Edit]) -> dict[str, float]:
    """PMET: attention and MLP shifted together, the MLP's part written in shares of 1 / sqrt(layers left)."""
    rule = memit_rule(plain)
    top = LAYERS[-1]
    written = plain.projection(top)
    targets = targets_of(plain, edits, [plain.attention(top), written])
    changes = {}
    for index, layer in enumerate(LAYERS):
        R = (targets - states_of(plain, edits, written)) / math.sqrt(len(LAYERS) - index)
        changes[layer] = rule(layer, keys_of(plain, edits, layer), R)
        plain.write(layer, changes[layer])
    restored(plain)
    return norms("pmet", changes)


def rome(plain: Plain, edit: Edit) -> dict[str, float]:
    """Frobenius norms of the two forms of ROME's change of layer 2, by a dense inverse."""
    layer = 2
    C = safe(*plain.moments(layer))
    module = plain.projection(layer)
    (base,), (delta,), _ = plain.search(edit, [module])
    seen = [plain.seen(module, *plain.row(edit, text), entering=True) for text in TEMPLATES]
    bare, mean = seen[0], torch.stack(seen).mean(0)
    u = torch.linalg.inv(C) @ mean
    published = torch.outer(delta, u) / (bare @ u)
    consistent = torch.outer(base + delta - module(mean[None])[0], u) / (mean @ u)
    return {"rome": published.norm().item(), "r_rome": consistent.norm().item()}


def record() -> dict[str, Any]:
    """All numbers, by family."""
    edits = tiny_edits(FACTS)
    found = {}
    for family in FAMILIES:
        plain = Plain(family)
        methods = (memit, emmet, alphaedit, pmet)
        numbers = {name: value for method in methods for name, value in method(plain, edits).items()}
        found[family] = {"search": searches(plain, edits), **numbers, **rome(plain, edits[0])}
    return found


if __name__ == "__main__":
    FILE.write_text(json.dumps(record(), indent=2) + "\n", encoding="utf-8")
