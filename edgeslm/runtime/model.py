"""A package loaded for inference: the right graph for this runtime, proved, with tokenizer and template.

A graph is served only after it has computed its golden vector: a runtime that loads a graph and computes rubbish
(tflite-runtime 2.14 with per-channel int8 layers gives zeros) is refused with a reason.
"""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import JsonValue

import edgeslm
from edgeslm.errors import BadRequestError, InferenceError, ModelLoadError, RuntimeMissingError
from edgeslm.procfs import memory_kib
from edgeslm.runtime.backend import Runtime, choose_runtime, native_output_hidden
from edgeslm.runtime.bucket_proof import BucketProof
from edgeslm.runtime.constraint import GrammarCompiler
from edgeslm.runtime.constraint_form import AnswerForm, form_of
from edgeslm.runtime.conversation import PlainRenderer, Renderer, Turn, fit
from edgeslm.runtime.engine import Engine, KvEngine
from edgeslm.runtime.executor import CompiledExecutor, SignatureExecutor, has_compiled_model
from edgeslm.runtime.generation import Generation, GenerationSettings, OnText, ShouldStop, generate, never
from edgeslm.runtime.likelihood import measure_likelihoods
from edgeslm.runtime.opened import Opened
from edgeslm.runtime.outcome import Outcome, beat_of, check_task
from edgeslm.runtime.prefix_cache import PrefixPlace
from edgeslm.runtime.prompt import PromptEncoder
from edgeslm.runtime.sampling import SamplingSettings
from edgeslm.runtime.speculation import EarlierAnswers, Pace
from edgeslm.runtime.tensor import to_labels
from edgeslm.runtime.tokenizer import Tokenizer, open_tokenizer
from edgeslm.runtime.weight_cache import WeightCache
from edgeslm.schema.base import version_key
from edgeslm.schema.config import RuntimeChoice
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.message import Options, PromptRequest, Task
from edgeslm.schema.package import GraphProof, GraphSpec, TokenizerSpec


@dataclass(frozen=True)
class Answer:
    """An answer with its timings.

    Attributes:
        data: the answer parsed, where it was asked for in JSON, or where the package promises JSON objects and this
            is one.
        turn: what a conversation has to remember, where this is one's.
        dropped_turns: earlier turns that were left out to make room.
        dropped_chars: characters at the beginning of the prompt that were.
    """

    generation: Generation
    data: JsonValue
    turn: Turn | None = None
    dropped_turns: int = 0
    dropped_chars: int = 0


