"""A ``.litertlm`` bundle, opened by LiteRT-LM (the optional package ``litert-lm-api``).

It computes on threads of its own: :meth:`Bundle.say` hands its answer to the thread that asked, piece by piece, and
tells it to stop once there is a reason. What it had begun to compute then, a token or the whole prompt, it finishes;
who asked does not wait for that, the next one does.

Source: litert-lm-api 0.18.1, ``litert_lm/interfaces.py``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from edgeslm.errors import BadRequestError, InferenceError, ModelLoadError, ProofError, RuntimeMissingError
from edgeslm.runtime.backend import (
    LITERT_LM_MODULE,
    Runtime,
    hide_native_output_at_exit,
    import_runtime,
    native_output_hidden,
)
from edgeslm.runtime.conversation import Turn
from edgeslm.runtime.generation import Generation, OnText, ShouldStop, StopStrings, never
from edgeslm.schema.chat import Role
from edgeslm.schema.message import FinishReason, Options
from edgeslm.schema.package import BUNDLE, TextProof

PACKAGE = "litert-lm-api"
_COMPACT = {"whitespace_flexible": False}
"""JSON without white space, as elsewhere (llguidance, "JSON Schema: x-guidance")."""
_NO_CACHE = ":nocache"
_LOOK_S = 0.02
"""How often there may be a reason to stop while no token comes."""
_MARKUP = re.compile(r"[<\[|].+[>\]|]", re.DOTALL)
_META = re.compile(r"([\\.+*?()|\[\]{}^$])")
_QUOTED = r"\\\1"
_PROBE = "Hello"
_SYSTEM = "Answer"
_ALL = 65_536
"""For a sampler that keeps all: tokens beyond so many are never come to."""


def litert_lm_runtime() -> Runtime:
    """LiteRT-LM as it is installed here.

    Raises:
        RuntimeMissingError: it is not.
    """
    if importlib.util.find_spec(LITERT_LM_MODULE) is None:
        raise RuntimeMissingError(
            "LiteRT-LM is not installed, which computes .litertlm bundles",
            hint="Install it with: pip install 'edgeslm[litert-lm]'",
        )
    return Runtime(BUNDLE, PACKAGE, importlib.metadata.version(PACKAGE), LITERT_LM_MODULE)


class Bundle:
    """An open ``.litertlm`` file.

    Attributes:
        context_tokens: most tokens of prompt and answer together.
        takes_system: it has a place for a message of the system.
    """

    def __init__(
        self, path: Path, runtime: Runtime, *, threads: int, context_tokens: int, cache_dir: Path | None
    ):
        """Open it.

        Args:
            context_tokens: 0 takes what the bundle states.
            cache_dir: where LiteRT-LM keeps packed weights; without it they are packed at each start.

        Raises:
            ModelLoadError: LiteRT-LM does not take it.
            RuntimeMissingError: LiteRT-LM cannot be imported.
        """
        lib = self._library = import_runtime(runtime)
        hide_native_output_at_exit()
        lib.set_min_log_severity(lib.LogSeverity.FATAL)
        try:
            with native_output_hidden():
                if not context_tokens:
                    with lib.ModelInfo(str(path)) as info:
                        context_tokens = int(info.max_context_tokens)
                self._engine: Any = lib.Engine(
                    str(path),
                    backend=lib.Backend.CPU(thread_count=threads),
                    cache_dir=_usable(cache_dir),
                    max_num_tokens=context_tokens,
                )
                self.context_tokens = context_tokens
                self._unfinished: threading.Thread | None = None
                self._form_tokens, self._markup = self._learn_form()
        except (RuntimeError, ValueError, OSError, AttributeError) as error:
            raise ModelLoadError(
                f"{runtime} refuses {path.name}: {str(error)[:300]}", path=str(path)
            ) from error

    def _learn_form(self) -> tuple[int, frozenset[int]]:
        """Tokens that the bundle puts around a prompt: how many, and those that are no text."""
        with closing(self._conversation(1)) as conversation:
            around = self.tokenize(conversation.render_message_to_string(_PROBE))
        with closing(self._conversation(1, system=_SYSTEM)) as conversation:
            # A template without a place for it leaves it out, one that refuses it makes nothing.
            self.takes_system = _SYSTEM in conversation.render_message_to_string(_PROBE)
        ends = [ids[0] for ids in self._engine.eos_token_ids if len(ids) == 1]
        begins = self._engine.bos_token_id
        markup = {token for token in around if _MARKUP.fullmatch(self._engine.detokenize([token]).strip())}
        found = frozenset([*markup, *ends, *([] if begins is None else [begins])])
        return len(around) - len(self.tokenize(_PROBE)) + (begins is not None), found

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`."""
        return list(self._engine.tokenize(text))

    def count_tokens(self, text: str) -> int:
        """Tokens of a prompt with what the bundle puts around it.

        Raises:
            BadRequestError: it spells what marks turns.
        """
        ids = self.tokenize(text)
        if self._markup.intersection(ids):
            raise BadRequestError("the prompt contains what marks turns or the end of a text in this model")
        return len(ids) + self._form_tokens

    def _conversation(
        self,
        max_tokens: int,
        turns: Sequence[Turn] = (),
        system: str | None = None,
        *,
        has_form: bool = False,
        **settings: Any,
    ) -> Any:
        """One that has to be closed."""
        messages = [] if system is None else [_message("system", system)]
        for turn in turns:
            messages += [_message("user", turn.prompt), _message("assistant", turn.answer)]
        if has_form:
            # Takes seconds for a large vocabulary, so only where it is needed.
            lib = self._library
            settings["constrained_decoding_config"] = lib.ConstrainedDecodingConfig(
                enable=True, provider=lib.LiteRtLmConstraintProviderType.LL_GUIDANCE
            )
        return self._engine.create_conversation(
            messages=messages or None,
            automatic_tool_calling=False,
            max_output_tokens=max_tokens,
            **settings,
        )

    def say(
        self,
        prompt: str,
        turns: Sequence[Turn],
        system: str | None,
        max_tokens: int,
        options: Options,
        should_stop: ShouldStop,
        take: Callable[[str], bool],
    ) -> FinishReason | None:
        """Hand the answer to `take` piece by piece, on this thread, until `take` says that it is enough.

        Returns:
            A reason to stop, where `should_stop` had one.

        Raises:
            InferenceError: LiteRT-LM fails.
        """
        reason = self._wait_for_former(should_stop)
        if reason is not None:
            return reason
        pieces: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()
        has_form = options.answer_form is not None
        sampler = self._sampler(options)
        try:
            conversation = self._conversation(
                max_tokens, turns, system, has_form=has_form, sampler_config=sampler
            )
        except RuntimeError as error:
            raise InferenceError(f"LiteRT-LM failed: {str(error)[:300]}") from error
        stream = conversation.send_message_async(prompt, response_format=self._format(options))
        running = _Running(conversation)
        self._unfinished = threading.Thread(
            target=running.drain, args=(stream, pieces), name="litert-lm", daemon=True
        )
        self._unfinished.start()
        try:
            while True:
                try:
                    piece = pieces.get(timeout=_LOOK_S)
                except queue.Empty:
                    piece = ""
                if piece is None:
                    return None
                if isinstance(piece, Exception):
                    raise InferenceError(f"LiteRT-LM failed: {str(piece)[:300]}") from piece
                is_enough = bool(piece) and take(piece)
                reason = should_stop()
                if reason is not None or is_enough:
                    return reason
        finally:
            running.end()

    def _wait_for_former(self, should_stop: ShouldStop) -> FinishReason | None:
        """Wait until what a former answer was ended in the midst of is computed; a reason to give up before."""
        while self._unfinished is not None:
            self._unfinished.join(_LOOK_S)
            if not self._unfinished.is_alive():
                self._unfinished = None
            elif (reason := should_stop()) is not None:
                return reason
        return None

    def _sampler(self, options: Options) -> Any:
        if options.temperature == 0:
            return self._library.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0, seed=0)
        return self._library.SamplerConfig(
            top_k=options.top_k or _ALL,
            top_p=options.top_p,
            temperature=options.temperature,
            seed=(options.seed or 0) % 2**31,
        )

    def _format(self, options: Options) -> Any:
        form = self._library.ResponseFormat
        if options.json_schema is not None:
            return form.json({"x-guidance": _COMPACT, **options.json_schema})
        if options.regex is not None:
            return form.regex(options.regex)
        if options.choices is not None:
            return form.regex("|".join(f"({_META.sub(_QUOTED, choice)})" for choice in options.choices))
        return None


