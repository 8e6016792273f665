"""Reference numbers by the plainest computation there is: fp64, dense matrices, one row at a time, no engine.

    .venv/bin/python tests/parity/record.py        # writes tests/parity/reference_numbers.json

Only the tiny model, its tokenizer and the edits are Retcon's. The equations are those of ROME (arXiv 2202.05262), MEMIT
(arXiv 2210.07229), EMMET (arXiv 2403.14236), AlphaEdit (arXiv 2410.02355), PMET (arXiv 2308.08742), BLUE (arXiv
2502.03748), ECE (doi 10.1145/3696410.3714835), EAMET (arXiv 2505.11876) and UltraEdit (arXiv 2505.14679) as the
docstrings of Retcon state them. Of a change of a weight two things are kept: its Frobenius norm, and some entries of
its product with a fixed vector, which a wrong sign or order would not leave as they are. Record again only when a
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
MLP_IN = {"llama": ("mlp.gate_proj", "mlp.up_proj"), "gpt2": ("mlp.c_fc",), "granite": ("mlp.gate_proj", "mlp.up_proj")}
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
ALIGNED = {"align_kl": 2.0, "align_mse": 8.0, "temperature": 0.07, "top": 50}
"""EAMET's."""
LENGTHS = 2.0
"""EAMET's clamp, in lengths of the key."""
FORMS: dict[str, dict[str, Any]] = {
    "code": {"kl_direction": "code", "mse_form": "code"},
    "paper": {"kl_direction": "paper", "mse_form": "paper"},
    "few": {"kl_direction": "code", "mse_form": "code", "top": 2},
    "paper_few": {"kl_direction": "paper", "mse_form": "paper", "top": 2},
}
"""What EAMET's penalty may be."""
LOOKING = (1, 4)
"""Facts whose penalty is recorded: one with a single fact before it, and one with more of them than `few` looks at."""
ULTRA: dict[str, Any] = {"lr": 1e-3, "ridge": 0.5, "eps": 1e-8, "turn": 3, "micro_batch": 2}
TURNS: dict[str, dict[str, Any]] = {
    "ultraedit": {"averaging": "micro_batch", "prior": 0},
    "ultraedit_prior": {"averaging": "none", "prior": 4},
}
"""UltraEdit as published, and with a sum over tokens and a prior."""
MORE = 5
"""Facts of the penalty and of UltraEdit, which takes two turns for them."""
ENTRIES = (0, 1, 13, 29, 63)
"""Which entries of a product or a gradient are kept."""
TOLERANCES = {
    "script": 1e-9,
    "base_norm": 1e-7,
    "delta_norm": 1e-7,
    "delta_first": 1e-6,
    "last_loss": 1e-7,
    "fixed_loss": 1e-9,
    "fixed_gradient_norm": 1e-7,
    "alphaedit_free": 1e-6,
    "change_norm": 1e-5,
    "change_product": 3e-5,
    "second_norm": 5e-5,
    "second_product": 5e-5,
    "ultraedit_norm": 1e-6,
    "ultraedit_product": 1e-6,
    "penalty": 1e-9,
    "gradient": 1e-9,
}
"""How far the script itself, or the engine, may be off: as a share of the number; of a product's entries, as a share of
the change's norm; of a gradient's, as it stands.

What is off is rounding. The factors of a patch are fp32, which is all there is in `ultraedit`, and costs 1e-7. The
engine sums statistics of fp32 products, here of a condition of up to 1e5 (gpt2), and `change` and `second` (a second
batch, after MEMIT) stand on their inverse; with products in fp64 these agree to 1e-7 too.
"""
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

    @contextmanager
    def tapped(self, path: str) -> Iterator[dict[str, Tensor]]:
        """Keep what a module reads, and a zero that is added to what it writes, whose gradient can be asked for."""
        kept: dict[str, Tensor] = {}

        def add(_module: Any, inputs: Any, output: Any) -> Any:
            kept["read"], kept["added"] = inputs[0].detach(), torch.zeros_like(output).requires_grad_()
            return output + kept["added"]

        hook = self.model.get_submodule(path).register_forward_hook(add)
        yield kept
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
        self,
        edit: Edit,
        modules: Sequence[Any],
        optimizer: str = "adam",
        *,
        length: float | None = None,
        penalty: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[list[Tensor], list[Tensor], float]:
        """Clean states, deltas and last loss of one fact: the descent written out, STEPS - 1 updates at most.

        With a `length` as EAMET has it: from along h0, so long, to LENGTHS times that, and a penalty of the shift.
        """
        lr, momentum = RATES[optimizer]
        bases = [self.seen(module, *self.row(edit, "")) for module in modules]
        deltas, firsts, seconds = ([torch.zeros_like(base) for base in bases] for _ in range(3))
        if length is not None:
            deltas = [length * base / base.norm() for base in bases]
        value = math.nan
        for step in range(1, STEPS):
            moving = [delta.clone().requires_grad_() for delta in deltas]
            loss = self.loss(edit, moving, modules, bases)
            if penalty is not None:
                loss = loss + penalty(moving[0])
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
                most = float(CLAMP * bases[i].norm()) if length is None else LENGTHS * length
                deltas[i] = deltas[i] * min(1.0, most / float(deltas[i].norm()))
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
        self.write_at(self.path(layer), change)

    def write_at(self, path: str, change: Tensor) -> None:
        """Add an (out, in) matrix to a module's weight."""
        weight: Any = self.model.get_submodule(path).weight
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


