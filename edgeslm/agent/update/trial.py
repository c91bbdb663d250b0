"""The process in which a candidate is tried: ``python -m edgeslm.agent.update.trial``.

What always holds: nothing that a candidate does here reaches the process that answers prompts.

* It dies with the thread that started it (PR_SET_PDEATHSIG, prctl(2)).
* Its processor time comes after that of the agent (nice), and when memory runs out the kernel takes it first
  (``oom_score_adj``, proc(5)).
* What it may allocate is limited by RLIMIT_DATA (setrlimit(2)): private writable memory, which is what can't be had
  back from it. Weights are mapped from files and do not count. RLIMIT_AS would count them, and address space that is
  only reserved; a cgroup would have to be delegated to us first.
* It writes no core file, and what its native code prints goes nowhere.

It reads a :class:`~edgeslm.schema.trial.TrialBlock` a line and answers each prompt with a line.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, get_args

from edgeslm import codec
from edgeslm.agent.memory import share_one_heap
from edgeslm.errors import EdgeslmError, InferenceError, RequestError
from edgeslm.schema.config import RuntimeChoice
from edgeslm.schema.message import Options
from edgeslm.schema.trial import MAX_LINE_BYTES, TrialAnswer, TrialBlock, TrialFailure, TrialLoaded

if TYPE_CHECKING:
    from pydantic import BaseModel

    from edgeslm.runtime.loading import ServedModel

_PR_SET_PDEATHSIG = 1
_NICE = 10
_STATUS = Path("/proc/self/status")


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the package, then answer until stdin ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--sha256", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--runtime", choices=get_args(RuntimeChoice), required=True)
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--allowance-mb", type=int, required=True)
    flags = parser.parse_args(arguments)
    if not _confine(flags.parent):
        return 1
    share_one_heap()
    with _answers_to_stdout() as out:
        try:
            model = _load(flags)
            _say(out, TrialLoaded(load_s=model.load_s, graph=model.graph_file, runtime=model.runtime_name))
            for line in iter(lambda: sys.stdin.buffer.readline(MAX_LINE_BYTES * 4), b""):
                for prompt in codec.decode(TrialBlock, line).prompts:
                    _say(out, _answer(model, prompt))
        except MemoryError:
            _say(out, TrialFailure(cause="out_of_memory", detail="memory beyond what it is allowed"))
        except InferenceError as error:
            _say(out, TrialFailure(cause="unhealthy", detail=str(error)[:500]))
        except EdgeslmError as error:
            _say(out, TrialFailure(cause="load_failed", detail=str(error)[:500]))
        except Exception as error:  # the parent cannot see what else it was
            _say(out, TrialFailure(cause="load_failed", detail=f"{type(error).__name__}: {error}"[:500]))
    return 0


def _confine(parent: int) -> bool:
    """Bind this process to its parent and step back behind it; ``False`` where the parent is gone already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return False
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(_NICE)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
    return True


@contextlib.contextmanager
def _answers_to_stdout() -> Iterator[BinaryIO]:
    """Standard output for us alone: what native code prints there and to standard error goes nowhere."""
    with os.fdopen(os.dup(1), "wb", buffering=0) as out:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        os.close(sink)
        yield out


def _load(flags: argparse.Namespace) -> ServedModel:
    # Imported before the limit is set: what the libraries themselves take is not the candidate's.
    from edgeslm.models.store import ModelStore  # noqa: PLC0415
    from edgeslm.runtime.backend import choose_runtime  # noqa: PLC0415
    from edgeslm.runtime.executor import has_compiled_model  # noqa: PLC0415
    from edgeslm.runtime.loading import load_served  # noqa: PLC0415
    from edgeslm.runtime.trial import GraphTrial  # noqa: PLC0415

    has_compiled_model(choose_runtime(flags.runtime))
    installed = ModelStore(flags.store).get(flags.sha256)
    limit = (_status_kb("VmData") + flags.allowance_mb * 1024) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resident_kb = _status_kb("VmRSS")
    model = load_served(installed, flags.runtime, flags.threads, flags.cache_dir)
    # The agent need not try again what was tried here.
    GraphTrial(flags.cache_dir, flags.threads, flags.runtime).remember(
        installed,
        model.graph,
        model.runtime,
        grown_bytes=max(0, _status_kb("VmHWM") - resident_kb) * 1024,
        load_s=model.load_s,
    )
    return model


def _answer(model: ServedModel, prompt: str) -> TrialAnswer:
    try:
        answer = model.answer(prompt, Options())
    except RequestError:
        # A prompt that another release of the model takes and this one does not: a wrong answer, no fault.
        return TrialAnswer(text="", ttft_s=None, decode_s=0.0, tokens=0, peak_mb=_peak_mb())
    generation = answer.generation
    return TrialAnswer(
        text=generation.text,
        data=answer.data,
        ttft_s=generation.first_token_s,
        decode_s=generation.decode_s,
        tokens=len(generation.token_ids),
        peak_mb=_peak_mb(),
    )


def _peak_mb() -> float:
    return _status_kb("VmHWM") / 1024


def _status_kb(field: str) -> int:
    for line in _STATUS.read_text("utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    return 0


def _say(out: BinaryIO, line: BaseModel) -> None:
    out.write(codec.encode(line) + b"\n")


if __name__ == "__main__":
    # The runtime's exit handlers have nothing to save, and may hang on what a candidate left behind.
    os._exit(main())
