"""The journal of a run of unlearning: what it needs to go on, in one file beside a store that the caller gives."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from retcon.storage import new_file
from retcon.targets import Store

__all__ = ["FOLDER", "Journal"]

FOLDER = "runs"
"""Beside a store's file, the folder of the journals of runs that are not finished."""
_NOTES = "retcon"


class Journal:
    """Tensors and notes of one run under the hash of all that decides it: written whole or not at all, gone at its end.

    A store keeps targets of single facts; a run of training is one whole, and its checkpoint, with the moments of the
    optimiser, is too large for a row. So it stands in a file of its own in the store's folder.
    """

    def __init__(self, stores: Sequence[Store], key: str) -> None:
        folders = dict.fromkeys(store.path.parent / FOLDER for store in stores)
        self._files = [folder / f"{key}.safetensors" for folder in folders]

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was written last; None where there is nothing, or nothing that can be read."""
        for file in filter(Path.is_file, self._files):
            try:
                with safe_open(file, "pt") as opened:
                    notes: dict[str, Any] = json.loads(opened.metadata()[_NOTES])
                    return {name: opened.get_tensor(name) for name in opened.keys()}, notes  # noqa: SIM118
            except (SafetensorError, OSError, ValueError, KeyError, TypeError):
                continue  # damaged by other hands: the run begins anew
        return None

    def write(self, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Take the place of what was written before."""
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        for file in self._files:
            with new_file(file) as temporary:
                save_file(whole, temporary, metadata={_NOTES: json.dumps(dict(notes))})

    def drop(self) -> None:
        """The run is finished: leave nothing, also of writes that were killed."""
        for file in self._files:
            for rest in (file, *file.parent.glob(f".{file.name}.*")):
                rest.unlink(missing_ok=True)
            with suppress(OSError):  # it holds the journals of other runs, or is not there
                file.parent.rmdir()
