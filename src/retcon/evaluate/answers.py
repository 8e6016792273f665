"""Asking a model many questions, each distinct one once, and remembering on disk what the unedited model said."""

import hashlib
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from retcon import forward, storage
from retcon.caches import Store
from retcon.evaluate.detail import Detail, details
from retcon.evaluate.generating import written
from retcon.evaluate.gradients import gradient_scores
from retcon.forward import Scored
from retcon.lm import LM
from retcon.patch import active

__all__ = ["Answers", "Ids", "Pair", "place"]

Ids = tuple[int, ...]
Pair = tuple[Ids, Ids]
"""A prompt and a continuation of it."""

Q = TypeVar("Q")
A = TypeVar("A")


class Answers:
    """What a model says, in the state in which it is now: with the patches that are on while a method runs.

    Attributes:
        tokens: prompt and continuation tokens that `score` put through the model.
        seconds: wall-clock time that `score` spent in the model.
        cached: questions answered from the store.
    """

    def __init__(self, lm: LM, store: Store | None = None) -> None:
        """Answers come from `store` where it has them and go into it; without one the model is always asked."""
        self._lm, self._store = lm, store
        self.tokens, self.seconds, self.cached = 0, 0.0, 0

    def score(self, pairs: Iterable[Pair], *, batch_tokens: int = 1024) -> dict[Pair, Scored]:
        """Teacher-forced scores of each continuation; a prompt with many continuations runs once."""
        wanted = dict.fromkeys(pairs)
        known = self._recall({pair: _key("score", *pair) for pair in wanted})
        found = {pair: _scored(value) for pair, value in known.items()}
        items: dict[Ids, list[Ids]] = {}
        for prompt, continuation in wanted:
            if (prompt, continuation) not in found:
                items.setdefault(prompt, []).append(continuation)
        if items:
            started = time.perf_counter()
            rows = [(list(prompt), [list(continuation) for continuation in rest]) for prompt, rest in items.items()]
            scores = forward.score(self._lm, rows, batch_tokens=batch_tokens)
            self.seconds += time.perf_counter() - started
            self.tokens += sum(len(prompt) + sum(map(len, rest)) for prompt, rest in items.items())
            new = {
                (prompt, continuation): scored
                for (prompt, rest), row in zip(items.items(), scores, strict=True)
                for continuation, scored in zip(rest, row, strict=True)
            }
            self._keep({_key("score", *pair): _score_bytes(scored) for pair, scored in new.items()})
            found |= new
        return found

    def detailed(self, pairs: Iterable[Pair]) -> dict[Pair, Detail]:
        """Ranks of each continuation's tokens, and the moments of the distributions that they are drawn from."""
        keys = {pair: _key("detail", *pair) for pair in dict.fromkeys(pairs)}
        return self._answered(keys, lambda missing: details(self._lm, missing), _detail_bytes, _detail)

    def gradients(self, pairs: Iterable[Pair]) -> dict[Pair, float]:
        """How steeply each continuation's loss rises at the weights: `gradient_scores`, NaN where it is not finite.

        Raises:
            NoGradient: this model, or what is on it, has none.
        """
        keys = {pair: _key("gradient", *pair) for pair in dict.fromkeys(pairs)}
        return self._answered(keys, lambda missing: gradient_scores(self._lm, missing), _number_bytes, _number)

    def greedy(self, prompts: Iterable[Ids], max_new_tokens: int, *, stop_at_eos: bool) -> dict[Ids, Ids]:
        """The model's own continuation of each prompt, always taking the likeliest token."""
        keys = {prompt: _key("greedy", prompt, (max_new_tokens, int(stop_at_eos))) for prompt in dict.fromkeys(prompts)}

        def ask(missing: Sequence[Ids]) -> list[Ids]:
            rows = [list(prompt) for prompt in missing]
            found = forward.greedy(self._lm, rows, max_new_tokens=max_new_tokens, stop_at_eos=stop_at_eos)
            return [tuple(row) for row in found]

        return self._answered(keys, ask, _id_bytes, _ids)

    def free(self, most: Mapping[Ids, int]) -> dict[Ids, Ids]:
        """What the model writes by itself after each prompt, by so many tokens at most: `generating.written`."""
        keys = {prompt: _key("free", prompt, (limit,)) for prompt, limit in most.items()}

        def ask(missing: Sequence[Ids]) -> list[Ids]:
            return [tuple(row) for row in written(self._lm, missing, [most[prompt] for prompt in missing])]

        return self._answered(keys, ask, _id_bytes, _ids)

    def sample(self, prompts: Sequence[Ids], max_new_tokens: int, *, top_k: int, seed: int) -> list[Ids]:
        """A random continuation of each prompt at temperature 1; kept as one, since they are drawn together."""
        key = _key("sample", (max_new_tokens, top_k, seed), *prompts)
        rows = self._recall({(n,): key + bytes([n]) for n in range(len(prompts))})
        if len(rows) == len(prompts):
            return [_ids(rows[(n,)]) for n in range(len(prompts))]
        drawn = forward.sample(
            self._lm, [list(prompt) for prompt in prompts], max_new_tokens=max_new_tokens, top_k=top_k, seed=seed
        )
        self._keep({key + bytes([n]): _id_bytes(tuple(row)) for n, row in enumerate(drawn)})
        return [tuple(row) for row in drawn]

    def _answered(
        self,
        keys: Mapping[Q, bytes],
        ask: Callable[[Sequence[Q]], Sequence[A]],
        write: Callable[[A], bytes],
        read: Callable[[bytes], A],
    ) -> dict[Q, A]:
        """What is kept under the keys, and for the other questions what the model is asked now, which is kept too."""
        found = {question: read(value) for question, value in self._recall(keys).items()}
        missing = [question for question in keys if question not in found]
        if missing:
            new = dict(zip(missing, ask(missing), strict=True))
            self._keep({keys[question]: write(answer) for question, answer in new.items()})
            found |= new
        return found

    def _recall(self, keys: Mapping[Q, bytes]) -> dict[Q, bytes]:
        if self._store is None:
            return {}
        values = self._store.get(keys.values())
        known = {question: values[key] for question, key in keys.items() if key in values}
        self.cached += len(known)
        return known

    def _keep(self, rows: Mapping[bytes, bytes]) -> None:
        if self._store is not None:
            self._store.put(rows)


