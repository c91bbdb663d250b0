"""Engines as processes of their own, and measurements in paired turns.

All engines of a comparison are loaded at the same time and take turns, and who begins changes from pair to pair: what
the machine does besides hits them alike. A ratio is the median of the pairs' ratios.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.agent_rig import MeasurementError, say
from edgeslm.errors import EdgeslmError

FOLDER_VARIABLE = "EDGESLM_BENCH_GEMMA"
"""Directory with what `benchmarks.gemma.convert` made; else ``out/gemma``, where it is made if it is missing."""
PEERS_VARIABLE = "EDGESLM_BENCH_PEERS"
"""Python that has llama-cpp-python and litert-lm-api; else the one that runs the benchmark."""
_ROOT = Path(__file__).parents[1]
QUANTIZE = (
    "import llama_cpp, sys; p = llama_cpp.llama_model_quantize_default_params(); "
    "p.ftype = 7; p.allow_requantize = True; "
    "sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), p))"
)
"""Q8_0 of the same weights. Type 7 is what llama.h calls LLAMA_FTYPE_MOSTLY_Q8_0."""

Answer = dict[str, Any]


class EngineProcess:
    """One engine, loaded."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        """Start it and wait until it is ready.

        Raises:
            MeasurementError: it does not start; what it said last is told.
        """
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=_ROOT,  # where `benchmarks` can be imported
        )
        self.ready = self._read()

    def ask(self, op: str, **arguments: Any) -> Answer:
        """One request, answered.

        Raises:
            MeasurementError: the engine fails.
        """
        if self._process.stdin is None:
            raise MeasurementError(f"{self.name} has no input")
        self._process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Answer:
        if self._process.stdout is None:
            raise MeasurementError(f"{self.name} has no output")
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: Answer = json.loads(line)
                return answer
        self._errors.seek(0)
        last = self._errors.read().strip().splitlines()[-3:]
        raise MeasurementError(f"{self.name} ended: {' | '.join(last) or 'without a word'}")

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


class Models:
    """The same weights for each engine, made where they are missing."""

    def __init__(self) -> None:
        self.folder = Path(os.environ.get(FOLDER_VARIABLE, "out/gemma")).absolute()
        self.peers = os.environ.get(PEERS_VARIABLE, sys.executable)
        self._store = tempfile.TemporaryDirectory(prefix="edgeslm-bench-")

    def package(self) -> Path:
        """Our package.

        Raises:
            MeasurementError: it can't be made here.
        """
        path = self.folder / "gemma-3-270m.slm"
        if not path.exists():
            from benchmarks.gemma.convert import convert  # noqa: PLC0415 - needs what only conversion needs

            say(f"converting Gemma 3 270M into {self.folder} (once)")
            try:
                convert(self.folder)
            except EdgeslmError as error:
                raise MeasurementError(f"no model: {error}") from error
        return path

    def _gguf(self) -> Path:
        source, path = self.folder / "gemma-3-270m-q4_k_m.gguf", self.folder / "gemma-3-270m-q8_0.gguf"
        if not path.exists():
            fresh = path.with_suffix(".partial")
            self._run([self.peers, "-c", QUANTIZE, str(source), str(fresh)], "llama-cpp-python")
            fresh.replace(path)
        return path

    def _litertlm(self) -> Path:
        path = self.folder / "gemma-3-270m.litertlm"
        if not path.exists():
            self._run(
                [sys.executable, "-m", "benchmarks.gemma.litertlm", str(self.folder)], "litert-lm-builder"
            )
        return path

    @staticmethod
    def _run(command: Sequence[str], package: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800, cwd=_ROOT)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise MeasurementError(f"{package} is missing or failed: {last}")

    def ours(self, threads: int) -> EngineProcess:
        """This runtime."""
        store = self._store.name
        command = [
            sys.executable,
            "-m",
            "benchmarks.runtime_engine",
            str(self.package()),
            str(threads),
            store,
        ]
        return EngineProcess("edgeslm", command)

    def llama(self, threads: int) -> EngineProcess:
        """llama.cpp."""
        script = Path(__file__).with_name("runtime_peer_llamacpp.py")
        self.package()
        return EngineProcess("llama.cpp", [self.peers, str(script), str(self._gguf()), str(threads)])

    def litert_lm(self, threads: int) -> EngineProcess:
        """LiteRT-LM."""
        script = Path(__file__).with_name("runtime_peer_litert_lm.py")
        self.package()
        command = [self.peers, str(script), str(self._litertlm()), str(threads), self._store.name]
        return EngineProcess("LiteRT-LM", command)

    @contextmanager
    def pair(self, peer: str, threads: int) -> Iterator[tuple[EngineProcess, EngineProcess]]:
        """This runtime and a peer (``llama`` or ``litert_lm``), loaded side by side."""
        ours = self.ours(threads)
        try:
            other: EngineProcess = getattr(self, peer)(threads)
            try:
                yield ours, other
            finally:
                other.close()
        finally:
            ours.close()


def paired(
    ours: EngineProcess, other: EngineProcess, pairs: int, op: tuple[str, str], **arguments: Any
) -> list[tuple[Answer, Answer]]:
    """Answers of both to the same request, in turns, after one turn that warms up.

    Args:
        op: what to ask ours, and what the other.
    """
    found = []
    for number in range(pairs + 1):
        turns = [(ours, op[0]), (other, op[1])]
        if number % 2:
            turns.reverse()
        answers = {engine.name: engine.ask(name, **arguments) for engine, name in turns}
        if number:
            found.append((answers[ours.name], answers[other.name]))
    return found


def rate(answer: Answer) -> float:
    """Tokens a second after the first."""
    return float(answer["count"] / answer["decode_s"])


def ratio_of(found: Sequence[tuple[Answer, Answer]], figure: str) -> float:
    """Median of the pairs' ratios, above 1 where ours is better: ``decode`` in tokens/s, others in seconds."""
    if figure == "decode":
        return median(rate(ours) / rate(other) for ours, other in found)
    return median(float(other[figure]) / float(ours[figure]) for ours, other in found)


def middle(found: Sequence[tuple[Answer, Answer]], which: int, figure: str) -> float:
    """Median of one side's figure."""
    values = [pair[which] for pair in found]
    return median(rate(one) if figure == "decode" else float(one[figure]) for one in values)
