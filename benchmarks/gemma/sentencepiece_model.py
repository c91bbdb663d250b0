"""The tokenizer of a GGUF file with a SentencePiece vocabulary, as the SentencePiece model that it was made of.

GGUF keeps the pieces with their scores and kinds, which is what a model consists of; trainer and normalizer are stated
as Gemma's: byte-pair encoding, bytes to fall back to, text left as it is. The messages are those of
``sentencepiece_model.proto``, written field by field.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Final

_USER_DEFINED: Final = 4
_BPE: Final = 2
_SPACE: Final = "\u2581"
_UNKNOWN_KIND: Final = 2
_UNKNOWN_ID: Final = 3
"""Where the file states none."""

# Field numbers of ModelProto, TrainerSpec and NormalizerSpec.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_MODEL_TYPE, _VOCAB_SIZE, _BYTE_FALLBACK = 3, 4, 35
_UNK_ID, _BOS_ID, _EOS_ID, _PAD_ID = 40, 41, 42, 43
_UNK_PIECE, _BOS_PIECE, _EOS_PIECE, _PAD_PIECE = 45, 46, 47, 48
_NAME, _DUMMY_PREFIX, _EXTRA_SPACES, _ESCAPE_SPACES = 1, 3, 4, 5


def write_model(reader: Any, path: Path) -> None:
    """Write ``tokenizer.model``.

    Args:
        reader: a `gguf.GGUFReader`.
    """
    pieces: list[str] = reader.fields["tokenizer.ggml.tokens"].contents()
    scores: list[float] = reader.fields["tokenizer.ggml.scores"].contents()
    kinds: list[int] = reader.fields["tokenizer.ggml.token_type"].contents()
    # GGUF calls it a control piece.
    kinds[_special_id(reader, "unknown")] = _UNKNOWN_KIND
    model = bytearray()
    for text, score, kind in zip(pieces, scores, kinds, strict=True):
        name = text.replace(" ", _SPACE) if kind == _USER_DEFINED else text
        model += _message(
            _PIECES, _message(1, name.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind)
        )
    model += _message(_TRAINER, _trainer(reader, pieces))
    spec = _message(_NAME, b"identity")
    spec += _number(_DUMMY_PREFIX, 0) + _number(_EXTRA_SPACES, 0) + _number(_ESCAPE_SPACES, 1)
    path.write_bytes(bytes(model + _message(_NORMALIZER, spec)))


def _trainer(reader: Any, pieces: list[str]) -> bytes:
    spec = _number(_MODEL_TYPE, _BPE) + _number(_VOCAB_SIZE, len(pieces)) + _number(_BYTE_FALLBACK, 1)
    for id_field, piece_field, name in (
        (_UNK_ID, _UNK_PIECE, "unknown"),
        (_BOS_ID, _BOS_PIECE, "bos"),
        (_EOS_ID, _EOS_PIECE, "eos"),
        (_PAD_ID, _PAD_PIECE, "padding"),
    ):
        token = _special_id(reader, name)
        spec += _number(id_field, token) + _message(piece_field, pieces[token].encode())
    return spec


def _special_id(reader: Any, name: str) -> int:
    stated = reader.fields.get(f"tokenizer.ggml.{name}_token_id")
    return _UNKNOWN_ID if stated is None else int(stated.contents())


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content
