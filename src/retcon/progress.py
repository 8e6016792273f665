"""Progress of long work, silent unless a front end listens.

Library code says `with task("targets", total=n) as advance: ... advance(k)`; the command line listens with a bar.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

__all__ = ["Listener", "listen", "task"]

Advance = Callable[[float], None]
Listener = Callable[[str, float], AbstractContextManager[Advance]]

_listener: ContextVar[Listener | None] = ContextVar("retcon_progress", default=None)


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Send the progress of everything inside the block to `listener(description, total)`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def task(description: str, total: float) -> Iterator[Advance]:
    """A piece of long work of `total` units; the block calls the yielded function with the units just done."""
    listener = _listener.get()
    if listener is None:
        yield lambda _done: None
        return
    with listener(description, total) as advance:
        yield advance
