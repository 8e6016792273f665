"""What a model is made of, found by structure and by short probes, not by a table of names."""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from retcon import hooks
from retcon.errors import UnsupportedModel

__all__ = ["Architecture", "find", "frozen", "max_positions", "module_at"]

_PROBE_IDS = (5, 7, 11, 6, 9)  # any ids will do: the probes look at structure
_LINEAR_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}


@dataclass(frozen=True, slots=True)
class Architecture:
    """Where a decoder's parts are, as full module paths in the causal language model."""

    family: str
    """The configuration's `model_type`."""
    blocks: tuple[str, ...]
    """The decoder blocks, in order."""
    mlp_out: tuple[str, ...]
    """The MLP's output projection of each block."""
    attn_out: tuple[str, ...]
    """The attention's output projection of each block."""
    head: str
    """The module that maps hidden states to logits."""
    d_model: int
    """Width of the residual stream."""
    d_mlp: int
    """Input width of the MLP's output projection: the width of a key."""
    conv1d: bool
    """Whether projections are stored (in, out), as transformers' `Conv1D` does."""
    write_gain: float | None
    """Change of a block's output for a unit change of its MLP projection's output; None where that is not linear."""
    block_outputs: int
    """Number of items in the tuple a block returns; 0 where it returns a bare tensor."""
    positions: bool
    """Whether the model takes `position_ids`."""
    window: int | None
    """The shortest sliding attention window in tokens, None where attention is full."""

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)