def spread(plain: Plain, edits: Sequence[Edit], rule: Rule, targets: Tensor | None = None) -> dict[int, Tensor]:
    """Changes of all layers to targets at the last one, each taking its even share; they stay on."""
    top = plain.block(LAYERS[-1])
    targets = targets_of(plain, edits, [top]) if targets is None else targets
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


def fixed_vector(width: int, seed: int) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def probe(width: int) -> Tensor:
    """What changes are multiplied with."""
    return fixed_vector(width, 2025)


def few(vector: Tensor) -> list[float]:
    """The entries of a vector that are kept."""
    entries: list[float] = vector[list(ENTRIES)].tolist()
    return entries


Numbers = dict[str, Any]
"""What is kept of a change: its `norm`, and entries of its `product` with the probe."""


def told(change: Tensor) -> Numbers:
    """The numbers of a change in (out, in) orientation."""
    return {"norm": change.norm().item(), "product": few(change @ probe(change.shape[1]))}


def by_layer(name: str, changes: Mapping[int, Tensor]) -> dict[str, Numbers]:
    return {f"{name}_layer_{layer}": told(change) for layer, change in changes.items()}


def memit_rule(plain: Plain) -> Rule:
    """R K^T (lambda C + K K^T)^{-1}, by a dense inverse."""
    moments = {layer: plain.moments(layer) for layer in LAYERS}

    def rule(layer: int, K: Tensor, R: Tensor) -> Tensor:
        change: Tensor = R @ K.T @ torch.linalg.inv(RIDGE * safe(*moments[layer]) + K @ K.T)
        return change

    return rule


def memit(plain: Plain, edits: Sequence[Edit]) -> dict[str, Numbers]:
    """MEMIT over two layers, BLUE on it, and its solve on some coordinates alone, as ECE has it."""
    rule = memit_rule(plain)
    moments = {layer: plain.moments(layer) for layer in LAYERS}

    def restricted(layer: int, K: Tensor, R: Tensor) -> Tensor:
        chosen = list(CHOSEN)
        A = RIDGE * safe(*moments[layer])[chosen][:, chosen] + K[chosen] @ K[chosen].T
        change = torch.zeros(len(R), len(K), dtype=torch.float64)
        change[:, chosen] = R @ K[chosen].T @ torch.linalg.inv(A)
        return change

    found: dict[str, Numbers] = {}
    for name, way, one in (
        ("memit", spread, rule),
        ("memit_blue", at_every_layer, rule),
        ("restricted", spread, restricted),
    ):
        found |= by_layer(name, way(plain, edits, one))
        restored(plain)
    return found


def memit_in_two(plain: Plain, edits: Sequence[Edit]) -> dict[str, Numbers]:
    """MEMIT in sequence, R K^T (lambda C + K_p K_p^T + K K^T)^{-1}: a batch, and a second on top of it.

    K_p are the first batch's keys as they were when it was written.
    """
    moments = {layer: plain.moments(layer) for layer in LAYERS}
    past: dict[int, Tensor] = {}

    def rule(layer: int, K: Tensor, R: Tensor) -> Tensor:
        A = RIDGE * safe(*moments[layer]) + K @ K.T
        A = A + past[layer] @ past[layer].T if layer in past else A
        past[layer] = torch.cat([past[layer], K], 1) if layer in past else K
        change: Tensor = R @ K.T @ torch.linalg.inv(A)
        return change

    found = by_layer("memit_first", spread(plain, edits[:-1], rule))
    found |= by_layer("memit_second", spread(plain, edits[-1:], rule))
    restored(plain)
    return found


