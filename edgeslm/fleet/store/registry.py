"""Tables of registry; see :mod:`edgeslm.fleet.store.models`."""

from __future__ import annotations
