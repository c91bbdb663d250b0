"""One stage of a stream of work, in a thread beside the other stages: while one piece is written the next is read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, Self

LAG = 2
"""How many pieces may be with one stage: the one it works on and the next. Who gives one more waits."""

P = ParamSpec("P")


class Beside:
    """A thread that does what it is given in its order; use it as a context manager.

    What always holds: when :meth:`do` comes back, all but the last :data:`LAG` pieces that it was given are done.
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._waiting: deque[Future[object]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def do(self, work: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Do `work` when all that came before is done. What an earlier piece raised is raised here."""
        while len(self._waiting) >= LAG:
            self._waiting.popleft().result()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1)
        self._waiting.append(self._thread.submit(work, *args, **kwargs))

    def wait(self) -> None:
        """Return when all is done. What a piece raised is raised here."""
        while self._waiting:
            self._waiting.popleft().result()