def emmet(plain: Plain, edits: Sequence[Edit]) -> dict[str, Numbers]:
    """EMMET as published, R (K^T (w C)^{-1} K + mu I)^{-1} K^T (w C)^{-1}, with mu and without."""
    moments = {layer: plain.moments(layer) for layer in LAYERS}
    found: dict[str, Numbers] = {}
    for name, mu in (("emmet", MU), ("emmet_exact", 0.0)):

        def rule(layer: int, K: Tensor, R: Tensor, mu: float = mu) -> Tensor:
            A = torch.linalg.inv(WEIGHT * safe(*moments[layer]))
            core = torch.linalg.inv(K.T @ A @ K + mu * torch.eye(K.shape[1], dtype=torch.float64))
            change: Tensor = R @ core @ K.T @ A
            return change

        found |= by_layer(name, spread(plain, edits, rule))
        restored(plain)
    return found


def alphaedit(plain: Plain, edits: Sequence[Edit]) -> dict[str, Any]:
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

    found: dict[str, Any] = {f"alphaedit_free_{layer}": float(P.trace()) for layer, P in projectors.items()}
    found |= by_layer("alphaedit", spread(plain, edits[:-1], rule))
    found |= by_layer("alphaedit_second", spread(plain, edits[-1:], rule))
    restored(plain)
    return found


def pmet(plain: Plain, edits: Sequence[Edit]) -> dict[str, Numbers]:
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
    return by_layer("pmet", changes)


def rome(plain: Plain, edit: Edit) -> dict[str, Numbers]:
    """The two forms of ROME's change of layer 2, by a dense inverse."""
    layer = 2
    C = safe(*plain.moments(layer))
    module = plain.projection(layer)
    (base,), (delta,), _ = plain.search(edit, [module])
    seen = [plain.seen(module, *plain.row(edit, text), entering=True) for text in TEMPLATES]
    bare, mean = seen[0], torch.stack(seen).mean(0)
    u = torch.linalg.inv(C) @ mean
    published = torch.outer(delta, u) / (bare @ u)
    consistent = torch.outer(base + delta - module(mean[None])[0], u) / (mean @ u)
    return {"rome": told(published), "r_rome": told(consistent)}


# ------------------------------------------------------------------------------------------------- EAMET


def penalty_of(shift: Tensor, others: Sequence[Tensor], K: Tensor, form: Mapping[str, Any]) -> Tensor:
    """EAMET's penalty of the shift of the fact with the last of the keys, against the shifts of those before it."""
    options = {**ALIGNED, **form}
    near = torch.stack([torch.cosine_similarity(K[:, -1], K[:, j], 0) for j in range(len(others))])
    alike = torch.stack([torch.cosine_similarity(shift, other, 0) for other in others])
    P, Q = ((side / options["temperature"]).softmax(0) for side in (near, alike))
    p, q = (P, Q) if form["kl_direction"] == "code" else (Q, P)
    divergence = (p * ((p + 1e-8) / (q + 1e-8)).log()).sum()
    chosen = near.argsort(descending=True)[: int(options["top"])]
    if form["mse_form"] == "code":
        weight = (near[chosen] / options["temperature"]).softmax(0)
        miss = (weight * (near - alike)[chosen].square()).sum()
    else:
        miss = (P - Q)[chosen].square().mean()
    total: Tensor = options["align_kl"] * divergence + options["align_mse"] * miss
    return total


def fixed_shifts(width: int) -> Tensor:
    """Shifts of MORE facts, a row each."""
    return torch.stack([fixed_vector(width, number) for number in range(MORE)])


def penalties(plain: Plain) -> dict[str, Any]:
    """EAMET's penalty and its gradient at fixed shifts, with the model's own keys."""
    K = keys_of(plain, tiny_edits(MORE), LAYERS[-1])
    shifts = fixed_shifts(len(plain.seen(plain.block(LAYERS[-1]), plain.ids("The river"), 0)))
    found: dict[str, Any] = {}
    for name, form in FORMS.items():
        for fact in LOOKING:
            shift = shifts[fact].clone().requires_grad_()
            value = penalty_of(shift, [*shifts[:fact]], K[:, : fact + 1], form)
            (gradient,) = torch.autograd.grad(value, shift)
            found[f"{name}_{fact}"] = {"penalty": value.item(), "gradient": few(gradient)}
    return found


def eamet(plain: Plain, edits: Sequence[Edit]) -> dict[str, Numbers]:
    """EAMET: one fact after the other aligned to those before it, then MEMIT's solve."""
    K, top = keys_of(plain, edits, LAYERS[-1]), plain.block(LAYERS[-1])
    shifts: list[Tensor] = []
    targets: list[Tensor] = []
    for number, edit in enumerate(edits):

        def penalty(shift: Tensor, keys: Tensor = K[:, : number + 1]) -> Tensor:
            return penalty_of(shift, shifts, keys, FORMS["code"])

        length = float(K[:, number].norm())
        (base,), (delta,), _ = plain.search(edit, [top], length=length, penalty=penalty if number else None)
        shifts.append(delta)
        targets.append(base + delta)
    changes = spread(plain, edits, memit_rule(plain), torch.stack(targets, 1))
    restored(plain)
    return by_layer("eamet", changes)


