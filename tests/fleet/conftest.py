"""A PostgreSQL of the tests' own, for those that ask for it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
_PATH = os.pathsep.join([*(str(path) for path in _BINARIES), os.environ.get("PATH", "")])
_NOBODY = 65534


def _run(program: str, *arguments: str) -> None:
    path = shutil.which(program, path=_PATH)
    assert path is not None
    who = (
        {"user": _NOBODY, "group": _NOBODY} if os.geteuid() == 0 else {}
    )  # PostgreSQL refuses to run as root
    subprocess.run([path, *arguments], check=True, capture_output=True, cwd="/", timeout=60, **who)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """URL of a server without the name of a database, far from UTC."""
    if shutil.which("initdb", path=_PATH) is None:
        pytest.skip("PostgreSQL is not installed")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="edgeslm-postgres-") as name:
        data = f"{name}/data"
        Path(name).chmod(0o700)
        if os.geteuid() == 0:
            os.chown(name, _NOBODY, _NOBODY)
        _run("initdb", "-D", data, "-U", "edgeslm", "-A", "trust", "-E", "UTF8", "--locale=C")
        options = (
            f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c timezone=Asia/Kolkata"
        )
        _run("pg_ctl", "-D", data, "-w", "-l", f"{name}/log", "-o", options, "start")
        try:
            yield f"postgresql+psycopg://edgeslm@127.0.0.1:{port}"
        finally:
            _run("pg_ctl", "-D", data, "-m", "immediate", "stop")