def _usable(cache_dir: Path | None) -> str:
    if cache_dir is None:
        return _NO_CACHE
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError:
        return _NO_CACHE
    return str(cache_dir) if os.access(cache_dir, os.W_OK) else _NO_CACHE


def _message(role: Role, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


class _Running:
    """A conversation whose answer is being computed, on a thread that closes it."""

    def __init__(self, conversation: Any) -> None:
        self._conversation = conversation
        self._lock = threading.Lock()
        self._is_over = self._is_closed = False

    def drain(self, stream: Any, pieces: queue.SimpleQueue[str | Exception | None]) -> None:
        """Take all that comes, to its end, since the library writes to it until then."""
        try:
            for message in stream:
                found = message.to_json()
                texts = [part.get("text", "") for part in found.get("content", ()) if isinstance(part, dict)]
                pieces.put("".join(texts))
                if self._is_over:  # what ended it came before it had begun, or was not heard
                    self.end()
        except Exception as error:  # whatever it is belongs to the thread that asked
            pieces.put(error)
        else:
            pieces.put(None)
        finally:
            with self._lock:
                self._is_closed = True
                self._conversation.close()

    def end(self) -> None:
        """Compute no further than what is begun."""
        self._is_over = True
        with self._lock:
            if not self._is_closed:
                self._conversation.cancel_process()


class Said:
    """An answer as it comes."""

    def __init__(self, stop: Sequence[str], on_text: OnText | None) -> None:
        self._stop = StopStrings(stop)
        self._on_text = on_text
        self._texts: list[str] = []
        self._begun_s = time.perf_counter()
        self._first_s: float | None = None
        self._last_s = self._begun_s

    def take(self, piece: str) -> bool:
        """Take a piece; whether it is enough."""
        self._last_s = time.perf_counter()
        if self._first_s is None:
            self._first_s = self._last_s
        self._tell(self._stop.push(piece))
        return self._stop.found

    def _tell(self, text: str) -> None:
        if text:
            self._texts.append(text)
            if self._on_text is not None:
                self._on_text(text)

    def generation(
        self,
        bundle: Bundle,
        prompt_tokens: int,
        reason: FinishReason | None,
        max_tokens: int,
        options: Options,
    ) -> Generation:
        """What came of it."""
        self._tell(self._stop.finish())
        text = "".join(self._texts)
        ids = bundle.tokenize(text)
        if reason is None and len(ids) >= max_tokens and not self._stop.found:
            reason = "length"
        if reason is None:
            reason = "stop" if options.answer_form is None or self._stop.found else "schema"
        first_s = None if self._first_s is None else self._first_s - self._begun_s
        return Generation(
            text=text,
            token_ids=tuple(ids),
            prompt_tokens=prompt_tokens,
            finish_reason=reason,
            prefill_s=first_s or 0.0,
            first_token_s=first_s,
            decode_s=0.0 if self._first_s is None else self._last_s - self._first_s,
            total_s=time.perf_counter() - self._begun_s,
            closed=None if options.answer_form is None or reason == "schema" else False,
        )


def greedy_text(bundle: Bundle, prompt: str, max_tokens: int) -> str:
    """What `bundle` answers to `prompt` without chance.

    Raises:
        InferenceError: LiteRT-LM fails.
    """
    said = Said((), None)
    bundle.say(prompt, (), None, max_tokens, Options(), never, said.take)
    return said.generation(bundle, 0, None, max_tokens, Options()).text


def prove_text(bundle: Bundle, proof: TextProof, path: str) -> None:
    """Let the bundle say its golden text.

    Raises:
        ProofError: it says something else.
    """
    try:
        found = greedy_text(bundle, proof.prompt, proof.max_tokens)
    except InferenceError as error:
        raise ProofError(f"golden vector: {error}", path=path) from error
    if not found.startswith(proof.text):
        raise ProofError(
            f"golden vector: it says {json.dumps(found[:80])}, the package states {json.dumps(proof.text[:80])}",
            path=path,
            hint="This runtime computes other values than the package was made with; it is not served",
        )
