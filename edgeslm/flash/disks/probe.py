"""A first look whether a card holds as much as it says. Cards that lie are sold, and work until they are full.

What always holds: what a probe does not find out, reading back does, as far as the image reaches. A probe reaches to
the end of the card, where the board's first boot grows its file system to; a clever forgery may still pass it.

Source: how forgeries behave: f3 (Fight Flash Fraud), documentation of f3probe.
"""

from __future__ import annotations

import hashlib
import secrets

from edgeslm.errors import FakeCapacityError
from edgeslm.flash.disks.target import Target
from edgeslm.flash.disks.transfer import read_all, write_all
from edgeslm.flash.image.past_cache import aligned

_BLOCK_BYTES = 4_096
_CUTS = 16
_SMALLEST_BYTES = 64 * 2**20


def probe_offsets(size_bytes: int) -> tuple[int, ...]:
    """Where marks are set: sixteenths of the card, so that one lies beyond the end of whatever is really there."""
    if size_bytes < _SMALLEST_BYTES:
        return ()
    last = size_bytes // _BLOCK_BYTES - 1
    return tuple(last * part // _CUTS * _BLOCK_BYTES for part in range(1, _CUTS + 1))


def probe(target: Target) -> None:
    """Set marks all over the card, look whether they stay, and take them off.

    Raises:
        FakeCapacityError: some did not.
        DiskError: it cannot be read or written.
    """
    nonce = secrets.token_bytes(16)
    offsets = probe_offsets(target.size_bytes)
    buffer = aligned(_BLOCK_BYTES)
    for offset in offsets:
        buffer[:] = _mark(nonce, offset)
        write_all(target, offset, buffer)
    target.sync()
    target.forget()
    lost = []
    for offset in offsets:
        read_all(target, offset, buffer)
        if bytes(buffer) != _mark(nonce, offset):
            lost.append(offset)
    if lost:
        raise FakeCapacityError(
            f"{target.device} says that it holds {target.size_bytes} bytes, and loses what is put at byte {lost[0]}",
            device=target.device,
            offset=lost[0],
            hint="It is a forgery or broken: do not use it, and do not trust others from where it came",
        )
    for offset in offsets:
        target.zero(offset, _BLOCK_BYTES)


def _mark(nonce: bytes, offset: int) -> bytes:
    return hashlib.sha256(nonce + offset.to_bytes(8, "big")).digest() * (_BLOCK_BYTES // 32)
