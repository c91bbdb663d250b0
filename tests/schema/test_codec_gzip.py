"""Compressed bodies: unpacked within a bound, or a named error; never anything else."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgeslm import codec
from edgeslm.errors import BodySizeError, CodecError
from edgeslm.schema.message import MAX_PROMPT_CHARS, CancelRequest, PromptRequest

LONG = b'{"id":"a","prompt":"' + b"turn on the kitchen light and " * 40 + b'"}'


@given(st.binary(max_size=3000))
def test_what_is_compressed_comes_back(body: bytes) -> None:
    assume(not codec.is_compressed(body))
    assert codec.plain(codec.compress(body)) == body


def test_a_body_is_compressed_only_where_that_makes_it_shorter() -> None:
    assert len(codec.compress(LONG)) < len(LONG) / 4
    assert codec.is_compressed(codec.compress(LONG))
    for body in (b"", b"{}", LONG[:200], bytes(range(256)) * 2):
        packed = codec.compress(body)
        assert len(packed) <= len(body)


def test_the_same_body_always_gives_the_same_bytes() -> None:
    assert codec.compress(LONG) == codec.compress(LONG)
    assert codec.compress(LONG)[4:8] == bytes(4), "no time of day in the head"


def test_a_plain_body_stays_as_it_is() -> None:
    assert codec.plain(LONG) is LONG


def test_messages_and_texts_are_read_from_either_form() -> None:
    assert codec.decode(PromptRequest, gzip.compress(LONG)) == codec.decode(PromptRequest, LONG)
    assert codec.decode_text(gzip.compress("grüß dich ".encode() * 50)) == ("grüß dich " * 50).strip()


def bomb(size: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(size // 2**20)) + packer.flush()


def test_a_bomb_is_refused_and_costs_no_more_memory_than_its_bound() -> None:
    body = bomb(256 * 2**20)
    assert len(body) < 300_000
    tracemalloc.start()
    try:
        with pytest.raises(BodySizeError, match="65536 bytes once unpacked"):
            codec.plain(body, max_bytes=65_536)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 65_536 + 3 * len(body)


def test_what_is_compressed_twice_is_refused() -> None:
    twice = gzip.compress(bomb(2**20))
    with pytest.raises(CodecError, match="twice"):
        codec.plain(twice)
    with pytest.raises(CodecError, match="twice"):
        codec.decode(CancelRequest, twice)


def test_a_body_may_be_exactly_as_long_as_the_bound() -> None:
    assert codec.plain(gzip.compress(LONG), max_bytes=len(LONG)) == LONG
    with pytest.raises(BodySizeError):
        codec.plain(gzip.compress(LONG), max_bytes=len(LONG) - 1)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (gzip.compress(LONG)[:-1], "cut off"),
        (gzip.compress(LONG)[:40], "cut off"),
        (b"\x1f\x8b", "cut off"),
        (gzip.compress(LONG) + b"x", "follows"),
        (gzip.compress(LONG) + gzip.compress(b"{}"), "follows"),
        (b"\x1f\x8b{}", "not gzip"),
        (b"\x1f\x8b" + bytes(40), "not gzip"),
        (gzip.compress(LONG)[:-8] + bytes(8), "not gzip"),
    ],
    ids=["no end", "half", "head only", "a byte more", "a second one", "json", "zeros", "wrong checksum"],
)
def test_what_is_no_whole_gzip_is_an_error_that_says_so(body: bytes, told: str) -> None:
    with pytest.raises(CodecError, match=told):
        codec.plain(body)
    with pytest.raises(CodecError, match=told):
        codec.decode(PromptRequest, body)
    with pytest.raises(CodecError, match=told):
        codec.decode_text(body)


@given(st.binary(max_size=200), st.integers(0, 400))
def test_a_damaged_body_only_ever_raises_a_codec_error(noise: bytes, at: int) -> None:
    good = gzip.compress(LONG)
    body = good[:at] + noise + good[at + len(noise) :]
    try:
        found = codec.plain(body)
    except CodecError:
        return
    assert found == LONG or not codec.is_compressed(body)


def test_a_text_is_bounded_after_it_was_unpacked() -> None:
    with pytest.raises(CodecError, match="characters"):
        codec.decode_text(gzip.compress(b"x" * (MAX_PROMPT_CHARS + 1)))