# --------------------------------------------------------------------------------------------- UltraEdit


def answers(plain: Plain, edits: Sequence[Edit], paths: Sequence[str], size: int | None) -> dict[str, list[Tensor]]:
    """H and G of each module: what it reads where an answer is predicted, and the loss's gradient at what it writes.

    The loss is a mean over the answer tokens of so many edits, or a sum over all.
    """
    lengths = [len(plain.ids(" " + edit.target)) for edit in edits]
    found: dict[str, list[Tensor]] = {}
    for number, edit in enumerate(edits):
        prompt, target = plain.ids(edit.text), plain.ids(" " + edit.target)
        first, start = len(prompt) - 1, 0 if size is None else number - number % size
        count = 1 if size is None else sum(lengths[start : start + size])
        with ExitStack() as stack:
            taps = {path: stack.enter_context(plain.tapped(path)) for path in paths}
            logprobs = plain.model(torch.tensor([prompt + target[:-1]])).logits[0].log_softmax(-1)
        hits = torch.stack([logprobs[first + t, token] for t, token in enumerate(target)])
        slopes = torch.autograd.grad(-hits.sum() / count, [tap["added"] for tap in taps.values()])
        for (path, tap), slope in zip(taps.items(), slopes, strict=True):
            at = slice(first, first + len(target))
            rows = [tap["read"][0, at], slope[0, at]]
            found[path] = [torch.cat(both) for both in zip(found[path], rows, strict=True)] if path in found else rows
    return found


def ultraedit(family: str) -> dict[str, dict[str, Numbers]]:
    """UltraEdit in two turns, ((H^T H + ridge I)^{-1} H^T V)^T, by a dense inverse and statistics in one shot."""
    found: dict[str, dict[str, Numbers]] = {}
    for name, options in TURNS.items():
        plain = Plain(family)
        blocks = [f"{BLOCKS[family]}.{layer}" for layer in LAYERS]
        paths = [f"{block}.{module}" for block in blocks for module in (*MLP_IN[family], MLP_OUT[family])]
        seen: dict[tuple[int, int], list[Tensor]] = {}
        total: dict[str, Tensor] = {}
        edits = tiny_edits(MORE)
        for start in range(0, MORE, ULTRA["turn"]):
            size = ULTRA["micro_batch"] if options["averaging"] == "micro_batch" else None
            rows = answers(plain, edits[start : start + ULTRA["turn"]], paths, size)
            for H, G in rows.values():
                seen.setdefault((G.shape[1], H.shape[1]), []).append(torch.cat([H, G], 1))
            for path, (H, G) in rows.items():
                change = ultraedit_change(H, G, torch.cat(seen[G.shape[1], H.shape[1]]), options["prior"])
                total[path] = total.get(path, 0) + change
                plain.write_at(path, change)
        found[name] = {path: told(change) for path, change in total.items()}
    return found


def ultraedit_change(H: Tensor, G: Tensor, seen: Tensor, prior: int) -> Tensor:
    """The change of one projection; all rows of its shape so far, and imagined ones, say what is normal."""
    width = H.shape[1]
    scale = torch.cat(
        [part.square().mean().sqrt().expand(part.shape[1]) for part in (seen[:, :width], seen[:, width:])]
    )
    seen = torch.cat([seen, *([scale[None], -scale[None]] * (prior // 2))])
    normal = (torch.cat([H, G], 1) - seen.mean(0)) / (seen.std(0) + ULTRA["eps"])
    V = -ULTRA["lr"] * normal[:, :width].square().sum(1, keepdim=True) * normal[:, width:]
    change: Tensor = (torch.linalg.inv(H.T @ H + ULTRA["ridge"] * torch.eye(width, dtype=torch.float64)) @ H.T @ V).T
    return change


def record() -> dict[str, Any]:
    """The tolerances, and all numbers, by family."""
    edits = tiny_edits(FACTS)
    found: dict[str, Any] = {"tolerances": TOLERANCES}
    methods: tuple[Callable[[Plain, Sequence[Edit]], dict[str, Any]], ...]
    methods = (memit, memit_in_two, emmet, alphaedit, pmet, eamet)
    for family in FAMILIES:
        plain = Plain(family)
        numbers = {name: value for method in methods for name, value in method(plain, edits).items()}
        numbers |= {**rome(plain, edits[0]), "penalties": penalties(plain), **ultraedit(family)}
        found[family] = {"search": searches(plain, edits), **numbers}
    return found


if __name__ == "__main__":
    FILE.write_text(json.dumps(record(), indent=2) + "\n", encoding="utf-8")