def place(lm: LM, *more: str) -> Path:
    """Where the answers of these weights on this kind of device are kept, with the patches that are on already."""
    state = [lm.fingerprint(), lm.device.type, *(patch.id for patch in active(lm.model)), *more]
    return storage.cache_dir("answers") / f"{storage.digest(*state)[:32]}.sqlite"


def _key(kind: str, *parts: Ids) -> bytes:
    """A 16-byte name of a question; each part is hashed with its length, so no two questions run together."""
    sha = hashlib.blake2b(kind.encode(), digest_size=16)
    for part in parts:
        sha.update(array("q", (len(part), *part)).tobytes())
    return sha.digest()


def _score_bytes(scored: Scored) -> bytes:
    return np.asarray(scored.logprobs, dtype="<f8").tobytes() + bytes(map(int, scored.hits))


def _scored(value: bytes) -> Scored:
    tokens = len(value) // 9  # eight bytes of log probability and one of hit for each token
    return Scored(np.frombuffer(value, "<f8", tokens).tolist(), [bool(hit) for hit in value[8 * tokens :]])


def _detail_bytes(detail: Detail) -> bytes:
    return np.asarray(detail, dtype="<f8").tobytes()


def _detail(value: bytes) -> Detail:
    ranks, means, variances = np.frombuffer(value, "<f8").reshape(3, -1).tolist()
    return Detail(ranks, means, variances)


def _number_bytes(value: float) -> bytes:
    return np.asarray([value], dtype="<f8").tobytes()


def _number(value: bytes) -> float:
    return float(np.frombuffer(value, "<f8")[0])


def _id_bytes(ids: Ids) -> bytes:
    return np.asarray(ids, dtype="<i8").tobytes()


def _ids(value: bytes) -> Ids:
    return tuple(np.frombuffer(value, "<i8").tolist())
