"""A digest that is taken beside other work is the digest."""

from __future__ import annotations

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from edgeslm.flash.image.digests import SideDigest


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 100, 65_535, 65_536, 300_000]), max_size=8))
def test_pieces_of_any_size_give_the_digest_of_all(sizes: list[int]) -> None:
    side, plain = SideDigest(), hashlib.sha256()
    for number, size in enumerate(sizes):
        piece = bytes([number]) * size
        side.update(piece)
        plain.update(piece)
    assert side.hexdigest() == plain.hexdigest()
    side.update(b"more")
    plain.update(b"more")
    assert side.hexdigest() == plain.hexdigest()
