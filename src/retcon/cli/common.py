"""Options that commands share, and what they need: the model."""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from retcon.errors import RetconError

if TYPE_CHECKING:
    from retcon.lm import LM
    from retcon.patch import Patch

__all__ = ["ModelOptions", "OutputOptions", "command_line", "load_patch"]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """How to answer."""

    json: Annotated[bool, Parameter(negative=())] = False
    """Print one JSON object on stdout and everything else on stderr."""
    debug: Annotated[bool, Parameter(negative=())] = False
    """Show the traceback of an error and the warnings of libraries."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """Which model, and how it is run."""

    model: Annotated[str, Parameter(alias="-m")] = "smollm2-135m"
    """A folder, a GGUF file, a hub id, or the default model smollm2-135m."""
    revision: str | None = None
    """The commit, tag or branch of a model on the hub."""
    device: str = "cpu"
    """Where to run: cpu, cuda, cuda:1, mps ..."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The dtype of the weights in memory."""
    chat: Annotated[bool, Parameter(negative=())] = False
    """Ask through the model's chat template."""

    def asked(self, plain: bool) -> bool | None:
        """Whether questions go through the chat template, of --plain and --chat; None where neither is given.

        Raises:
            RetconError: both are.
        """
        if plain and self.chat:
            raise RetconError("--plain and --chat contradict each other; give one of them")
        return False if plain else True if self.chat else None

    def load(self) -> "LM":
        """Load the model, without the noise of the libraries; on a terminal they may show a bar for a long download."""
        if not sys.stderr.isatty():
            os.environ.setdefault("TQDM_DISABLE", "1")
        from transformers.utils import logging

        from retcon.lm import LM

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        return LM.load(self.model, device=self.device, dtype=self.dtype, chat=self.chat, revision=self.revision)


def load_patch(folder: Path | None) -> "Patch | None":
    """The patch of a folder, None of None."""
    if folder is None:
        return None
    if not folder.is_dir():
        raise RetconError(f"there is no patch folder {folder}; give the --out of a `retcon edit`")
    from retcon.patch import Patch

    return Patch.load(folder)


def command_line() -> str:
    """The command as it was given, for the provenance of what it writes."""
    return shlex.join(["retcon", *sys.argv[1:]])
