"""Work that is done a little ahead of who wants it, in a thread of its own: the card waits for nothing.

What always holds: the thread has ended when the iterator has, whatever ended it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

DEPTH = 3
"""How many items wait at most. With the one in use and the one in the making, an item lives for DEPTH + 2 turns."""

T = TypeVar("T")


@dataclass(frozen=True)
class _Failed:
    error: BaseException


_END = object()


@contextmanager
def ahead(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """`items`, made in another thread; what they raise is raised here."""
    waiting: queue.Queue[object] = queue.Queue(DEPTH)
    stop = threading.Event()

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
        except BaseException as error:
            put(_Failed(error))
        else:
            put(_END)

    def arriving() -> Iterator[T]:
        while (item := waiting.get()) is not _END:
            if isinstance(item, _Failed):
                raise item.error
            yield item  # type: ignore[misc]

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        yield arriving()
    finally:
        stop.set()
        thread.join()
