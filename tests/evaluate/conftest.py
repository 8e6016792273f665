"""What the tests of a whole evaluation share: a tiny model, cases, a patch, and the definitions read slowly."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from retcon import tokens
from retcon.lm import LM
from retcon.patch import LowRank, Patch, Step, describe_base
from retcon.requests import Case, Probe
from retcon.testing import tiny_edits, tiny_model, tiny_tokenizer

TEXT = "The tower is located in the city of Paris, and the river is in the north of the country. " * 12
PREFIXES = ["It rained", "She was born by the sea"]
PLACES = ("Lima", "Cairo", "Rome", "Chicago")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETCON_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM.wrap(tiny_model("llama"), tiny_tokenizer(), name="tiny")


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    neighbours = [
        tuple(Probe(edit.prompt.replace("{}", f"{place} {n}"), ("the sea",)) for place in PLACES)
        for n, edit in enumerate(tiny_edits(8))
    ]
    return [
        Case(edit, (f"Tell me: {edit.text}", f"{edit.text} the"), near)
        for edit, near in zip(tiny_edits(8), neighbours, strict=True)
    ]


@pytest.fixture(scope="module")
def patch(lm: LM) -> Patch:
    """A small random change of one layer, so that some neighbours change and some do not."""
    path = lm.arch.mlp_out[2]
    draw = torch.Generator().manual_seed(0)
    entry = LowRank(torch.randn(64, 2, generator=draw) * 0.4, torch.randn(112, 2, generator=draw) * 0.15)
    base = describe_base(lm.model, [path], name="tiny")
    return Patch({path: entry}, base, (Step(method="random", edits=({"prompt": "p", "target_new": "t"},)),))


class Slow:
    """The definitions, one prompt at a time, on logits of the whole row."""

    def __init__(self, lm: LM) -> None:
        self.lm = lm

    def logprobs(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = self.lm.model(torch.tensor([ids])).logits[0]
            return logits.double().log_softmax(-1)

    def gives(self, prompt: str, answer: str) -> float:
        start, wanted = tokens.encode(self.lm, prompt), tokens.target_ids(self.lm, prompt, answer)
        rows = self.logprobs(start + wanted)[len(start) - 1 : -1]
        return float(rows.argmax(-1).tolist() == wanted)

    def mean_logprob(self, prompt: str, answer: str) -> float:
        start, wanted = tokens.encode(self.lm, prompt), tokens.target_ids(self.lm, prompt, answer)
        rows = self.logprobs(start + wanted)[len(start) - 1 : -1]
        return float(rows[range(len(wanted)), wanted].mean())

    def says(self, prompt: str, n: int) -> list[int]:
        ids = start = tokens.encode(self.lm, prompt)
        for _ in range(n):
            ids = [*ids, int(self.logprobs(ids)[-1].argmax())]
        return ids[len(start) :]


def average(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)
