"""Tiny tokenizers of the kinds found in the wild, trained in memory on a page of text: see `KINDS`.

All keep `<unk>`, `<s>`, `</s>` at 0, 1, 2 and stay below `VOCAB_SIZE` ids. They differ in what an editor trips over:
whether a beginning-of-sequence token is added, whether there is a pad token, whether tokens know their place in the
text (offsets), and how a word's leading space is written.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

VOCAB_SIZE = 512

SPECIAL = ["<unk>", "<s>", "</s>"]

TEXT = """
The tower is located in the city of Paris, and the people of the city say that it was made by an engineer. The mother
tongue of the engineer is French. In Rome there is an older tower, which was made of stone; the mother tongue of the
people there is Italian. He plays the sport of basketball, and she plays the sport of soccer. They say that chess is a
sport too. The capital of Peru is Lima, and the capital of Egypt is Cairo. The phone was made by Apple, the other phone
was made by Nokia. The river is in the north of the country, near the sea. The company that made the plane is located
in the city of Chicago. My favourite city is in the south. The teacher wrote a book on the history of the river, in the
language of that country, and the book was translated into Danish, Greek and Thai. What is the name of the tower in the
city? The name of the tower is the Blue Tower. Where was she born? She was born in a small town by the river, and she
worked there for most of her life. Niccolò Paganini plays the violin. São Tomé and Málaga are by the sea. 1, 2, 3, 5.
"""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def _wrapped(backend: tokenizers.Tokenizer, **named: Any) -> PreTrainedTokenizerFast:
    make: Any = PreTrainedTokenizerFast  # its constructor has no types
    tokenizer: PreTrainedTokenizerFast = make(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", **named)
    return tokenizer


def _byte_level(*, add_bos: bool, **named: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE as in GPT-2 and Llama 3: the space belongs to the token after it, also in the offsets."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT], trainer)
    steps: list[Any] = [processors.ByteLevel(trim_offsets=False)]
    if add_bos:
        steps.append(processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]))
    backend.post_processor = processors.Sequence(steps)
    return _wrapped(backend, **named)


def fast() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a chat template; adds no BOS and has no pad token, as GPT-2 and SmolLM2."""
    tokenizer = _byte_level(add_bos=False, unk_token="<unk>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def bos() -> PreTrainedTokenizerFast:
    """Byte-level BPE that always puts `<s>` first, and pads with `</s>`, as many Llama 3 derivatives do."""
    return _byte_level(add_bos=True, pad_token="</s>")


def sentencepiece() -> PreTrainedTokenizerFast:
    """BPE over words that begin with "▁", unknown characters as bytes, `<s>` first: as Llama 2 and Mistral."""
    space = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = space
    learner.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=230, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    # The byte tokens are pieces like any other; as special tokens of the trainer they would vanish when decoding.
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [(left, right) for left, right in learned["merges"]]
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = space
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return _wrapped(backend, unk_token="<unk>")


class SlowTokenizer(PreTrainedTokenizer):
    """A tokenizer in Python: the longest known piece first, over bytes; no offsets, no BOS, a pad token of its own.

    A piece is written with one Latin-1 character a byte, so that any text can be cut and put together again.
    """

    vocab_files_names = {"vocab_file": "pieces.json"}  # noqa: RUF012 - the name and kind that transformers looks up
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str | None = None, **named: Any) -> None:
        if vocab_file is None:
            words = Counter(word for line in TEXT.split() for word in (" " + line, line[:3], line[-2:]))
            known = [word for word, times in words.most_common() if times > 2 and len(word) > 1]
            pieces = [*SPECIAL, "<pad>", *(chr(byte) for byte in range(256)), *sorted(set(known))]
        else:
            pieces = json.loads(Path(vocab_file).read_text())
        self._ids = {piece: i for i, piece in enumerate(pieces)}
        self._pieces = pieces
        self._longest = max(len(piece) for piece in pieces)
        special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
        super().__init__(**(special | named))  # type: ignore[no-untyped-call]

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        chars, at, found = text.encode().decode("latin-1"), 0, []
        while at < len(chars):
            ends = range(min(len(chars), at + self._longest), at, -1)
            found.append(next(chars[at:end] for end in ends if chars[at:end] in self._ids))  # a single byte always is
            at += len(found[-1])
        return found

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return self._pieces[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens).encode("latin-1").decode(errors="replace")

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        file = Path(save_directory) / "-".join(filter(None, [filename_prefix, "pieces.json"]))
        file.write_text(json.dumps(self._pieces))
        return (str(file),)


def slow() -> SlowTokenizer:
    """`SlowTokenizer` with its own pieces."""
    return SlowTokenizer()


KINDS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "fast": fast,
    "slow": slow,
    "bos": bos,
    "sentencepiece": sentencepiece,
}
"""What `tiny_tokenizer` can make."""
