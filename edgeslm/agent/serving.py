"""The models that answer prompts, while they may be swapped for others.

What always holds:

* One computes at a time: a prompt, a swap or a hold. Each gets its turn in the order in which it was asked for, so
  that neither a stream of prompts nor a trial keeps the other waiting for more than one turn.
* A name that is known always leads to a whole model. Where the old one has to be let go of before the new one can be
  loaded, whoever asks for the name meanwhile waits.

Left to others: what to serve (:mod:`edgeslm.agent.update`), and how a package is loaded.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from edgeslm.agent.ports import Activity, Model
from edgeslm.errors import EdgeslmError, InferenceError, ModelLoadError, UnknownModelError
from edgeslm.schema.installed import InstalledPackage

log = logging.getLogger(__name__)

Load = Callable[[InstalledPackage], Model]
"""Loads a package and proves it; raises ``ModelLoadError`` or what else keeps it from being served."""

_NOTHING = Activity(begun=0, failed=0, is_busy=False)


def _load_nothing(installed: InstalledPackage) -> Model:
    raise ModelLoadError(
        f"{installed.manifest.name}: this agent does not change its models", path=str(installed.directory)
    )


def _leave_cold(_: Model) -> None:
    """Nothing has to be learned about it."""


def _tell_nobody() -> None:
    """Nobody wants to know."""


class _Turns:
    """A lock that goes to who asked first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = 0
        self._current = 0

    def __enter__(self) -> None:
        with self._changed:
            mine, self._next = self._next, self._next + 1
            while self._current != mine:
                self._changed.wait()

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._current += 1
            self._changed.notify_all()


class ServedModels:
    """The models in service, by name; the first is the default. From any thread.

    Attributes:
        on_change: called after what is served became another.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        load: Load = _load_nothing,
        warm: Callable[[Model], None] = _leave_cold,
    ) -> None:
        """Serve `models`.

        Args:
            models: loaded, by name.
            load: loads another package.
            warm: told of a loaded model before it answers anybody, where there is time for it.
        """
        self._models = dict(models)
        self._load = load
        self._warm = warm
        self._turns = _Turns()
        self._names = threading.Lock()  # taken after a turn, never before one
        self._activity: dict[str, Activity] = {}
        self.on_change: Callable[[], None] = _tell_nobody

    # --- who asks for models -----------------------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        """The names that are served, the default first."""
        with self._names:
            return tuple(self._models)

    def all(self) -> tuple[Model, ...]:
        """The models, the default first."""
        with self._names:
            return tuple(self._models.values())

    def get(self, name: str | None) -> Model:
        """The model that serves `name`, or the default; not to compute with, which takes a :meth:`turn`.

        Raises:
            UnknownModelError: it is not served.
        """
        with self._names:
            found = next(iter(self._models), None) if name is None else name
            if found is None or found not in self._models:
                served = ", ".join(self._models) or "none"
                raise UnknownModelError(f"model '{name or 'default'}' is not served here (served: {served})")
            return self._models[found]

    def prefer(self, name: str) -> None:
        """Let `name` be the default; a name that is not served changes nothing."""
        with self._names:
            if name not in self._models or next(iter(self._models)) == name:
                return
            self._models = {name: self._models[name], **self._models}
        self.on_change()

    @contextmanager
    def turn(self, name: str | None) -> Iterator[Model]:
        """Compute a prompt with the model that serves `name`, or the default, until the block ends.

        Raises:
            UnknownModelError: it is not served.
        """
        with self._turns:
            model = self.get(name)
            counted = model.installed.manifest.name
            self._count(counted, begun=1, is_busy=True)
            failed = 0
            try:
                yield model
            except EdgeslmError as error:
                failed = int(isinstance(error, InferenceError | ModelLoadError))
                raise
            except Exception:
                failed = 1
                raise
            finally:
                self._count(counted, failed=failed, is_busy=False)

    # --- ``Serving`` of the updater ----------------------------------------------------------------------------

    def served(self, name: str) -> InstalledPackage | None:
        """See ``Serving``."""
        with self._names:
            model = self._models.get(name)
        return None if model is None else model.installed

    def swap(self, name: str, installed: InstalledPackage, *, beside: bool) -> float:
        """See ``Serving``."""
        served = self.served(name)
        if served is not None and served.sha256 == installed.sha256:
            return 0.0
        try:
            swap_s = self._swap_beside(name, installed) if beside else self._swap_in_place(name, installed)
        finally:
            self.on_change()
        log.info("%s %s serves; the swap took %.3f s", name, installed.manifest.version, swap_s)
        return swap_s

    def withdraw(self, name: str) -> None:
        """See ``Serving``."""
        with self._turns, self._names:
            gone = self._models.pop(name, None)
        if gone is not None:
            self.on_change()

    @contextmanager
    def hold(self, name: str) -> Iterator[Model]:
        """See ``Serving``."""
        with self._turns:
            yield self.get(name)

    def activity(self, name: str) -> Activity:
        """See ``Serving``."""
        with self._names:
            return self._activity.get(name, _NOTHING)

    def any_activity(self) -> Activity:
        """See ``Serving``."""
        with self._names:
            found = tuple(self._activity.values())
        return Activity(
            begun=sum(item.begun for item in found),
            failed=sum(item.failed for item in found),
            is_busy=any(item.is_busy for item in found),
        )

    # --- parts -------------------------------------------------------------------------------------------------

    def _count(self, name: str, *, begun: int = 0, failed: int = 0, is_busy: bool) -> None:
        with self._names:
            before = self._activity.get(name, _NOTHING)
            self._activity[name] = Activity(before.begun + begun, before.failed + failed, is_busy)

    def _swap_beside(self, name: str, installed: InstalledPackage) -> float:
        new = self._load(installed)
        self._warm(new)
        with self._turns:
            began_s = time.monotonic()
            with self._names:
                self._models[name] = new
            return time.monotonic() - began_s

    def _swap_in_place(self, name: str, installed: InstalledPackage) -> float:
        with self._turns, self._names:
            began_s = time.monotonic()
            order = list(dict.fromkeys([*self._models, name]))
            former = self._let_go(name)
            try:
                self._models[name] = self._load(installed)
            except BaseException:
                if former is not None:
                    self._bring_back(name, former)
                raise
            finally:
                self._models = {key: self._models[key] for key in order if key in self._models}
            return time.monotonic() - began_s

    def _let_go(self, name: str) -> InstalledPackage | None:
        """Free the memory of the model that serves `name`; its package."""
        model = self._models.pop(name, None)
        former = None if model is None else model.installed
        del model
        gc.collect()
        return former

    def _bring_back(self, name: str, former: InstalledPackage) -> None:
        try:
            self._models[name] = self._load(former)
        except Exception:  # what kept the other one from loading is what has to be told
            log.exception("%s serves no longer: what served before does not load either", name)
