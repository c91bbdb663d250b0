"""What all commands share in how they speak, and how they end."""

from __future__ import annotations

import signal
import subprocess
import sys

SIGNALLED = """
import time
from edgeslm.cli.output import stopped_by_signals
with stopped_by_signals() as stop:
    print("ready", flush=True)
    while not stop.wait(0.00001):
        pass
    time.sleep(0.05)
"""


def test_signals_at_any_moment_end_a_command(tmp_path):
    for _ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", SIGNALLED], stdout=subprocess.PIPE, text=True, cwd=tmp_path
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                for _ in range(200):
                    if process.poll() is not None:
                        break
                    process.send_signal(signal.SIGTERM)
                # One that comes when the command has let go of signals ends it as well.
                assert process.wait(20) in {0, -signal.SIGTERM}
            finally:
                process.kill()