def module_at(model: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path; UnsupportedModel where there is none."""
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise UnsupportedModel(f"the model has no module {path!r}; it is not the one this path was made for") from error


def max_positions(model: nn.Module) -> int | None:
    """The number of positions a model knows by its configuration; None where it sets no limit."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    known = [value for name in names if isinstance(value := getattr(config, name, None), int) and value > 0]
    return min(known, default=None)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no gradient to any weight, for the length of the block; then all flags as they were."""
    training = [(module, module.training) for module in model.modules()]
    gradients = [(weight, weight.requires_grad) for weight in model.parameters()]
    model.eval()
    for weight, _ in gradients:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for module, flag in training:
            module.training = flag
        for weight, flag in gradients:
            weight.requires_grad_(flag)


def find(model: nn.Module) -> Architecture:
    """Find the parts of a causal language model; UnsupportedModel, naming the module, where it cannot be edited."""
    config: Any = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    family = str(text.model_type)
    blocks = _find_blocks(model, int(text.num_hidden_layers), family)
    for path in blocks:
        _refuse_experts(path, module_at(model, path), family)
    head = _find_head(model, family)
    with frozen(model), torch.no_grad():
        calls, outputs = _trace(model, blocks)
        d_model = hooks.hidden(outputs).shape[-1]
        mlp_out, attn_out = zip(*(_projections(path, calls[path], d_model, family) for path in blocks), strict=True)
        first = module_at(model, mlp_out[0])
        gain = _write_gain(model, blocks[len(blocks) // 2], mlp_out[len(blocks) // 2])
    return Architecture(
        family=family,
        blocks=tuple(blocks),
        mlp_out=tuple(mlp_out),
        attn_out=tuple(attn_out),
        head=head,
        d_model=d_model,
        d_mlp=_widths(first)[0],
        conv1d=isinstance(first, Conv1D),
        write_gain=gain,
        block_outputs=len(outputs) if isinstance(outputs, tuple) else 0,
        positions=_takes_positions(model),
        window=_window(text),
    )


def _find_blocks(model: nn.Module, n_layers: int, family: str) -> list[str]:
    stacks = [
        (sum(weight.numel() for weight in module.parameters()), name)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not stacks:
        raise UnsupportedModel(f"no stack of {n_layers} decoder blocks in this {family} model; it cannot be edited")
    _, stack = max(stacks)
    return [f"{stack}.{index}" for index in range(n_layers)]


def _refuse_experts(path: str, block: nn.Module, family: str) -> None:
    for name, weight in block.named_parameters():
        if weight.ndim >= 3:
            module = f"{path}.{name.rpartition('.')[0]}"
            raise UnsupportedModel(f"{module} holds experts or convolutions ({family}); only plain MLPs can be edited")
    for name, module in block.named_modules():
        if isinstance(module, nn.ModuleList) and any(isinstance(part, nn.Linear) for part in module.modules()):
            raise UnsupportedModel(f"{path}.{name} is a mixture of experts ({family}); only plain MLPs can be edited")


def _find_head(model: Any, family: str) -> str:
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if module is head and head is not None:
            return str(name)
    raise UnsupportedModel(f"this {family} model has no output head; load it as a causal language model")


def _trace(model: nn.Module, blocks: list[str]) -> tuple[dict[str, list[tuple[str, nn.Module]]], Any]:
    """The linear projections of each block in the order they run, and what the first block returns."""
    calls: dict[str, list[tuple[str, nn.Module]]] = {path: [] for path in blocks}
    kept: list[Any] = []
    with ExitStack() as stack:
        for path in blocks:
            for name, module in module_at(model, path).named_modules():
                if isinstance(module, nn.Linear | Conv1D):

                    def note(which: nn.Module, *_: Any, path: str = path, name: str = name) -> None:
                        calls[path].append((name, which))

                    stack.callback(module.register_forward_hook(note).remove)

        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            kept.append(output)

        stack.callback(module_at(model, blocks[0]).register_forward_hook(keep).remove)
        _probe(model)
    return calls, kept[0]


def _probe(model: nn.Module) -> None:
    ids = torch.tensor([_PROBE_IDS], device=next(model.parameters()).device)
    model(input_ids=ids, use_cache=False)


def _widths(module: nn.Module) -> tuple[int, int]:
    """Input and output width of a projection, whatever its storage."""
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]


def _projections(path: str, calls: list[tuple[str, nn.Module]], d_model: int, family: str) -> tuple[str, str]:
    """The MLP's and the attention's output projection of a block.

    In every dense family attention runs first and the MLP last, in parallel blocks too: so the first projection to run
    names the attention's child, and the last one to return the residual width is the MLP's output.
    """
    writers = [name for name, module in calls if _widths(module)[1] == d_model]
    if not writers:
        raise UnsupportedModel(f"{path} ({family}) has no linear projection onto the residual stream")
    attention = calls[0][0].partition(".")[0]
    mlp = writers[-1]
    inside = [name for name in writers if name.partition(".")[0] == attention and "." in name]
    if mlp.startswith(f"{attention}.") or not inside:
        raise UnsupportedModel(f"{path} ({family}) has no MLP that is separate from its attention")
    return f"{path}.{mlp}", f"{path}.{inside[-1]}"


def _write_gain(model: nn.Module, block: str, projection: str) -> float | None:
    """Add a vector to the projection's output and see how the block's output changes.

    The gain is 1 where the MLP's output is added to the residual stream, the multiplier where one stands between, and
    None where a norm follows the MLP (gemma2, gemma3, olmo2): there the change is no multiple of what was added.
    """
    target = module_at(model, projection)

    def output(add: Tensor | None) -> Tensor:
        with ExitStack() as stack:
            seen = stack.enter_context(hooks.record({block: module_at(model, block)}, "output"))
            if add is not None:
                stack.enter_context(hooks.rewritten(target, partial(torch.add, other=add)))
            _probe(model)
        return seen[block].double()

    with hooks.record({projection: target}, "output") as seen:
        clean = output(None)
    written = seen[projection]
    generator = torch.Generator().manual_seed(0)
    gains = []
    for scale in (0.3, 1.0):
        noise = torch.randn(written.shape[-1], generator=generator).to(written) * written.float().std() * scale
        change = output(noise) - clean
        wanted = noise.double().expand_as(change)
        gain = float((change * wanted).sum() / (wanted * wanted).sum())
        error = float((change - gain * wanted).norm() / change.norm().clamp_min(1e-30))
        if error > _LINEAR_TOLERANCE.get(written.dtype, 5e-2):
            return None
        gains.append(gain)
    return round(sum(gains) / len(gains), 4)


def _takes_positions(model: Any) -> bool:
    return "position_ids" in inspect.signature(type(model).forward).parameters


def _window(config: Any) -> int | None:
    if "local" in getattr(config, "attention_layers", ()):  # gpt_neo's own names
        return int(config.window_size)
    types = getattr(config, "layer_types", None)
    if types is not None and not any("sliding" in str(kind) for kind in types):
        return None
    if getattr(config, "use_sliding_window", True) is False:
        return None
    return getattr(config, "sliding_window", None)
