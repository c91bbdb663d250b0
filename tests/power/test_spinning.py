from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeslm.power.spinning import Spinners


def spins(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def spinners():
    made = Spinners()
    yield made
    made.close()


def test_as_many_spin_as_were_asked_for(spinners):
    spinners.spin(2)
    first = spinners.pids
    assert [spins(pid) for pid in first] == [True, True]
    spinners.spin(1)
    assert spinners.pids == first[:1]
    assert [spins(pid) for pid in first] == [True, False]
    spinners.close()
    assert not spins(first[0])


def test_they_burn_processor_time(spinners):
    spinners.spin(1)
    (pid,) = spinners.pids
    clock_id = ~pid << 3 | 2
    deadline_s = time.monotonic() + 5
    while time.clock_gettime(clock_id) < 0.15 and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert time.clock_gettime(clock_id) >= 0.15


def test_they_end_with_the_process_that_started_them_however_it_ends():
    code = (
        "import os\nfrom edgeslm.power.spinning import Spinners\n"
        "s = Spinners(); s.spin(1); print(s.pids[0], flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=30, check=False
    )
    assert done.returncode == -9
    pid = int(done.stdout)
    deadline_s = time.monotonic() + 5
    while spins(pid) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert not spins(pid)
