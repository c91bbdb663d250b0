"""``.litertlm`` bundles behind the port of all models.

What always holds: a bundle is served only after it said the golden text of its package; an option that LiteRT-LM does
not have is refused by name; and what a user writes cannot spell the bundle's markup, which LiteRT-LM would follow.

Less can be asked of it than of :mod:`edgeslm.runtime.model`: it does not wait between tokens (where the budget asks for
a pause it goes on), cannot be set aside for another prompt, keeps nothing of a prompt for the next, and is opened anew
for another number of threads.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from edgeslm.errors import (
    BadRequestError,
    ConstraintError,
    ContextOverflowError,
    InferenceError,
    ModelLoadError,
    UnsupportedOptionError,
)
from edgeslm.runtime.backend import Runtime
from edgeslm.runtime.constraint_form import NAMES, AnswerForm, first_line, form_of, to_grammar
from edgeslm.runtime.conversation import Turn
from edgeslm.runtime.generation import Generation, OnText, ShouldStop, never
from edgeslm.runtime.litert_lm_bundle import Bundle, Said, litert_lm_runtime, prove_text
from edgeslm.runtime.model import Answer, GraphCheck, check_requirements, parse_json
from edgeslm.runtime.opened import Opened
from edgeslm.runtime.outcome import Outcome
from edgeslm.runtime.prompt import no_place_for_system, normal_text
from edgeslm.runtime.weight_cache import BUNDLE_SUFFIX
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.message import Options, PromptRequest, Task
from edgeslm.schema.package import GraphSpec, TextProof

_MAX_CHARS_PER_TOKEN = 64


class LiteRtLmModel(Opened):
    """A bundle, ready to answer; serves the agent like ``LoadedModel`` does.

    Attributes:
        installed: the package.
        runtime: LiteRT-LM.
        graph: the bundle.
        load_s: seconds that loading and proving took.
        threads: worker threads in use.
    """

    tasks: tuple[Task, ...] = ("generate",)
    takes_arrays = False

    def __init__(
        self,
        installed: InstalledPackage,
        runtime: Runtime,
        graph: GraphSpec,
        threads: int,
        cache_dir: Path | None,
    ) -> None:
        """Open the bundle and prove it.

        Raises:
            ModelLoadError: it cannot be opened, or says something else than is promised.
        """
        started = time.perf_counter()
        self.installed = installed
        self.runtime = runtime
        self.graph = graph
        self.threads = threads
        self._cache_dir = cache_dir
        self._bundle = self._open(threads)
        self.load_s = time.perf_counter() - started

    def _open(self, threads: int) -> Bundle:
        path = self.installed.file(self.graph.file)
        bundle = Bundle(
            path,
            self.runtime,
            threads=threads,
            context_tokens=self.installed.manifest.context_tokens,
            cache_dir=self._place_of_cache(),
        )
        assert isinstance(self.graph.proof, TextProof)  # noqa: S101 - the manifest makes sure
        prove_text(bundle, self.graph.proof, str(path))
        return bundle

    def _place_of_cache(self) -> Path | None:
        if self._cache_dir is None:
            return None
        sha256 = self.installed.manifest.files[self.graph.file].sha256
        return self._cache_dir / f"{sha256[:32]}-{self.runtime.version}{BUNDLE_SUFFIX}"

    @property
    def context_tokens(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._bundle.context_tokens

    @property
    def max_answer_tokens(self) -> int:
        """Most tokens of an answer for which the request names no limit."""
        return self.installed.manifest.max_answer_tokens

    def set_threads(self, threads: int) -> None:
        """Compute with `threads` threads from the next prompt on; opens the bundle anew.

        Raises:
            ModelLoadError: it cannot be opened so; the former number stays.
        """
        if threads != self.threads:
            self._bundle = self._open(threads)
            self.threads = threads

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Refuse: LiteRT-LM goes on with an answer until its end.

        Raises:
            InferenceError: always.
        """
        raise InferenceError(f"{self.runtime_name} cannot set an answer aside")
        yield

    def count_tokens(self, prompt: str, *, turns: Sequence[Turn] = (), system: str | None = None) -> int:
        """Tokens of `prompt` in the bundle's form, with what comes before; from any thread.

        Raises:
            BadRequestError: it is blank, no Unicode text, or spells the bundle's markup; or there is no place for
                `system`.
            ContextOverflowError: longer than the model takes.
        """
        return self._fit(normal_text(prompt), turns, system)

    def _fit(self, prompt: str, turns: Sequence[Turn], system: str | None) -> int:
        if system is not None and not self._bundle.takes_system:
            raise no_place_for_system(self.name)
        limit = min(self.installed.manifest.max_prompt_tokens, self._bundle.context_tokens - 1)
        most = limit * _MAX_CHARS_PER_TOKEN
        said = [prompt, *(text for turn in turns for text in (turn.prompt, turn.answer))]
        said += [] if system is None else [system]
        actual, unit = sum(map(len, said)), "characters"
        if actual <= most:
            actual, most, unit = sum(map(self._bundle.count_tokens, said)), limit, "tokens"
        if actual > most:
            raise ContextOverflowError(
                f"prompt and {len(turns)} earlier turns of {actual} {unit}, the model takes {limit} tokens",
                actual=actual,
                limit=most,
                unit=unit,
                turns=len(turns),
                hint="Shorten it, or begin another session",
            )
        return actual

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
        """Answer one prompt; see :meth:`edgeslm.runtime.model.LoadedModel.answer`.

        Raises:
            UnsupportedOptionError: ``grammar``, or ``overflow`` other than ``error``.
            ConstraintError: the form that the options ask for cannot be followed.
            BadRequestError, ContextOverflowError: see :meth:`count_tokens`.
            InferenceError: LiteRT-LM fails; the model can still be used for the next prompt.
        """
        _check_options(options, self.name)
        asked = normal_text(prompt)
        prompt_tokens = self._fit(asked, turns, system)
        wanted = options.max_tokens or self.max_answer_tokens
        said = Said(options.stop, on_text)
        max_tokens = min(wanted, self._bundle.context_tokens - prompt_tokens)
        reason = self._bundle.say(asked, turns, system, max_tokens, options, should_stop or never, said.take)
        generation = said.generation(self._bundle, prompt_tokens, reason, max_tokens, options)
        turn = None if options.session is None else Turn(asked, generation.text)
        return Answer(generation, self._parse(generation, options), turn)

    def infer(self, request: PromptRequest, *, should_stop: ShouldStop | None = None) -> Outcome:
        """Refuse: it generates, and does nothing else.

        Raises:
            BadRequestError: always.
        """
        raise BadRequestError(f"task '{request.task}' is not served by {self.name} (it serves: generate)")

    def _parse(self, generation: Generation, options: Options) -> JsonValue:
        if options.json_schema is not None:
            return parse_json(generation.text)
        value = parse_json(generation.text) if self.installed.manifest.json_answers else None
        return value if isinstance(value, dict) else None


