"""The models that answer prompts, while they may be swapped for others.

What always holds:

* One computes at a time: a prompt, a swap or a hold. Each gets its turn in the order in which it was asked for, so
  that neither a stream of prompts nor a trial keeps the other waiting for more than one turn. Who has it may let a
  prompt of high priority compute in the midst of it, and waits meanwhile.
* A name that is known always leads to a whole model. Where the old one has to be let go of before the new one can be
  loaded, whoever asks for the name meanwhile waits.
* Who has a turn has a model that is loaded, and stays so (:mod:`edgeslm.agent.residency`).

Left to others: what to serve (:mod:`edgeslm.agent.update`), and how a package is loaded.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from edgeslm.agent.ports import Activity, Model
from edgeslm.agent.residency import Residency
from edgeslm.agent.sessions import Sessions
from edgeslm.errors import (
    EdgeslmError,
    InferenceError,
    ModelLoadError,
    ModelsMemoryError,
    UnknownModelError,
)
from edgeslm.schema.installed import InstalledPackage

log = logging.getLogger(__name__)

Load = Callable[[InstalledPackage], Model]
"""Loads a package and proves it; raises ``ModelLoadError`` or what else keeps it from being served."""


def _load_nothing(installed: InstalledPackage) -> Model:
    raise ModelLoadError(
        f"{installed.manifest.name}: this agent does not change its models", path=str(installed.directory)
    )


def _leave_cold(_: Model) -> None:
    """Nothing has to be learned about it."""


def _tell_nobody() -> None:
    """Nobody wants to know."""


class _Turns:
    """A lock that goes to who asked first; who has it can let others in, and it goes on when all of them left."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = 0
        self._current = 0
        self._inside = 0

    def __enter__(self) -> None:
        with self._changed:
            mine, self._next = self._next, self._next + 1
            while self._current != mine:
                self._changed.wait()
            self._inside = 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside -= 1
            if not self._inside:
                self._current += 1
                self._changed.notify_all()

    @contextmanager
    def within(self) -> Iterator[None]:
        """Be let in by who has the lock."""
        with self._changed:
            self._inside += 1
        try:
            yield
        finally:
            self.__exit__()


@dataclass
class _Tally:
    """What prompts of one model have come to."""

    begun: int = 0
    failed: int = 0
    busy: int = 0

    def shown(self) -> Activity:
        return Activity(self.begun, self.failed, self.busy > 0)


class ServedModels:
    """The models in service, by name; the first is the default. From any thread.

    Attributes:
        on_change: called after what is served became another.
        sessions: what was said with them; only for who has a turn.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        load: Load = _load_nothing,
        warm: Callable[[Model], None] = _leave_cold,
        sessions: Sessions | None = None,
        residency: Residency | None = None,
    ) -> None:
        """Serve `models`.

        Args:
            models: loaded, by name.
            load: loads another package; that of `residency` where there is one, which made `models` as well.
            warm: told of a loaded model before it answers anybody, where there is time for it.
            sessions: what was said with them; by default nothing yet, within the usual limits.
            residency: keeps what is loaded within a limit; without one all stay loaded.
        """
        self._residency = residency
        self._models = dict(models)
        self._load = load
        self._warm = warm
        self.sessions = Sessions() if sessions is None else sessions
        self._turns = _Turns()
        self._names = threading.Lock()  # taken after a turn, never before one
        self._tallies: dict[str, _Tally] = {}
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

    def fits_beside(self, model: Model) -> bool:
        """Whether `model` is loaded, or could be beside what computes."""
        return self._residency is None or self._residency.fits(model)

    def on_load(self, told: Callable[[], None]) -> None:
        """Tell `told` when another model was loaded because it was asked, or one made room."""
        if self._residency is not None:
            self._residency.on_change = told

    def resting(self) -> frozenset[str]:
        """Names of models that are not loaded just now."""
        if self._residency is None:
            return frozenset()
        return frozenset(
            model.installed.manifest.name for model in self.all() if not self._residency.is_loaded(model)
        )

    def prefer(self, name: str) -> None:
        """Let `name` be the default; a name that is not served changes nothing."""
        with self._names:
            if name not in self._models or next(iter(self._models)) == name:
                return
            self._models = {name: self._models[name], **self._models}
        self.on_change()

    @contextmanager
    def turn(self, name: str | None, *, within: bool = False) -> Iterator[Model]:
        """Compute a prompt with the model that serves `name`, or the default, until the block ends.

        Args:
            within: in the midst of another turn, which waits meanwhile.

        Raises:
            UnknownModelError: it is not served.
            ModelLoadError: it is not loaded, and cannot be.
        """
        with self._turns.within() if within else self._turns:
            model = self.get(name)
            tally = self._tally(model.installed.manifest.name)
            with self._names:
                tally.begun += 1
                tally.busy += 1
            failed = 0
            try:
                with self._present(model):
                    yield model
            except EdgeslmError as error:
                failed = int(isinstance(error, InferenceError | ModelLoadError))
                raise
            except Exception:
                failed = 1
                raise
            finally:
                with self._names:
                    tally.failed += failed
                    tally.busy -= 1

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
            swap_s = self._swap(name, installed, beside=beside)
        finally:
            self.on_change()
        log.info("%s %s serves; the swap took %.3f s", name, installed.manifest.version, swap_s)
        return swap_s

    def withdraw(self, name: str) -> None:
        """See ``Serving``."""
        with self._turns, self._names:
            gone = self._models.pop(name, None)
        if gone is not None:
            self._dismiss(gone)
            self.on_change()

    @contextmanager
    def hold(self, name: str) -> Iterator[Model]:
        """See ``Serving``."""
        with self._turns:
            model = self.get(name)
            with self._present(model):
                yield model

    def activity(self, name: str) -> Activity:
        """See ``Serving``."""
        with self._names:
            return self._tallies.get(name, _Tally()).shown()

    def any_activity(self) -> Activity:
        """See ``Serving``."""
        with self._names:
            found = tuple(self._tallies.values())
            return Activity(
                begun=sum(item.begun for item in found),
                failed=sum(item.failed for item in found),
                is_busy=any(item.busy for item in found),
            )

    # --- parts -------------------------------------------------------------------------------------------------

    def _tally(self, name: str) -> _Tally:
        with self._names:
            return self._tallies.setdefault(name, _Tally())

    def _present(self, model: Model) -> AbstractContextManager[None]:
        """Keep `model` loaded until the block ends; it is loaded first where it is not."""
        return nullcontext() if self._residency is None else self._residency.use(model)

    def _swap(self, name: str, installed: InstalledPackage, *, beside: bool) -> float:
        if beside:
            try:
                return self._swap_beside(name, installed)
            except ModelsMemoryError as error:
                log.info("%s: so what serves before is let go of first", error)
        return self._swap_in_place(name, installed)

    def _swap_beside(self, name: str, installed: InstalledPackage) -> float:
        new = self._load(installed)
        with self._present(new):
            self._warm(new)
        with self._turns:
            began_s = time.monotonic()
            with self._names:
                former = self._models.get(name)
                self._models[name] = new
            self._dismiss(former)
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
        self._dismiss(model)
        del model
        gc.collect()
        return former

    def _dismiss(self, model: Model | None) -> None:
        if model is not None and self._residency is not None:
            self._residency.dismiss(model)

    def _bring_back(self, name: str, former: InstalledPackage) -> None:
        try:
            self._models[name] = self._load(former)
        except Exception:  # what kept the other one from loading is what has to be told
            log.exception("%s serves no longer: what served before does not load either", name)
