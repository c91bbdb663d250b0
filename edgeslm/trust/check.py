"""One trust check: refresh, judge the assignment, find what it assigns; judge a configuration the same way.

As a program (``python -m edgeslm.trust.check``) it serves a parent that shall not carry its libraries: one JSON
object a line, the request first. While it works it asks the parent for files (``{"fetch": path, "max_bytes": n}``),
so that the parent alone knows how to reach the repository, and gets ``{"data": base64}`` or ``{"error": class,
"message": text}``. The last line is ``{"result": ...}``, or ``{"failed": ...}`` where nothing could be judged.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import BinaryIO

from edgeslm.clock import utc_now
from edgeslm.codec import decode, encode
from edgeslm.errors import (
    EdgeslmError,
    MetadataError,
    MetadataFetchError,
    MetadataMissingError,
    MetadataSizeError,
    ReleaseNotFoundError,
    SlowRetrievalError,
    TrustError,
    TrustStateError,
)
from edgeslm.schema.assignment import AssignedRelease, Assignment
from edgeslm.schema.release import (
    CheckedAgent,
    CheckedRelease,
    CheckRequest,
    CheckResult,
    Refusal,
    WantedAgent,
)
from edgeslm.schema.remote_config import RemoteConfig
from edgeslm.trust.assignment import verify_assignment
from edgeslm.trust.clock import Clock
from edgeslm.trust.fetch import Fetch, oversize
from edgeslm.trust.releases import TrustedReleases
from edgeslm.trust.remote_config import verify_remote_config
from edgeslm.trust.storage import TrustStorage
from edgeslm.trust.versions import check_agent_version, check_version

MAX_REQUEST_BYTES = 131_072
_MAX_REPLY_BYTES = 8 * 2**20
_REFUSALS = (TrustError, MetadataFetchError, TrustStateError)


def check(request: CheckRequest, fetch: Fetch, *, clock: Clock = utc_now) -> CheckResult:
    """Refresh what is trusted as far as it goes, then judge assignment and configuration by what is trusted.

    A refresh that fails is told and not the end: what was trusted before still decides, until it expires.

    Args:
        request: who asks, and what for.
        fetch: gets files of the repository.
        clock: the wall clock, right or wrong.

    Raises:
        NoMetadataError: no root was enrolled.
        TrustStateError: the disk refuses.
    """
    trusted = TrustedReleases(TrustStorage(Path(request.state_dir)), fetch, clock=clock)
    refresh_refused = assignment_refused = expires_at = assignment = None
    configuration = configuration_refused = None
    releases: list[CheckedRelease] = []
    try:
        trusted.refresh()
    except _REFUSALS as error:
        refresh_refused = refusal(error)
    try:
        expires_at = trusted.state().expires_at
    except MetadataError as error:
        assignment_refused = refusal(error) if request.assignment is not None else None
        configuration_refused = refusal(error) if request.configuration is not None else None
    if request.assignment is not None and expires_at is not None:
        try:
            assignment = _judged(request, request.assignment, trusted)
            releases = [_find(request, trusted, *item) for item in sorted(assignment.releases.items())]
        except TrustError as error:
            assignment_refused = refusal(error)
    if request.configuration is not None and expires_at is not None:
        try:
            configuration = _judged_config(request, request.configuration, trusted)
        except TrustError as error:
            configuration_refused = refusal(error)
    return CheckResult(
        now=trusted.time.at,
        clock=trusted.time.source,
        expires_at=expires_at,
        refresh_refused=refresh_refused,
        assignment=assignment,
        assignment_refused=assignment_refused,
        releases=tuple(releases),
        configuration=configuration,
        configuration_refused=configuration_refused,
        agents=tuple(_find_agent(trusted, wanted) for wanted in request.agents),
    )


def refusal(error: EdgeslmError) -> Refusal:
    """`error` as a part of a message."""
    fields = {name: getattr(error, name, None) for name in ("role", "expected", "actual")}
    return Refusal(error=type(error).__name__, message=str(error), **fields)


def _judged(request: CheckRequest, body: str, trusted: TrustedReleases) -> Assignment:
    return verify_assignment(
        body.encode(),
        trusted.targets,
        fleet=request.fleet,
        device=request.device,
        device_key_sha256=request.device_key_sha256,
        last_seq=request.last_seq,
        now=trusted.time.at,
    )


def _judged_config(request: CheckRequest, document: str, trusted: TrustedReleases) -> RemoteConfig:
    return verify_remote_config(
        document.encode(),
        trusted.targets,
        fleet=request.fleet,
        device=request.device,
        device_key_sha256=request.device_key_sha256,
        last_version=request.last_config,
        now=trusted.time.at,
    )


def _find(
    request: CheckRequest, trusted: TrustedReleases, name: str, assigned: AssignedRelease
) -> CheckedRelease:
    try:
        target = trusted.find(name, assigned.version)
        if target.info.sha256 != assigned.sha256:
            raise ReleaseNotFoundError(
                f"{name} {assigned.version} is assigned as another package than the one released",
                role=target.role, expected=target.info.sha256, actual=assigned.sha256,
            )  # fmt: skip
        check_version(target, held=request.held.get(name), allow_downgrade=assigned.allow_downgrade)
    except _REFUSALS as error:
        return CheckedRelease(name=name, version=assigned.version, refused=refusal(error))
    return CheckedRelease(name=name, version=assigned.version, target=target)


def _find_agent(trusted: TrustedReleases, wanted: WantedAgent) -> CheckedAgent:
    version, sha256 = wanted.version, wanted.sha256
    try:
        target = trusted.find_agent(version, sha256)
        check_agent_version(target, running=wanted.running, allow_downgrade=wanted.allow_downgrade)
    except _REFUSALS as error:
        return CheckedAgent(version=version, sha256=sha256, refused=refusal(error))
    return CheckedAgent(version=version, sha256=sha256, target=target)


# --- as a program -------------------------------------------------------------------------------------------


class ParentFetch:
    """Asks the parent process for files."""

    def __init__(self, read: BinaryIO, write: BinaryIO) -> None:
        self._read = read
        self._write = write

    def __call__(self, path: str, max_bytes: int) -> bytes:
        """See :class:`edgeslm.trust.fetch.Fetch`."""
        _print(self._write, {"fetch": path, "max_bytes": max_bytes})
        try:
            reply = json.loads(self._read.readline(_MAX_REPLY_BYTES))
            error, message = reply.get("error"), str(reply.get("message"))
            data = base64.b64decode(reply["data"]) if error is None else b""
        except (ValueError, KeyError, TypeError, AttributeError) as fault:
            raise MetadataFetchError(f"{path}: no answer from the parent process", path=path) from fault
        if error == MetadataSizeError.__name__ or len(data) > max_bytes:
            raise oversize(path, max_bytes)
        for kind in (MetadataMissingError, SlowRetrievalError):
            if error == kind.__name__:
                raise kind(message, path=path)
        if error is not None:
            raise MetadataFetchError(message, path=path)
        return data


def main(read: BinaryIO, write: BinaryIO) -> int:
    """Serve one request; returns the exit status."""
    try:
        request = decode(CheckRequest, read.readline(MAX_REQUEST_BYTES))
        result = check(request, ParentFetch(read, write))
    except EdgeslmError as error:
        _print(write, {"failed": refusal(error).model_dump(exclude_none=True)})
        return error.exit_code
    write.write(b'{"result":' + encode(result) + b"}\n")
    write.flush()
    return 0


def _print(write: BinaryIO, fields: dict[str, object]) -> None:
    write.write(json.dumps(fields).encode() + b"\n")
    write.flush()


if __name__ == "__main__":
    sys.exit(main(sys.stdin.buffer, sys.stdout.buffer))