def _check_options(options: Options, name: str) -> None:
    for option, is_asked in (("grammar", options.grammar), ("overflow", options.overflow == "slide")):
        if is_asked:
            what = "option 'grammar'" if option == "grammar" else "option 'overflow' other than 'error'"
            raise UnsupportedOptionError(
                f"{what} is not supported by {name}, which LiteRT-LM computes", option=option
            )
    form = form_of(options)
    if form is not None:
        _check_form(form)


def _check_form(form: AnswerForm) -> None:
    """Refuse a form that nothing can have, before LiteRT-LM fails at it without a word.

    Raises:
        ConstraintError: the library that both take for it does not take it.
    """
    try:
        library: Any = importlib.import_module("llguidance")
    except ImportError:
        return
    wrong = library.LLMatcher.validate_grammar(to_grammar(library, form))
    if wrong:
        raise ConstraintError(f"{NAMES[form.kind]} cannot be followed: {first_line(wrong)}", kind=form.kind)


def load_bundle(
    installed: InstalledPackage,
    threads: int = 1,
    cache_dir: Path | None = None,
    check: GraphCheck | None = None,
) -> LiteRtLmModel:
    """Open the first bundle of the package that proves right.

    Args:
        check: asked before a bundle is opened in this process.

    Raises:
        RuntimeMissingError: LiteRT-LM is not installed.
        ModelLoadError: its needs are not met, or none can be opened; the first reason is told.
    """
    runtime = litert_lm_runtime()
    check_requirements(installed)
    failures: list[ModelLoadError] = []
    for graph in installed.manifest.graphs:
        try:
            if check is not None:
                check(installed, graph, runtime)
            return LiteRtLmModel(installed, runtime, graph, threads, cache_dir)
        except ModelLoadError as error:
            failures.append(error)
    raise failures[0]
