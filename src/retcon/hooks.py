"""Reading and replacing what flows through a model, without leaving a trace in it.

Decoder blocks return a tensor in most transformers families and a tuple in some (gptj, falcon, bloom ...); `hidden` and
`replace` are the only code that knows it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Literal

from torch import Tensor, nn

__all__ = [
    "StopForward",
    "bypassed",
    "hidden",
    "record",
    "replace",
    "rewritten",
    "rewritten_input",
    "stoppable",
    "unflattened",
]


class StopForward(Exception):  # noqa: N818 - control flow, not an error
    """Ends a forward pass early, once all that was asked of it has been read."""


def hidden(output: Any) -> Tensor:
    """The hidden states in a module's output: the tensor itself, or a tuple's first item."""
    value = output[0] if isinstance(output, tuple) else output
    if not isinstance(value, Tensor):
        raise TypeError(f"a module returned {type(output).__name__}, not a tensor or a tuple that starts with one")
    return value


def replace(output: Any, states: Tensor) -> Any:
    """`output` with its hidden states replaced by `states`, of the same kind (tensor or tuple)."""
    return (states, *output[1:]) if isinstance(output, tuple) else states


def unflattened(states: Tensor, rows: int) -> Tensor:
    """States as (rows, width, d): OPT flattens rows and columns around its MLP."""
    return states.view(rows, -1, states.shape[-1]) if states.ndim == 2 else states


def _first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden states handed to a module, positionally or by keyword."""
    value = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))
    if not isinstance(value, Tensor):
        raise TypeError("a module was called without hidden states")
    return value


@contextmanager
def record(
    modules: Mapping[str, nn.Module], what: Literal["input", "output"] = "input", *, stop_after: str | None = None
) -> Iterator[dict[str, Tensor]]:
    """Keep the latest input or output of each module, under its name, as the model computes it.

    With `stop_after`, the forward ends (by `StopForward`, see `stoppable`) once that module has been read.
    """
    seen: dict[str, Tensor] = {}

    def reader(name: str) -> Callable[..., None]:
        def on_input(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[name] = _first_input(args, kwargs)
            if name == stop_after:
                raise StopForward

        def on_output(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            seen[name] = hidden(output).clone()  # some models go on to add to it in place (falcon)
            if name == stop_after:
                raise StopForward

        return on_input if what == "input" else on_output

    with ExitStack() as stack:
        for name, module in modules.items():
            handle = (
                module.register_forward_pre_hook(reader(name), with_kwargs=True)
                if what == "input"
                else module.register_forward_hook(reader(name))
            )
            stack.callback(handle.remove)
        yield seen


@contextmanager
def stoppable() -> Iterator[None]:
    """Run a forward that a `record(stop_after=...)` may end early."""
    with suppress(StopForward):
        yield


@contextmanager
def rewritten(module: nn.Module, change: Callable[[Tensor], Tensor], *, first: bool = False) -> Iterator[None]:
    """Pass the hidden states that `module` returns through `change`.

    With `first`, `change` acts before the hooks that are already there, so those see the changed states.
    """
    handle = module.register_forward_hook(lambda _m, _a, output: replace(output, change(hidden(output))), prepend=first)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def rewritten_input(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Pass the first input of `module` through `change` before it computes."""

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        states = change(_first_input(args, kwargs))
        if args:
            return (states, *args[1:]), kwargs
        name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        return args, kwargs | {name: states}

    handle = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def bypassed(module: nn.Module, instead: Callable[..., Any]) -> Iterator[None]:
    """Call `instead` in place of the module's own `forward`, for the length of the block.

    The override lives on the instance; whatever stood there before (an offloading hook, say) is put back.
    """
    had, before = "forward" in module.__dict__, module.__dict__.get("forward")
    module.__dict__["forward"] = instead
    try:
        yield
    finally:
        if had:
            module.__dict__["forward"] = before
        else:
            del module.__dict__["forward"]
