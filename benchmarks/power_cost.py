"""What sampling and accounting cost: processor, memory, and tokens that the model makes less.

A process of its own samples ten times a second from a hwmon sensor made of files, through the real bank, account and
ledger; another process gives the sensor a new value as often.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.agent_rig import golden_prompts, rss_mb

if TYPE_CHECKING:
    from edgeslm.power.account import EnergyAccount
    from edgeslm.power.ledger import Ledger

SECONDS = 60.0
MODEL = "home-command"
_PROMPTS_PER_S = 2.0


@dataclass(frozen=True)
class SamplerCost:
    """What the sampler, account and ledger took while ten samples and two prompts a second went through them.

    Attributes:
        cpu: share of one core.
        mb: memory beyond what an agent has without them, in MB of 1,048,576 bytes.
        samples: how many there were.
    """

    cpu: float
    mb: float
    samples: int


def sampler_cost(seconds: float = SECONDS) -> SamplerCost:
    """Measure for `seconds` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder, _sensor(Path(folder)):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.power_cost", folder, "--seconds", str(seconds)],
            stdout=subprocess.PIPE,
            check=True,
            timeout=seconds + 60,
        )
    return SamplerCost(**json.loads(done.stdout))


def tokens_lost(seconds: float = SECONDS) -> float:
    """Share of its tokens that a busy model loses to the sampler.

    One prompt is answered again and again while the sampler runs. Answers in which a sample fell take longer than
    their neighbours in which none did, counted in processor time of the whole process; ten times a second that
    difference is the share. What else the machine does slows both kinds alike.
    """
    from edgeslm.cli.wiring import open_model  # noqa: PLC0415
    from edgeslm.power.account import PERIOD_S  # noqa: PLC0415
    from edgeslm.schema.message import Options  # noqa: PLC0415

    model = open_model(MODEL, threads=1)
    prompt = golden_prompts()[0]
    samples = 0

    def count() -> None:
        nonlocal samples
        samples += 1

    taken_s: dict[bool, list[float]] = {False: [], True: []}
    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # as the agent does
    try:
        with tempfile.TemporaryDirectory() as folder, _sensor(Path(folder)), _sampling(Path(folder), count):
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s:
                before, started_s = samples, time.process_time()
                model.answer(prompt, Options())
                taken_s[samples > before].append(time.process_time() - started_s)
    finally:
        sys.setswitchinterval(switch_s)
    return (statistics.median(taken_s[True]) - statistics.median(taken_s[False])) / PERIOD_S


@contextmanager
def _sensor(root: Path) -> Iterator[None]:
    """An INA226 as the kernel shows it, below `root`; its value changes ten times a second."""
    directory = root / "sys/class/hwmon/hwmon3"
    directory.mkdir(parents=True)
    (directory / "name").write_text("ina226\n")
    (directory / "shunt_resistor").write_text("10000\n")
    (directory / "in1_input").write_text("5020\n")
    (directory / "power1_input").write_text("3100000\n")
    with subprocess.Popen(
        [sys.executable, "-c", _CHANGE, str(directory / "power1_input")], stdin=subprocess.PIPE
    ) as changer:
        try:
            yield
        finally:
            changer.communicate()


_CHANGE = """
import os, random, select, sys
file = os.open(sys.argv[1], os.O_WRONLY)
while not select.select([0], [], [], 0.1)[0]:
    os.pwrite(file, b"%d\\n" % random.randrange(3000000, 3200000, 6250), 0)
"""


@dataclass(frozen=True)
class _Parts:
    account: EnergyAccount
    ledger: Ledger


@contextmanager
def _sampling(root: Path, on_sample: Callable[[], None] = lambda: None) -> Iterator[_Parts]:
    """The real parts, as an agent has them; imported late, so that their memory can be told from an agent's."""
    from edgeslm.power.account import EnergyAccount  # noqa: PLC0415
    from edgeslm.power.bank import MeterBank  # noqa: PLC0415
    from edgeslm.power.boards import load_boards  # noqa: PLC0415
    from edgeslm.power.cpu import CpuClock  # noqa: PLC0415
    from edgeslm.power.health import limits_of  # noqa: PLC0415
    from edgeslm.power.ledger import Ledger  # noqa: PLC0415
    from edgeslm.power.meters.hwmon import HwmonMeter, find_sensors  # noqa: PLC0415
    from edgeslm.power.meters.model import ModelMeter  # noqa: PLC0415
    from edgeslm.power.sampler import BankSource, Sampler  # noqa: PLC0415
    from edgeslm.procfs import boot_id  # noqa: PLC0415

    board = load_boards()["pi-4b"]
    meter = HwmonMeter(find_sensors(root)[0], root=root)
    bank = MeterBank([meter], ModelMeter(board.power), limits_of(board.power, board.cores))
    ledger = Ledger(root / "energy.db", boot_id())
    account = EnergyAccount(board.power)
    cpu = CpuClock()
    sampler = Sampler(
        BankSource(bank, cpu, lambda event: None), account, ledger, listeners=[lambda interval: on_sample()]
    )
    sampler.start()
    try:
        yield _Parts(account, ledger)
    finally:
        sampler.stop()
        ledger.close()
        bank.close()
        cpu.close()


def _measure(root: Path, seconds: float) -> SamplerCost:
    """In a process of its own: cost beyond that of an agent's own modules with an open journal."""
    from edgeslm.agent import service  # noqa: F401, PLC0415
    from edgeslm.agent.journal import Journal  # noqa: PLC0415
    from edgeslm.cli import wiring  # noqa: F401, PLC0415
    from edgeslm.link import mqtt  # noqa: F401, PLC0415
    from edgeslm.power.boards import load_boards  # noqa: PLC0415
    from edgeslm.power.port import Cause  # noqa: PLC0415
    from edgeslm.runtime import model  # noqa: F401, PLC0415

    journal = Journal(root / "agent.db")
    journal.prune(0.0, 0)
    load_boards()
    gc.collect()
    before_mb = rss_mb(os.getpid())
    samples = 0

    def count() -> None:
        nonlocal samples
        samples += 1

    with _sampling(root, count) as parts:
        from edgeslm.power.ledger_reader import PromptNote  # noqa: PLC0415

        cpu_s = time.process_time()
        for number in range(int(seconds * _PROMPTS_PER_S)):
            span = parts.account.begin(Cause("prompt", model="m@1", id=f"p{number}"))
            span.so_far()
            span.end()
            parts.ledger.note(PromptNote(f"p{number}", time.time(), "m@1", decision='{"why": "it fits"}'))
            time.sleep(1 / _PROMPTS_PER_S)
        cpu_s = time.process_time() - cpu_s
        after_mb = rss_mb(os.getpid())
    journal.close()
    return SamplerCost(cpu_s / seconds, after_mb - before_mb, samples)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The measuring process of sampler_cost().")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    print(json.dumps(asdict(_measure(arguments.folder, arguments.seconds))))
