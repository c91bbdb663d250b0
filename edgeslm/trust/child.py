"""Runs a trust check in a process of its own.

The libraries that judge signatures take about as much memory as the rest of the agent; a check takes a second, a few
times a day. So the agent starts a child for it, fetches what the child asks for by whatever way it has to the
repository, and reads the verdict. Nothing here imports those libraries.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from typing import IO, cast

from edgeslm.codec import decode, encode
from edgeslm.errors import CodecError, MetadataFetchError, MetadataSizeError, TrustStateError
from edgeslm.schema.release import CheckRequest, CheckResult
from edgeslm.trust.fetch import Fetch

_MAX_LINE_BYTES = 2**20


def run_check(request: CheckRequest, fetch: Fetch, *, timeout_s: float = 300.0) -> CheckResult:
    """Have a child process check what `request` asks; see :func:`edgeslm.trust.check.check`.

    Args:
        request: who asks, and what for.
        fetch: gets files of the repository; called in this thread.
        timeout_s: after it the child is ended, and the check with it.

    Raises:
        TrustStateError: nothing could be judged: no root was enrolled, the disk refuses, or the child ended.
    """
    command = [sys.executable, "-m", "edgeslm.trust.check"]
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            timer = threading.Timer(timeout_s, child.kill)
            timer.daemon = True
            timer.start()
            try:
                return _converse(
                    request, fetch, cast("IO[bytes]", child.stdin), cast("IO[bytes]", child.stdout)
                )
            finally:
                timer.cancel()
                child.kill()
    except (OSError, EOFError, ValueError, KeyError, CodecError) as error:
        raise TrustStateError(
            f"the trust check ended without a verdict: {error or type(error).__name__}"[:300],
            path=request.state_dir,
        ) from error


def _converse(request: CheckRequest, fetch: Fetch, write: IO[bytes], read: IO[bytes]) -> CheckResult:
    _send(write, encode(request))
    while line := read.readline(_MAX_LINE_BYTES):
        message = json.loads(line)
        if "fetch" in message:
            _send(write, json.dumps(_fetched(fetch, message["fetch"], message["max_bytes"])).encode())
        elif "result" in message:
            return decode(CheckResult, json.dumps(message["result"]).encode())
        else:
            raise TrustStateError(message["failed"]["message"], path=request.state_dir)
    raise EOFError("it was ended, or fell")


def _fetched(fetch: Fetch, path: str, max_bytes: int) -> dict[str, str]:
    try:
        return {"data": base64.b64encode(fetch(path, max_bytes)).decode()}
    except (MetadataFetchError, MetadataSizeError) as error:
        return {"error": type(error).__name__, "message": str(error)}


def _send(write: IO[bytes], line: bytes) -> None:
    write.write(line + b"\n")
    write.flush()
