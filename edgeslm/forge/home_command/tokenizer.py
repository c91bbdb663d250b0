"""The tokenizer of `home-command`: byte-level BPE in which copying a word costs no spelling.

The answer repeats words of the sentence in title case (`kitchen` -> `Kitchen`). The pre-tokenizer therefore
cuts the first letter off every word: ` kitchen` is ` k` + `itchen`, `Kitchen` is `K` + `itchen`, and the
model learns 26 letter pairs instead of the spelling of every word.

What always holds:

* `decode(encode(text)) == text` for every Unicode string (256 byte tokens are in the vocabulary);
* a JSON fragment given to `train_tokenizer` is one token, so an answer is about 15 tokens, not 60;
* digits are single tokens, so that a number is copied digit by digit;
* text that spells a special token (`<sep>`) is encoded as plain characters and can forge nothing.

Lower-casing and white space belong to the prompt (`prompt_text`), not to the tokenizer: answers keep case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

PAD: Final = "<pad>"
BEGIN: Final = "<s>"
SEPARATOR: Final = "<sep>"
END: Final = "</s>"
SPECIAL_TOKENS: Final = (PAD, BEGIN, SEPARATOR, END)
PAD_ID: Final = 0
BEGIN_ID: Final = 1
SEPARATOR_ID: Final = 2
END_ID: Final = 3

VOCABULARY_SIZE: Final = 1024


# In order: the rest of a word, a first letter, one digit, one other sign, white space.
_SPLIT: Final = r"(?<=\p{L})\p{L}+| ?\p{L}| ?\p{N}| ?[^\s\p{L}\p{N}]|\s+"


def prompt_text(prompt: str) -> str:
    """Return the prompt as the model sees it: lower case, single spaces, no space at the ends."""
    return " ".join(prompt.split()).lower()


def train_tokenizer(
    texts: Iterable[str], fragments: Sequence[str], vocabulary_size: int = VOCABULARY_SIZE
) -> Tokenizer:
    """Train the tokenizer.

    Args:
        texts: sentences and answers, in the mixture the model will see.
        fragments: JSON fragments that become single tokens; duplicates are ignored.
        vocabulary_size: tokens in total: special, bytes, merges and fragments.

    Returns:
        The tokenizer; special tokens have the ids 0 to 3.

    Raises:
        ValueError: the fragments leave no room for the 256 bytes.
    """
    unique_fragments = list(dict.fromkeys(fragments))
    merged_size = vocabulary_size - len(unique_fragments)
    if merged_size < 256 + len(SPECIAL_TOKENS):
        needed = len(unique_fragments) + 256 + len(SPECIAL_TOKENS)
        raise ValueError(
            f"vocabulary_size {vocabulary_size} is too small for these fragments: at least {needed}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=merged_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_without_fragments(texts, unique_fragments), trainer)
    # Only now: a token added before training keeps its id, and the trainer gives that id away a second time.
    tokenizer.add_tokens([_fragment_token(fragment) for fragment in unique_fragments])
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Read `tokenizer.json`; text never yields special tokens, whatever it spells."""
    tokenizer = Tokenizer.from_file(str(path))
    # Not part of the file format, so it has to be set after each load.
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return `<s>` prompt `<sep>` as token ids; the model answers from here."""
    return [BEGIN_ID, *tokenizer.encode(prompt_text(prompt)).ids, SEPARATOR_ID]


def encode_answer(tokenizer: Tokenizer, answer: str) -> list[int]:
    """Return the answer and `</s>` as token ids."""
    return [*tokenizer.encode(answer).ids, END_ID]


def decode(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """Return the text of token ids; special tokens are left out."""
    return tokenizer.decode(list(token_ids), skip_special_tokens=True)


def _fragment_token(fragment: str) -> AddedToken:
    return AddedToken(fragment, special=False, normalized=False, single_word=False)


def _without_fragments(texts: Iterable[str], fragments: Sequence[str]) -> Iterable[str]:
    """Yield what lies between the fragments.

    The trainer does not know added tokens; left in, `{"intent":"HassTurnOn"}` would take merges for itself.
    """
    longest_first = sorted(fragments, key=len, reverse=True)
    for text in texts:
        if '"' not in text:
            yield text
            continue
        pieces = [text]
        for fragment in longest_first:
            pieces = [part for piece in pieces for part in piece.split(fragment)]
        yield from (piece for piece in pieces if piece)
