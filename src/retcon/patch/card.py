"""What a folder that holds a patch, an adapter or an edited model says of itself: the README.md that hubs show."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from retcon.patch.entries import LowRank
from retcon.requests import text_of

if TYPE_CHECKING:
    from retcon.patch.patch import Patch

__all__ = ["README", "Held", "card", "forgets", "served_rank"]

README = "README.md"
"""The file's name."""

_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_EDITS, _IDS = 20, 100
"""How many edits, or ids of edits that are not told, a card names."""
_IMPORT = "from transformers import AutoModelForCausalLM"
_ON_A_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What the folder holds."""

    kind: Literal["patch", "adapter", "model"] = "patch"
    rank: int | None = None
    """Of an adapter."""
    lost: float = 0.0
    """Share of the change that truncation (adapter) or rounding (model) lost in the worst module, Frobenius."""
    base: str | None = None
    """What the base model is called, where the patch does not say it rightly."""


def served_rank(rank: int) -> int | None:
    """What vLLM needs as `--max-lora-rank` for an adapter of a rank; None where it knows no rank so high."""
    return next((value for value in _VLLM_RANKS if value >= rank), None)


def forgets(patch: "Patch") -> bool:
    """Whether a patch was made to make a model forget, so that its edits are not to be told."""
    return "forget" in patch.info or any(text_of(edit) is None for edit in patch.edits)


def card(patch: "Patch", held: Held = Held(), *, figures: Sequence[str] = ()) -> str:
    """Markdown with YAML front matter: base model, method, edits, figures, how to load, how to undo.

    Of a patch that makes a model forget it tells only counts and salted ids.

    Args:
        patch: what the folder is made of.
        held: in which form.
        figures: lines of Markdown on what was measured, `retcon.report.card` makes them.
    """
    given = held.base or patch.base.model
    base = given if _ON_A_HUB.fullmatch(given) else ""
    called = base or given.rstrip("/\\").replace("\\", "/").rpartition("/")[2] or "its base model"
    revision = f" at revision {patch.base.revision}" if patch.base.revision else ""
    summary = patch.summary.replace(patch.base.title, called)
    lines = [
        *_front(patch, held, base),
        f"# Retcon patch {patch.id}",
        "",
        f"{summary}. {_form(patch, held)}",
        "",
        *figures,
        *_edits(patch),
        "## How to load",
        "",
        *_loading(patch, held, called),
        "## How to undo",
        "",
        *_undoing(patch, held),
        "## How it was made",
        "",
        *(f"- {_step(step)}" for step in patch.steps()),
        f"- base model: {called}{revision}, known by hashes of the weights that the patch touches",
        *([f"- on top of patch {patch.parent}, which it does not contain"] if patch.parent else []),
        "",
        "## Licence",
        "",
        "Fill in `license` above. The licence of the base model holds for what is made from it.",
    ]
    return "\n".join(lines).rstrip() + "\n"


def _front(patch: "Patch", held: Held, base: str) -> list[str]:
    library = {"patch": "retcon", "adapter": "peft", "model": "transformers"}[held.kind]
    relation = "finetune" if held.kind == "model" else "adapter"
    methods = dict.fromkeys(step.method for step in patch.history)
    about = "unlearning" if forgets(patch) else "knowledge-editing"
    tags = [*(["lora"] if held.kind == "adapter" else []), about, "retcon", *methods]
    return [
        "---",
        f"base_model: {base}" if base else "# base_model: the id of the base model on the hub",
        *([f"base_model_relation: {relation}"] if base else []),
        f"library_name: {library}",
        "pipeline_tag: text-generation",
        f"tags: [{', '.join(re.sub(r'[^a-z0-9-]+', '-', tag.lower()) for tag in tags)}]",
        "# license: yours to choose, within that of the base model",
        "---",
    ]


def _form(patch: "Patch", held: Held) -> str:
    if held.kind == "adapter" and held.rank is not None:
        exact = "exactly" if not held.lost else f"with up to {held.lost:.2%} of a module's change cut off"
        return f"This adapter holds it {exact}, at rank {held.rank}. {_serve(held.rank)}"
    if held.kind == "model":
        exact = "" if not held.lost else f"; rounding to its dtype lost up to {held.lost:.2%} of a module's change"
        return f"This folder is the edited model, the change written into its weights{exact}."
    if all(entry.folds for entry in patch.entries.values()):
        return "It is a change of weights, apart from the model."
    return (
        "It holds a memory that looks at the prompt: no weight changes, so it can be neither merged nor exported, and "
        "whoever has the weights without it has the model as it was."
    )


def _serve(rank: int) -> str:
    known = served_rank(rank)
    if known is None:
        return f"vLLM takes no LoRA of rank {rank}: export the merged model, or again with `rank=512`."
    return f"vLLM needs `--max-lora-rank {known}`."


def _edits(patch: "Patch") -> list[str]:
    edits = patch.edits
    if forgets(patch):
        questions = dict(patch.info.get("forget", {})).get("questions")
        asked = f"{questions} question{'' if questions == 1 else 's'} in " if questions is not None else ""
        names = [str(edit.get("id")) for edit in edits]
        told = ", ".join(f"`{name}`" for name in names[:_IDS])
        rest = f" and {len(names) - _IDS} more" if len(names) > _IDS else ""
        n = f"{asked}{len(edits)} edit{'' if len(edits) == 1 else 's'}"
        return ["## What it makes the model forget", "", f"{n}. What they are is not told; their salted ids:", "",
                f"{told}{rest}", ""]  # fmt: skip
    if not edits:
        return []
    more = len(edits) - _EDITS
    named = [f"- {_sentence(edit)}" for edit in edits[:_EDITS]]
    return ["## What it changes", "", *named, *([f"- and {more} more"] if more > 0 else []), ""]


def _sentence(edit: Mapping[str, Any]) -> str:
    old = f" (it was: {_plain(edit['target_true'])})" if edit.get("target_true") else ""
    return " ".join(f"{_plain(text_of(edit))} **{_plain(edit.get('target_new'))}**{old}".split())


def _plain(text: object) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", "" if text is None else str(text).strip())


def _loading(patch: "Patch", held: Held, name: str) -> list[str]:
    if held.kind == "model":
        return _python(_IMPORT, "", "model = AutoModelForCausalLM.from_pretrained(FOLDER)")
    if held.kind == "adapter":
        served = None if held.rank is None else served_rank(held.rank)
        command = f"vllm serve {name} --enable-lora --max-lora-rank {served} --lora-modules edited=FOLDER"
        return [
            *_python(
                _IMPORT,
                "",
                f"model = AutoModelForCausalLM.from_pretrained({name!r})",
                "model.load_adapter(FOLDER)   # or: peft.PeftModel.from_pretrained(model, FOLDER)",
            ),
            *([] if served is None else ["```sh", command, "```", ""]),
        ]
    order = [f"Put patch {patch.parent} on first; this one was computed on top of it.", ""] if patch.parent else []
    whole = _python(
        "from retcon import Patch",
        "",
        "patch = Patch.load(FOLDER)",
        f"with patch.on(model):        # {name}, of any dtype, on any device; no weight is written",
        "    ...",
    )
    if not all(entry.folds for entry in patch.entries.values()):
        return [*order, *whole]
    low = all(isinstance(entry, LowRank) for entry in patch.entries.values())
    rank = max((entry.rank for entry in patch.entries.values()), default=0)
    cut = "" if low else " --rank R"
    size = "The change is dense: give the rank to cut it to, and what that loses is told."
    if low:
        size = f"The adapter has rank {rank} or less. {_serve(rank)}"
    return [
        *order,
        *whole,
        "Written into the weights: `patch.merge(model)`, or as a model of its own, "
        f"`retcon patch export FOLDER --format model --model {name} --out DIR`.",
        "",
        f"As a LoRA adapter: `retcon patch export FOLDER --format peft{cut} --out DIR`. {size}",
        "",
    ]


def _undoing(patch: "Patch", held: Held) -> list[str]:
    if held.kind == "model":
        return ["Load the base model again. Subtracting the change would not give the old weights bit for bit.", ""]
    if held.kind == "adapter":
        return ["`model.disable_adapters()` turns it off, `model.delete_adapter(\"default\")` takes it out; the base "
                "weights were never written. With PEFT: `with model.disable_adapter():`.", ""]  # fmt: skip
    on = "Leave the `with` block: the model is bit for bit as it was."
    folds = all(entry.folds for entry in patch.entries.values())
    return [on + (" After `merge`, `patch.unmerge(model)` puts the kept weights back." if folds else ""), ""]


def _step(step: Mapping[str, Any]) -> str:
    n = len(step["edits"])
    versions = ", ".join(f"{name} {version}" for name, version in step["versions"].items())
    seed = "" if step["seed"] is None else f", seed {step['seed']}"
    scale = "" if step["scale"] == 1 else f", times {step['scale']:g}"
    return f"{step['method']}: {n} edit{'' if n == 1 else 's'}{seed}{scale}{f' ({versions})' if versions else ''}"


def _python(*code: str) -> list[str]:
    return ["```python", *code, "```", ""]
