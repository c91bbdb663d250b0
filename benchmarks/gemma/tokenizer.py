"""The tokenizer of a GGUF file with a SentencePiece vocabulary, in the form of the `tokenizers` library.

GGUF keeps pieces with scores, and no merges: a piece of byte-pair encoding is merged out of any two pieces that spell
it, and the better its score, the earlier. Spaces are written as U+2581.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

_CONTROL: Final = 3
_USER_DEFINED: Final = 4
_BYTE: Final = 6
_SPACE: Final = "\u2581"


def write_tokenizer(reader: Any, path: Path) -> None:
    """Write ``tokenizer.json``.

    Args:
        reader: a `gguf.GGUFReader`.
    """
    pieces: list[str] = reader.fields["tokenizer.ggml.tokens"].contents()
    scores: list[float] = reader.fields["tokenizer.ggml.scores"].contents()
    kinds: list[int] = reader.fields["tokenizer.ggml.token_type"].contents()
    vocabulary = {
        (piece.replace(" ", _SPACE) if kind == _USER_DEFINED else piece): index
        for index, (piece, kind) in enumerate(zip(pieces, kinds, strict=True))
    }
    added = [
        _added(index, pieces[index], special=kinds[index] == _CONTROL)
        for index in range(len(pieces))
        if kinds[index] in (_CONTROL, _USER_DEFINED)
    ]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": _merges(vocabulary, scores, kinds),
        },
    }
    path.write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")), "utf-8")


def _added(index: int, piece: str, *, special: bool) -> dict[str, Any]:
    """A piece that is found before all merging, the longest first.

    Runs of spaces are found once spaces are written as U+2581, as the vocabulary has them.
    """
    return {
        "id": index,
        "content": piece.replace(" ", _SPACE) if _is_spaces(piece) else piece,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": _is_spaces(piece),
        "special": special,
    }


def _is_spaces(piece: str) -> bool:
    return not piece.replace(_SPACE, " ").strip(" ")


def _merges(vocabulary: dict[str, int], scores: list[float], kinds: list[int]) -> list[tuple[str, str]]:
    found = []
    for piece, index in vocabulary.items():
        if kinds[index] in (_CONTROL, _BYTE) or len(piece) < 2:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-scores[index], vocabulary[left], vocabulary[right], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]
