"""Reference numbers by the plainest computation there is: fp64, dense matrices, one row at a time, no engine.

    .venv/bin/python tests/parity/record.py        # writes tests/parity/reference_numbers.json

Only the tiny model, its tokenizer and the edits are Retcon's. The equations are those of ROME (arXiv 2202.05262) and
MEMIT (arXiv 2210.07229) as the docstrings of `retcon.values` and `retcon.solve` state them. Record again only when a
change of the mathematics is meant, and say so in CHANGELOG.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
GAIN = {"llama": 1.0, "gpt2": 1.0, "granite": 0.5}

FACTS = 3
TEMPLATES = ("", "The tower is in Paris. ", "He plays chess. ")
LAYERS = (1, 2)
STEPS, WEIGHT_DECAY, KL, CLAMP, STOP = 6, 0.5, 0.0625, 0.75, 5e-2
RATES = {"adam": (0.3, 0.9), "normalised": (0.12, 0.5)}
"""Learning rate and decay of the mean gradient, of each way to descend."""
RIDGE = 3.0
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

    def loss(self, edit: Edit, delta: Tensor, module: Any, base: Tensor) -> Tensor:
        """NLL + kl KL + weight_decay |delta| / |h0|^2, each row by itself."""
        target = self.ids(" " + edit.target)
        total = torch.zeros((), dtype=torch.float64)
        for template in TEMPLATES:
            ids, site = self.row(edit, template)
            with self.shifted(module, site, delta):
                logprobs = self.model(torch.tensor([ids + target])).logits[0].log_softmax(-1)
            hits = [logprobs[len(ids) - 1 + t, token] for t, token in enumerate(target)]
            total = total - torch.stack(hits).mean() / len(TEMPLATES)
        ids, site = self.row(Edit("{} is a", edit.subject, "thing"), "")
        clean = self.model(torch.tensor([ids])).logits[0, site].log_softmax(-1)
        with self.shifted(module, site, delta):
            now = self.model(torch.tensor([ids])).logits[0, site].log_softmax(-1)
        total = total + KL * (now.exp() * (now - clean)).sum()
        value: Tensor = total + WEIGHT_DECAY * delta.norm() / base.norm() ** 2
        return value

    def search(self, edit: Edit, module: Any, optimizer: str = "adam") -> tuple[Tensor, Tensor, float]:
        """Clean state, delta and last loss of one fact: the descent written out, STEPS - 1 updates at most."""
        lr, momentum = RATES[optimizer]
        base = self.seen(module, *self.row(edit, ""))
        delta, first, second = (torch.zeros_like(base) for _ in range(3))
        value = math.nan
        for step in range(1, STEPS):
            moving = delta.clone().requires_grad_()
            loss = self.loss(edit, moving, module, base)
            value = loss.item()
            if value < STOP:
                break
            (gradient,) = torch.autograd.grad(loss, moving)
            if optimizer == "adam":
                first = momentum * first + (1 - momentum) * gradient
                second = 0.999 * second + 0.001 * gradient**2
                delta = delta - lr * (first / (1 - momentum**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            else:  # a step of lr |h0| along the running mean of the gradient's direction
                first = momentum * first + gradient / gradient.norm()
                delta = delta - lr * base.norm() * first / first.norm()
            delta = delta * min(1.0, float(CLAMP * base.norm() / delta.norm()))
        return base, delta, value

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
            loss = plain.loss(edit, fixed, module, base)
            (gradient,) = torch.autograd.grad(loss, fixed)
            numbers: dict[str, Any] = {
                "base_norm": base.norm().item(),
                "fixed_loss": loss.item(),
                "fixed_gradient_norm": gradient.norm().item(),
            }
            for optimizer in RATES:
                _, delta, last = plain.search(edit, module, optimizer)
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


def memit(plain: Plain, edits: Sequence[Edit]) -> dict[str, float]:
    """Frobenius norms of MEMIT's changes over two layers, by dense inverses."""
    moments = {layer: plain.moments(layer) for layer in LAYERS}
    top = LAYERS[-1]
    targets = []
    for edit in edits:
        base, delta, _ = plain.search(edit, plain.block(top))
        targets.append(base + delta)
    norms = {}
    for index, layer in enumerate(LAYERS):
        keys, left = [], []
        for edit, target in zip(edits, targets, strict=True):
            seen = [plain.seen(plain.projection(layer), *plain.row(edit, text), entering=True) for text in TEMPLATES]
            keys.append(seen[0] / 2 + torch.stack(seen[1:]).mean(0) / 2)
            left.append((target - plain.seen(plain.block(top), *plain.row(edit, ""))) / plain.gain)
        K, R = torch.stack(keys, 1), torch.stack(left, 1) / (len(LAYERS) - index)
        change = R @ K.T @ torch.linalg.inv(RIDGE * safe(*moments[layer]) + K @ K.T)
        plain.write(layer, change)
        norms[f"memit_layer_{layer}"] = change.norm().item()
    for layer in LAYERS:
        plain.projection(layer).weight.data = Plain(plain.family).projection(layer).weight.data
    return norms


def rome(plain: Plain, edit: Edit) -> dict[str, float]:
    """Frobenius norms of the two forms of ROME's change of layer 2, by a dense inverse."""
    layer = 2
    C = safe(*plain.moments(layer))
    module = plain.projection(layer)
    base, delta, _ = plain.search(edit, module)
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
        found[family] = {"search": searches(plain, edits), **memit(plain, edits), **rome(plain, edits[0])}
    return found


if __name__ == "__main__":
    FILE.write_text(json.dumps(record(), indent=2) + "\n", encoding="utf-8")
