"""What it takes to repeat an evaluation."""

import hashlib
import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from retcon import __version__, tokens
from retcon.lm import LM
from retcon.patch import Patch, active
from retcon.storage import digest, file_sha256

__all__ = ["asked_otherwise", "code", "hardware", "model", "of_patch", "text_sha256", "versions"]


@cache
def code() -> str:
    """A hash of this package's sources: it tells two states of one version apart."""
    root = Path(__file__).parents[1]
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    return digest([(name, file_sha256(root / name)) for name in files])[:16]


def model(lm: LM) -> dict[str, Any]:
    """Which weights, in which form, and how prompts reach them."""
    before, _ = tokens.special_ids(lm)
    return {
        "name": lm.name,
        "revision": lm.revision,
        "fingerprint": lm.fingerprint(),
        "family": lm.arch.family,
        "dtype": str(lm.dtype).removeprefix("torch."),
        "device": str(lm.device),
        "chat": lm.chat,
        "patches_on": [patch.id for patch in active(lm.model)],
        "bos": [str(lm.tokenizer.convert_ids_to_tokens(token)) for token in before],
    }


def of_patch(patch: Patch | None) -> dict[str, Any] | None:
    """Which patch was on."""
    if patch is None:
        return None
    return {"id": patch.id, "parent": patch.parent, "method": patch.method, "edits": len(patch.edits)}


def versions() -> dict[str, str]:
    """Of what computed the figures."""
    return {
        "retcon": __version__,
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
        "python": platform.python_version(),
    }


def hardware() -> dict[str, Any]:
    """The processor, the threads in use, and the accelerator if there is one."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": _cpu(), "threads": torch.get_num_threads(), "accelerator": accelerator}


def text_sha256(text: str) -> str:
    """SHA-256 (hex) of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def asked_otherwise(lm: LM, patch: Patch, with_it: str, without_it: str) -> str | None:
    """A sentence where a patch was made through the chat template and is asked without it, or the other way round.

    Args:
        lm: the model as it is asked.
        patch: the patch.
        with_it: what makes the caller ask through the template.
        without_it: what makes it ask plainly.
    """
    chats = {step.chat for step in patch.history if step.edits}
    if not chats or lm.chat in chats:
        return None
    (made, asked), cure = (("with", "without"), with_it) if True in chats else (("without", "with"), without_it)
    return f"the patch was made {made} the chat template and is asked {asked} it here; {cure} to ask alike"
