"""`edgeslm sparkplug run`: what it takes, and that it ends cleanly."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from edgeslm.cli.sparkplug import sparkplug
from edgeslm.link.broker import EmbeddedBroker, available_kinds

NEEDED = ["run", "--device", "kitchen-pi", "--group", "Plant 1"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--group", "a/b"], "cannot stand in a Sparkplug topic"),
        (["--node", "+"], "cannot stand in a Sparkplug topic"),
        (["--port", "0"], "port"),
        (["--to-host", "x", "--to-port", "70000"], "port"),
        (["--password-file", __file__], "username"),
        (["--to-host", "x", "--to-cert", __file__, "--to-key", __file__], "ca-file"),
    ],
)
def test_refuses_what_cannot_work_with_a_sentence(tmp_path, more, told):
    done = CliRunner().invoke(sparkplug, [*NEEDED, "--state-dir", str(tmp_path), *more])
    assert done.exit_code in {1, 2}
    assert told in done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)


@pytest.mark.skipif("mosquitto" not in available_kinds(), reason="mosquitto is not installed")
def test_ends_cleanly_when_told_to(tmp_path):
    with EmbeddedBroker(kind="mosquitto") as broker, (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "edgeslm", "sparkplug", *NEEDED]
        command += ["--port", str(broker.port), "--state-dir", str(tmp_path)]
        running = subprocess.Popen(command, stderr=log)
        deadline_s = time.monotonic() + 60
        while b"showing" not in (tmp_path / "log").read_bytes():
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
    assert b"Traceback" not in (tmp_path / "log").read_bytes()
