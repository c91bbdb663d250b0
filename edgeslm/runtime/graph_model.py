"""A package whose graph is called once for an answer: arrays, labels or an embedding.

What always holds: the graph is served only after it computed the golden vector of its package, as it is with the
models that generate (:mod:`edgeslm.runtime.model`).

A graph that takes text has integer inputs of (1, tokens), told apart by their names, as converted encoders have them:
one with ``mask`` in it gets ones where there is a token, one with ``type`` zeros, the remaining one the token ids. A
fixed length is filled up; an output for each token is pooled by its mean over the tokens, as sentence encoders are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from edgeslm.errors import BadRequestError, InferenceError, ModelLoadError, ProofError, TooLargeError
from edgeslm.runtime.arrays import Array, to_arrays, to_wire
from edgeslm.runtime.backend import Runtime, native_output_hidden
from edgeslm.runtime.conversation import Turn
from edgeslm.runtime.generation import OnText, ShouldStop
from edgeslm.runtime.model import Answer
from edgeslm.runtime.opened import Opened
from edgeslm.runtime.outcome import Outcome, beat_of, check_task
from edgeslm.runtime.prompt import PromptEncoder
from edgeslm.runtime.quantization import Floats
from edgeslm.runtime.tensor import TensorGraph, TensorSpec, to_labels
from edgeslm.runtime.tokenizer import open_tokenizer
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.message import Options, PromptRequest, Task
from edgeslm.schema.package import ArrayProof, GraphSpec
from edgeslm.schema.tensor import TensorBytes

_RANK_PER_TOKEN = 3
"""Of an output with a vector for each token: (1, tokens, size)."""


def prove_arrays(graph: TensorGraph, proof: ArrayProof, path: str) -> None:
    """Compute the golden vector.

    Raises:
        ProofError: the graph computes something else, or has other inputs and outputs.
    """
    try:
        inputs, expected = to_arrays(proof.inputs), to_arrays(proof.outputs)
        found = graph.run(inputs)
    except (BadRequestError, TooLargeError, InferenceError) as error:
        raise ProofError(f"golden vector: {error}", path=path) from error
    for name, wanted in expected.items():
        given = found.get(name)
        if given is None:
            raise ProofError(
                f"golden vector: there is no output {name}", path=path, hint=f"It has: {', '.join(found)}"
            )
        if given.shape != wanted.shape:
            raise ProofError(
                f"golden vector: output {name} has the shape {given.shape}, the package states {wanted.shape}",
                path=path,
            )
        apart = np.abs(given.astype(np.float64) - wanted.astype(np.float64))
        # Negated so that NaN counts as a difference.
        wrong = ~(apart <= proof.atol)
        if wrong.any():
            what = (
                f"all of {name} is zero" if not given.any() else f"output {name} differs by {apart.max():.4g}"
            )
            raise ProofError(
                f"golden vector: {what} ({int(wrong.sum())} of {wrong.size} by more than {proof.atol:g})",
                path=path,
                hint="This runtime computes other values than the package was made with; it is not served",
            )


class GraphModel(Opened):
    """One package of arrays, ready on one thread; serves the agent like ``LoadedModel`` does.

    Attributes:
        installed: the package.
        runtime: the runtime that computes it.
        graph: the graph in use.
        load_s: seconds that loading and proving took.
        threads: worker threads in use.
    """

    def __init__(self, installed: InstalledPackage, runtime: Runtime, graph: GraphSpec, threads: int) -> None:
        """Open the graph and prove it.

        Raises:
            ModelLoadError: it cannot be opened, computes something else than is promised, or does not fit its task.
        """
        started = time.perf_counter()
        manifest = installed.manifest
        self.installed = installed
        self.runtime = runtime
        self.graph = graph
        self.threads = threads
        self._opened = self._open(threads)
        self._encoder: PromptEncoder | None = None
        self._output = self._choose_output() if manifest.task != "tensor" else ""
        if manifest.tokenizer is not None:
            file = installed.file(manifest.tokenizer.file)
            tokenizer = open_tokenizer(manifest.tokenizer, file, manifest.prompt)
            self._encoder = PromptEncoder(manifest.prompt, tokenizer, manifest.max_prompt_tokens)
            self._text_inputs = self._find_text_inputs()
        self.load_s = time.perf_counter() - started

    def _open(self, threads: int) -> TensorGraph:
        path = self.installed.file(self.graph.file)
        proof = self.graph.proof
        if not isinstance(proof, ArrayProof):
            raise ModelLoadError(
                f"{self.graph.file}: its proof is that of a generative model", path=str(path)
            )
        with native_output_hidden():
            opened = TensorGraph(path, self.runtime, threads, self.graph.signature)
            prove_arrays(opened, proof, str(path))
        return opened

    def _choose_output(self) -> str:
        names = list(self._opened.outputs)
        name = self.graph.output or (names[0] if len(names) == 1 else "")
        if name not in names:
            raise ModelLoadError(
                f"{self.graph.file}: "
                + (f"it has no output {name!r}" if name else "it has several outputs, and none is named"),
                path=str(self.installed.file(self.graph.file)),
                hint=f"State one as 'output' of the graph: {', '.join(names)}",
            )
        labels = self.installed.manifest.labels
        scores = math.prod(max(size, 1) for size in self._opened.outputs[name].shape)
        if labels and scores != len(labels):
            raise ModelLoadError(
                f"{self.graph.file} gives {scores} scores, the package has {len(labels)} labels",
                path=str(self.installed.file(self.graph.file)),
            )
        return name

    def _find_text_inputs(self) -> dict[str, TensorSpec]:
        found: dict[str, TensorSpec] = {}
        for name, spec in self._opened.inputs.items():
            role = "mask" if "mask" in name.lower() else "type" if "type" in name.lower() else "ids"
            if role in found or len(spec.shape) != 2:
                found = {}
                break
            found[role] = spec
        if "ids" not in found:
            raise ModelLoadError(
                f"{self.graph.file} does not take text: it takes "
                + ", ".join(map(str, self._opened.inputs.values())),
                path=str(self.installed.file(self.graph.file)),
                hint="One input of token ids is needed, with at most a mask and a type beside it",
            )
        return found

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it does; a classifier of arrays gives its outputs as they are, too."""
        task = self.installed.manifest.task
        return (task, "tensor") if task == "classify" and self._encoder is None else (task,)

    @property
    def takes_arrays(self) -> bool:
        """Whether it is asked with arrays; else with text."""
        return self._encoder is None

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """What the graph takes, by name."""
        return self._opened.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """What the graph gives, by name."""
        return self._opened.outputs

    @property
    def context_tokens(self) -> int:
        """Most tokens of a text; 0 where it takes arrays."""
        return self.installed.manifest.context_tokens

    @property
    def max_answer_tokens(self) -> int:
        """None: an answer has no tokens."""
        return 0

    def set_threads(self, threads: int) -> None:
        """Compute with `threads` threads from the next request on; opens the graph anew.

        Raises:
            ModelLoadError: it cannot be opened so; the former number stays.
        """
        if threads != self.threads:
            self._opened = self._open(threads)
            self.threads = threads

    def set_aside(self) -> AbstractContextManager[None]:
        """Within the block another prompt is answered; nothing of the first has to be kept, it is one call."""
        return nullcontext()

    def count_tokens(self, prompt: str, *, turns: Sequence[Turn] = (), system: str | None = None) -> int:
        """Tokens of `prompt`; 0 without one.

        Raises:
            BadRequestError: no text is taken here, or not this one.
            TooLargeError: longer than the model takes.
        """
        return len(self._encode(prompt)) if prompt else 0

    def _encode(self, prompt: str) -> list[int]:
        if self._encoder is None:
            raise BadRequestError(
                f"{self.name} takes arrays, not text",
                hint="It takes " + ", ".join(map(str, self._opened.inputs.values())),
            )
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
        """Refuse: it generates nothing.

        Raises:
            BadRequestError: always.
        """
        raise BadRequestError(
            f"task 'generate' is not served by {self.name} (it serves: {', '.join(self.tasks)})"
        )

    def infer(self, request: PromptRequest, *, should_stop: ShouldStop | None = None) -> Outcome:
        """Do what `request` asks for.

        Args:
            should_stop: asked before the graph is called, which nothing ends.

        Raises:
            RequestError: the request can't be served.
            InferenceError: the runtime fails.
        """
        check_task(request, self.name, self.tasks)
        if request.options.choices is not None:
            raise BadRequestError(f"option 'choices' means nothing to {self.name}: it has labels of its own")
        started = time.perf_counter()
        tokens: list[int] = []
        if request.tensor is not None:
            if self._encoder is not None:
                raise BadRequestError(f"{self.name} takes text, not arrays", hint="Send a 'prompt'")
            arrays = to_arrays(request.tensor)
        else:
            tokens = self._encode(request.prompt)
            arrays = self._text_arrays(tokens)
        beat_of(should_stop)()
        found = self._opened.run(arrays)
        if request.task == "tensor":
            as_bytes = any(isinstance(value, TensorBytes) for value in (request.tensor or {}).values())
            return Outcome(0, time.perf_counter() - started, tensor=to_wire(found, as_bytes=as_bytes))
        if request.task == "classify":
            labels = self.installed.manifest.labels
            if found[self._output].size != len(labels):
                raise BadRequestError(
                    "task 'classify' takes one row, not a batch", hint="Task 'tensor' takes several"
                )
            scores = to_labels(found[self._output].astype(np.float32), labels)
            return Outcome(len(tokens), time.perf_counter() - started, scores=scores)
        vector = pool(found[self._output].astype(np.float32), len(tokens))
        return Outcome(len(tokens), time.perf_counter() - started, embedding=_short(vector))

    def _text_arrays(self, tokens: list[int]) -> dict[str, Array]:
        length = self._text_inputs["ids"].shape[1]
        if length < 0:
            length = len(tokens)
        if len(tokens) > length:
            raise TooLargeError(
                f"prompt of {len(tokens)} tokens, the graph takes {length}",
                actual=len(tokens),
                limit=length,
                unit="tokens",
            )
        arrays: dict[str, Array] = {}
        for role, spec in self._text_inputs.items():
            row = np.zeros((1, length), np.int64)
            if role != "type":
                row[0, : len(tokens)] = tokens if role == "ids" else 1
            arrays[spec.name] = row
        return arrays


def pool(output: Floats, tokens: int) -> Floats:
    """One vector of length one: of an output for each token the mean, else the output itself.

    Args:
        output: (1, tokens and padding, size), (1, size) or (size,) float32.
        tokens: how many of the first are tokens and no padding.

    Raises:
        InferenceError: it has another shape, is not finite, or is zero.
    """
    found = output[0, :tokens].mean(axis=0) if output.ndim == _RANK_PER_TOKEN else output.reshape(-1)
    if output.ndim > _RANK_PER_TOKEN or (output.ndim > 1 and output.shape[0] != 1):
        raise InferenceError(f"an output of {'x'.join(map(str, output.shape))} is no embedding")
    length = float(np.linalg.norm(found.astype(np.float64)))
    if not np.isfinite(length) or not length:
        raise InferenceError("the embedding is zero, or not finite")
    return np.asarray(found / length, np.float32)


def _short(vector: Floats) -> tuple[float, ...]:
    """The numbers as the shortest decimals that are read as the same float32."""
    return tuple(float(str(number)) for number in vector)
