"""Which of the served models are loaded, where not all of them fit into the memory that models may take.

A model that is not loaded is known all the same: what it does and takes was learned when it was loaded first. It is
loaded when a prompt needs it; who was not used for the longest time makes room.

What always holds: the models that are loaded, and what is being loaded, are predicted to take no more than the limit;
one that computes is never let go of; before a model is loaded there is room for it.

The limit is for models alone: the libraries that compute them are in memory once, whatever is loaded
(:mod:`edgeslm.runtime.memory` predicts both).
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from edgeslm.agent.ports import Model
from edgeslm.errors import ModelLoadError, ModelsMemoryError
from edgeslm.runtime.conversation import Turn
from edgeslm.runtime.generation import OnText, ShouldStop
from edgeslm.runtime.model import Answer
from edgeslm.runtime.outcome import Outcome
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.message import Options, PromptRequest, Task

log = logging.getLogger(__name__)

_BYTES_PER_TOKEN = 3
"""Of a text that cannot be counted just now; rather too many tokens than too few."""


class ModelOnCall:
    """``Model`` that may be out of memory: it is known what it does, but it computes only while it is loaded."""

    def __init__(self, model: Model, needed_bytes: int) -> None:
        """Know `model`, which is loaded.

        Args:
            needed_bytes: memory that it takes while it is.
        """
        self.needed_bytes = needed_bytes
        self.installed: InstalledPackage = model.installed
        self.name: str = model.name
        self.tasks: tuple[Task, ...] = model.tasks
        self.takes_arrays: bool = model.takes_arrays
        self.graph_file: str = model.graph_file
        self.runtime_name: str = model.runtime_name
        self.context_tokens: int = model.context_tokens
        self.max_answer_tokens: int = model.max_answer_tokens
        self._threads = model.threads
        self._model: Model | None = model

    @property
    def is_loaded(self) -> bool:
        """Whether it can compute."""
        return self._model is not None

    @property
    def threads(self) -> int:
        """Inference threads in use, now or when it was last loaded."""
        model = self._model
        return self._threads if model is None else model.threads

    def take(self, model: Model) -> None:
        """It is loaded again."""
        self._model = model

    def let_go(self) -> None:
        """Keep nothing of it in memory."""
        if self._model is not None:
            self._threads = self._model.threads
            self._model = None

    def set_threads(self, threads: int) -> None:
        """See ``Model``."""
        self._loaded().set_threads(threads)

    def set_aside(self) -> AbstractContextManager[None]:
        """See ``Model``."""
        return self._loaded().set_aside()

    def count_tokens(self, prompt: str, *, turns: Sequence[Turn] = (), system: str | None = None) -> int:
        """See ``Model``; a guess while it is not loaded."""
        model = self._model
        if model is not None:
            return model.count_tokens(prompt, turns=turns, system=system)
        texts = [prompt, system or "", *(text for turn in turns for text in (turn.prompt, turn.answer))]
        size = sum(len(text.encode("utf-8", "replace")) for text in texts)
        return min(1 + size // _BYTES_PER_TOKEN, self.context_tokens)

    def answer(
        self,
        prompt: str,
        options: Options,
        *,
        on_text: OnText | None = None,
        should_stop: ShouldStop | None = None,
        turns: Sequence[Turn] = (),
        system: str | None = None,
    ) -> Answer:
        """See ``Model``."""
        return self._loaded().answer(
            prompt, options, on_text=on_text, should_stop=should_stop, turns=turns, system=system
        )

    def infer(self, request: PromptRequest, *, should_stop: ShouldStop | None = None) -> Outcome:
        """See ``Model``."""
        return self._loaded().infer(request, should_stop=should_stop)

    def _loaded(self) -> Model:
        model = self._model
        if model is None:
            raise ModelLoadError(f"{self.name} is not loaded just now", path=str(self.installed.directory))
        return model


class Residency:
    """Thread-safe; loads on the thread of who asks, and lets others go on meanwhile.

    Attributes:
        on_change: told after another model was loaded or let go of.
    """

    def __init__(
        self,
        limit_bytes: int,
        need: Callable[[InstalledPackage], int],
        load: Callable[[InstalledPackage], Model],
    ) -> None:
        """Nothing is loaded yet.

        Args:
            limit_bytes: most memory for models.
            need: predicts what a package will take.
            load: loads a package and proves it.
        """
        self._limit_bytes = limit_bytes
        self._need = need
        self._load = load
        self._lock = threading.Lock()
        self._known: list[ModelOnCall] = []
        """The one that was used last is the last."""
        self._uses: dict[int, int] = {}
        """How often a model is in use just now, by its identity."""
        self._loading_bytes = 0
        self.on_change: Callable[[], None] = _tell_nobody

    def load(self, installed: InstalledPackage) -> ModelOnCall:
        """Load another model; who is not in use makes room.

        Raises:
            ModelsMemoryError: there is no room, even so; or it is larger than the limit.
            EdgeslmError: what else keeps it from being loaded.
        """
        needed_bytes = self._need(installed)
        model = ModelOnCall(self._load_into_room(installed, needed_bytes), needed_bytes)
        with self._lock:
            self._known.append(model)
            self._loading_bytes -= needed_bytes
        return model

    def dismiss(self, model: Model) -> None:
        """`model` is served no longer."""
        with self._lock:
            if isinstance(model, ModelOnCall) and model in self._known:
                self._known.remove(model)
                model.let_go()
        gc.collect()

    @contextmanager
    def use(self, model: Model) -> Iterator[None]:
        """Keep `model` loaded until the block ends; it is loaded first where it is not.

        Raises:
            ModelsMemoryError: those that are in use leave no room for it.
            EdgeslmError: what else keeps it from being loaded.
        """
        if not isinstance(model, ModelOnCall):
            yield
            return
        with self._lock:
            self._uses[id(model)] = self._uses.get(id(model), 0) + 1
            if model in self._known:
                self._known.remove(model)
                self._known.append(model)
        try:
            if not model.is_loaded:
                self._bring(model)
            yield
        finally:
            with self._lock:
                self._uses[id(model)] -= 1
                if not self._uses[id(model)]:
                    del self._uses[id(model)]

    def fits(self, model: Model) -> bool:
        """Whether `model` is loaded, or could be beside what is in use."""
        if not isinstance(model, ModelOnCall) or model.is_loaded:
            return True
        with self._lock:
            return model.needed_bytes <= self._limit_bytes - self._fixed_bytes()

    def is_loaded(self, model: Model) -> bool:
        """Whether `model` can compute at once."""
        return not isinstance(model, ModelOnCall) or model.is_loaded

    # --- parts -------------------------------------------------------------------------------------------------

    def _bring(self, model: ModelOnCall) -> None:
        began_s = time.monotonic()
        try:
            model.take(self._load_into_room(model.installed, model.needed_bytes))
            with self._lock:
                self._loading_bytes -= model.needed_bytes
        finally:
            self.on_change()
        log.info("%s is loaded again; it took %.3f s", model.name, time.monotonic() - began_s)

    def _load_into_room(self, installed: InstalledPackage, needed_bytes: int) -> Model:
        """Load; the room that it takes is still counted as that of a load when this returns."""
        self._make_room(installed, needed_bytes)
        gc.collect()
        try:
            return self._load(installed)
        except BaseException:
            with self._lock:
                self._loading_bytes -= needed_bytes
            raise

    def _make_room(self, installed: InstalledPackage, needed_bytes: int) -> None:
        with self._lock:
            room_bytes = self._limit_bytes - self._fixed_bytes()
            if needed_bytes > room_bytes:
                manifest = installed.manifest
                is_too_large = needed_bytes > self._limit_bytes
                raise ModelsMemoryError(
                    f"{manifest.name}@{manifest.version} will need {needed_bytes / 1e6:.0f} MB of memory, "
                    + (
                        f"models may take {self._limit_bytes / 1e6:.0f} MB"
                        if is_too_large
                        else f"models in use leave {room_bytes / 1e6:.0f} of {self._limit_bytes / 1e6:.0f} MB"
                    ),
                    path=str(installed.directory),
                    needed_bytes=needed_bytes,
                    free_bytes=room_bytes,
                    hint="Raise 'models_memory_mb', or take a smaller model" if is_too_large else None,
                )
            for model in list(self._known):
                if self._loaded_bytes() + self._loading_bytes + needed_bytes <= self._limit_bytes:
                    break
                if model.is_loaded and id(model) not in self._uses:
                    model.let_go()
                    log.info("%s makes room for %s", model.name, installed.manifest.name)
            self._loading_bytes += needed_bytes

    def _loaded_bytes(self) -> int:
        return sum(model.needed_bytes for model in self._known if model.is_loaded)

    def _fixed_bytes(self) -> int:
        """What cannot be let go of: models in use, and those that are being loaded."""
        in_use = (model for model in self._known if model.is_loaded and id(model) in self._uses)
        return sum(model.needed_bytes for model in in_use) + self._loading_bytes


def _tell_nobody() -> None:
    """Nobody wants to know."""