class LoadedModel(Opened):
    """One model, ready to answer on one thread.

    Attributes:
        installed: the package.
        runtime: the runtime that computes it.
        graph: the graph in use.
        load_s: seconds that loading and proving took.
        threads: worker threads in use.
    """

    def __init__(
        self,
        installed: InstalledPackage,
        runtime: Runtime,
        graph: GraphSpec,
        tokenizer: TokenizerSpec,
        open_engine: Callable[[int], Engine],
        threads: int,
        prefixes: PrefixPlace | None = None,
    ) -> None:
        """Open the graph; :func:`load_model` chooses it.

        Args:
            open_engine: opens and proves the graph for a number of threads.
            prefixes: where states of prompts that begin alike are kept; by default in memory of this model's own.

        Raises:
            ModelLoadError: what `open_engine` raises.
        """
        started = time.perf_counter()
        manifest = installed.manifest
        self.installed = installed
        self.runtime = runtime
        self.graph = graph
        self.threads = threads
        self._open_engine = open_engine
        open_prompts = partial(_open_prompts, installed, tokenizer)
        with ThreadPoolExecutor(1, "tokenizer") as beside:
            # CPython waits for ever where a thread finds no memory to begin with, which happens under a limit only.
            prompts = open_prompts if _memory_is_limited() else beside.submit(open_prompts).result
            self._engine = open_engine(threads)
            self._tokenizer, self._encoder, self._renderer = prompts()
        self._forms = GrammarCompiler(self._tokenizer, manifest.stop_tokens)
        self._pace = Pace()
        self._earlier = EarlierAnswers()
        self._prefixes = (prefixes or PrefixPlace()).cache(self.fingerprint)
        self.load_s = time.perf_counter() - started

    def set_threads(self, threads: int) -> None:
        """Compute with `threads` threads from the next prompt on; opens the graph anew, which takes a while.

        Raises:
            ModelLoadError: it cannot be opened so; the former number stays.
        """
        if threads != self.threads:
            self._prefixes.make_way(self._engine)
            self._engine = self._open_engine(threads)
            self._pace = Pace()
            self.threads = threads

    @property
    def fingerprint(self) -> str:
        """Names the graph in use by its content."""
        return self.installed.manifest.files[self.graph.file].sha256

    def set_aside(self) -> AbstractContextManager[None]:
        """Within the block another prompt is answered, between two tokens of one that goes on afterwards as it was.

        Raises:
            InferenceError: there is no memory for a second sequence; the first goes on.
        """
        return self._engine.set_aside()

    @property
    def engine(self) -> Engine:
        """What computes, with the cache of the last prompt; :meth:`set_threads` replaces it."""
        return self._engine

    @property
    def tokenizer(self) -> Tokenizer:
        """The package's tokenizer."""
        return self._tokenizer

    @property
    def context_tokens(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._engine.context_tokens

    @property
    def max_answer_tokens(self) -> int:
        """Most tokens of an answer for which the request names no limit."""
        return self.installed.manifest.max_answer_tokens

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it does: a model that generates classifies as well."""
        return ("generate", "classify")

    @property
    def takes_arrays(self) -> bool:
        """Never: it takes text."""
        return False

    def count_tokens(self, prompt: str, *, turns: Sequence[Turn] = (), system: str | None = None) -> int:
        """Tokens of `prompt` in the package's form, with what comes before; from any thread.

        Raises:
            BadRequestError: see :meth:`encode`; or there is no form for what comes before.
            TooLargeError: longer than the model takes.
        """
        if not turns and system is None:
            return len(self.encode(prompt))
        limit = self._prompt_limit
        renderer = self._renderer.with_system(system)
        return len(fit(renderer, turns, prompt, limit=limit, room=limit, overflow="error").token_ids)

    @property
    def _prompt_limit(self) -> int:
        return min(self.installed.manifest.max_prompt_tokens, self._engine.context_tokens - 1)

    def encode(self, prompt: str) -> list[int]:
        """Token ids of `prompt` in the package's form.

        Raises:
            BadRequestError: nothing to answer, or it spells special tokens.
            TooLargeError: longer than the model takes.
        """
        return self._encoder.encode(prompt)

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
        """Answer one prompt.

        Args:
            options: ``deadline_ms``, ``priority`` and ``stream`` are the caller's business, and so is which turns a
                ``session`` has.
            turns: what was said before in the same conversation, the oldest first.
            system: how to answer, in place of what the package says itself.
            on_text: gets the answer piece by piece, on this thread.
            should_stop: asked between tokens.

        Raises:
            BadRequestError: see :meth:`encode`.
            ContextOverflowError: longer than the model takes, and ``overflow`` wants it refused.
            ConstraintError: the form that the options ask for cannot be followed.
            InferenceError: the runtime fails; the model can still be used for the next prompt.
        """
        manifest = self.installed.manifest
        context, wanted = self._engine.context_tokens, options.max_tokens or manifest.max_answer_tokens
        limit = self._prompt_limit
        renderer = self._renderer.with_system(system)
        fitted = fit(
            renderer,
            turns,
            prompt,
            limit=limit,
            room=min(limit, max(context - wanted, context // 2)),
            overflow=options.overflow or "error",
        )
        ids = fitted.token_ids
        form = form_of(options)
        settings = GenerationSettings(
            max_tokens=min(wanted, context - len(ids)),
            stop_tokens=frozenset(manifest.stop_tokens),
            sampling=SamplingSettings(options.temperature, options.top_k, options.top_p, options.seed),
            stop=options.stop,
            grammar=None if form is None else self._forms.compile(form),
        )
        generation = generate(
            self._engine,
            self._tokenizer,
            ids,
            settings,
            on_text=on_text,
            should_stop=should_stop or never,
            pace=self._pace,
            earlier=self._earlier,
            prefixes=self._prefixes.beginning_with(
                renderer.beginning, has_turns=fitted.dropped_turns < len(turns)
            ),
        )
        turn = None if options.session is None else renderer.turn(fitted.prompt, generation)
        if turn is not None or turns:
            self._prefixes.follow(self._engine, [*ids, *generation.token_ids])
        data = self._parse(generation, form)
        return Answer(generation, data, turn, fitted.dropped_turns, fitted.dropped_chars)

    def infer(self, request: PromptRequest, *, should_stop: ShouldStop | None = None) -> Outcome:
        """Classify: how likely each choice is as the answer.

        Args:
            should_stop: asked between steps.

        Raises:
            BadRequestError: another task, or nothing to choose from; or see :meth:`encode`.
            TooLargeError: prompt and choice exceed the context.
            CancelledError, DeadlineError, BudgetError: `should_stop` had a reason.
            InferenceError: the runtime fails.
        """
        check_task(request, self.name, ("classify",))
        if request.tensor is not None:
            raise BadRequestError(f"{self.name} takes text, not arrays", hint="Send a 'prompt'")
        started = time.perf_counter()
        manifest = self.installed.manifest
        labels = tuple(dict.fromkeys(request.options.choices or manifest.labels))
        if not labels:
            raise BadRequestError(
                f"{self.name} has no labels of its own",
                hint="State what there is to choose from as 'choices'",
            )
        choices = [self._tokenizer.encode(label) for label in labels]
        if not all(choices):
            raise BadRequestError("a choice is empty once tokenized")
        ids = self.encode(request.prompt)
        self._prefixes.make_way(self._engine, ids)
        found = measure_likelihoods(
            self._engine, ids, choices, frozenset(manifest.stop_tokens), beat_of(should_stop)
        )
        scores = to_labels(np.array(found.logarithms, np.float32), labels)
        return Outcome(len(ids), time.perf_counter() - started, found.cached_tokens, scores=scores)

    def _parse(self, generation: Generation, form: AnswerForm | None) -> JsonValue:
        if form is not None and form.kind == "json_schema":
            return None if generation.closed is False else parse_json(generation.text)
        value = parse_json(generation.text) if self.installed.manifest.json_answers else None
        return value if isinstance(value, dict) else None


def _open_prompts(
    installed: InstalledPackage, spec: TokenizerSpec
) -> tuple[Tokenizer, PromptEncoder, Renderer]:
    manifest = installed.manifest
    if manifest.chat_template is not None:
        from edgeslm.runtime.chat_renderer import open_chat  # noqa: PLC0415 - most packages do without Jinja2

        return open_chat(manifest, spec, manifest.chat_template, installed.file)
    tokenizer = open_tokenizer(spec, installed.file(spec.file), manifest.prompt, manifest.stop_tokens)
    encoder = PromptEncoder(manifest.prompt, tokenizer, manifest.max_prompt_tokens)
    return tokenizer, encoder, PlainRenderer(encoder, tokenizer, manifest.stop_tokens)


def _memory_is_limited() -> bool:
    """Whether this process may find no memory; without such a limit the kernel gives it, or ends a process."""
    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    return any(resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in limits)


def parse_json(text: str) -> JsonValue:
    """What `text` says, or ``None`` where it is no JSON, or none that could be said again in UTF-8."""
    try:
        value: JsonValue = json.loads(text, parse_float=_finite, parse_constant=_finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number of JSON, or too large")
    return value


OpenedT = TypeVar("OpenedT")
GraphCheck = Callable[[InstalledPackage, GraphSpec, Runtime], None]
"""Raises `ModelLoadError` where a graph must not be opened in this process."""


def check_requirements(installed: InstalledPackage, meminfo: Path = Path("/proc/meminfo")) -> None:
    """Refuse a package that this agent is too old for, or that does not fit into the memory that is free.

    Raises:
        ModelLoadError: which need is not met.
    """
    manifest = installed.manifest
    if version_key(edgeslm.__version__) < version_key(manifest.requires.agent):
        raise ModelLoadError(
            f"{manifest.name} {manifest.version} needs edgeslm {manifest.requires.agent}, not {edgeslm.__version__}",
            path=str(installed.directory),
            hint="Update edgeslm, or take an older version of the model",
        )
    free_kib = memory_kib("MemAvailable", meminfo)
    if free_kib is None:
        return  # not Linux, or no procfs: nothing is known, so nothing is refused
    free_mb = free_kib // 1024
    if free_mb < manifest.requires.ram_mb:
        raise ModelLoadError(
            f"{manifest.name}@{manifest.version} needs {manifest.requires.ram_mb} MB of memory, {free_mb} MB are free",
            path=str(installed.directory),
        )


def _open_proved(
    installed: InstalledPackage, graph: GraphSpec, runtime: Runtime, cache_dir: Path | None, threads: int
) -> Engine:
    with native_output_hidden():
        return _open(installed, graph, runtime, cache_dir, threads)


def _open(
    installed: InstalledPackage, graph: GraphSpec, runtime: Runtime, cache_dir: Path | None, threads: int
) -> Engine:
    path = installed.file(graph.file)
    if not isinstance(graph.proof, GraphProof):
        raise ModelLoadError(f"{graph.file}: its proof is none of a generative model", path=str(path))
    proof = BucketProof(graph.proof, str(path))
    if not has_compiled_model(runtime):
        engine = KvEngine(SignatureExecutor(path, runtime, threads), proof)
        engine.prove()
        return engine
    if cache_dir is None:
        engine = KvEngine(CompiledExecutor(path, threads, None), proof)
        engine.prove()
        return engine
    cache = WeightCache(cache_dir, installed.manifest.files[graph.file].sha256, runtime)
    while True:
        try:
            engine = KvEngine(CompiledExecutor(path, threads, cache.choose()), proof)
            engine.prove()
        except (ModelLoadError, InferenceError):
            if cache.drop():
                continue
            raise
        cache.keep()
        return engine


def load_model(
    installed: InstalledPackage,
    choice: RuntimeChoice = "auto",
    threads: int = 1,
    cache_dir: Path | None = None,
    check: GraphCheck | None = None,
    prefixes: PrefixPlace | None = None,
) -> LoadedModel:
    """Open the first graph that this runtime is trusted with and that proves right.

    Args:
        choice: which runtime.
        threads: worker threads.
        cache_dir: where packed weights are kept between starts; without it each start packs them anew.
        check: asked before a graph is opened here (:meth:`edgeslm.runtime.trial.GraphTrial.check`).
        prefixes: where states of prompts that begin alike are kept.

    Raises:
        RuntimeMissingError: no runtime, or none that the package has a graph for.
        ProofError: every suitable graph computes other values than the package states.
        ModelLoadError: no suitable graph can be opened; the first reason is told.
    """
    runtime = choose_runtime(choice)
    manifest = installed.manifest
    tokenizer = manifest.tokenizer
    if manifest.task != "generate" or tokenizer is None:
        raise ModelLoadError(
            f"{manifest.name} is for task '{manifest.task}', and generates nothing",
            path=str(installed.directory),
        )

    def open_graph(graph: GraphSpec) -> LoadedModel:
        open_engine = partial(_open_proved, installed, graph, runtime, cache_dir)
        return LoadedModel(installed, runtime, graph, tokenizer, open_engine, threads, prefixes)

    return open_first(installed, runtime, open_graph, check)


def open_first(
    installed: InstalledPackage,
    runtime: Runtime,
    open_graph: Callable[[GraphSpec], OpenedT],
    check: GraphCheck | None,
) -> OpenedT:
    """What `open_graph` makes of the first graph that `runtime` is trusted with and that proves right.

    Args:
        check: asked before a graph is opened here.

    Raises:
        RuntimeMissingError: the package has no graph for `runtime`.
        ModelLoadError: its needs are not met, or no suitable graph can be opened; the first reason is told.
    """
    check_requirements(installed)
    manifest = installed.manifest
    failures: list[ModelLoadError] = []
    for graph in manifest.graphs:
        if runtime.kind not in graph.runtimes:
            continue
        try:
            if check is not None:
                check(installed, graph, runtime)
            return open_graph(graph)
        except ModelLoadError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    raise RuntimeMissingError(
        f"{manifest.name} has no graph for {runtime} (it has: "
        + ", ".join(f"{graph.file} for {'/'.join(graph.runtimes)}" for graph in manifest.graphs)
        + ")"
    )
