"""A device that joins its fleet by itself: from `agent run` and a claim, whatever its clock says."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_fleet_rig import FleetRig, fleet_rig
from edgeslm.agent import joining as module
from edgeslm.agent.joining import Joining
from edgeslm.cli.wiring_joining import CREDENTIAL, find_claim, find_stranger, provisional_name
from edgeslm.codec import encode
from edgeslm.errors import ClaimError, EnrolmentRefusedError, IdentityError, NoAnswerError
from edgeslm.link.broker import find_mosquitto
from edgeslm.link.client import RequestClient
from edgeslm.link.connection import doubt_about_tls
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.enrol import Claim
from edgeslm.schema.message import PromptRequest, Result
from edgeslm.topics import device_topic

CLAIM = Claim(fleet="green", claim="abcdef", secret="0123456789abcdef", host="broker", port=8884, ca="none")
YEAR_S = 365 * 24 * 3600


def wait_for(found: Callable[[], Any], what: str, timeout_s: float = 60) -> Any:
    deadline_s = time.monotonic() + timeout_s
    while not (value := found()):
        assert time.monotonic() < deadline_s, f"in vain: {what}"
        time.sleep(0.02)
    return value


class Attempts:
    """Attempts to join that end as they are told, the last one well."""

    def __init__(self, *ends: Exception) -> None:
        self.ends = list(ends)
        self.at_s: list[float] = []

    def __call__(self, timeout_s: float, tell: Callable[[str], None]) -> None:
        self.at_s.append(time.monotonic())
        tell("asking")
        if self.ends:
            raise self.ends.pop(0)


class TestJoining:
    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (NoAnswerError("no broker", waited_s=1), "no broker"),
            (IdentityError("the disk is full", path="/x"), "cannot join: the disk is full"),
            (ZeroDivisionError("x"), "cannot join: ZeroDivisionError"),
        ],
    )
    def test_no_failure_ends_it(self, error: Exception, said: str) -> None:
        states: list[str] = []
        joined = threading.Event()
        joining = Joining(Attempts(error, error), joined.set, states.append, pause_s=0.01)
        joining.start()
        assert joining.wait(10)
        assert joined.wait(1)
        assert states == ["asking", said, "asking", said, "asking"]
        assert joining.ailment() is None

    def test_pauses_grow_so_that_a_dead_broker_is_not_hammered(self) -> None:
        nobody = [NoAnswerError("no broker", waited_s=1) for _ in range(5)]
        attempts = Attempts(*nobody)
        joining = Joining(attempts, lambda: None, pause_s=0.02)
        joining.start()
        assert joining.wait(10)
        pauses_s = [b - a for a, b in zip(attempts.at_s, attempts.at_s[1:], strict=False)]
        for at, pause_s in enumerate(pauses_s):
            assert pause_s >= 0.02 * 2**at

    def test_a_device_that_was_refused_asks_again_much_later(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "REFUSED_PAUSE_S", 0.3)
        attempts = Attempts(EnrolmentRefusedError("the fleet rejects this device", reason="x"))
        joining = Joining(attempts, lambda: None, pause_s=0.001)
        joining.start()
        assert joining.wait(10)
        assert attempts.at_s[1] - attempts.at_s[0] >= 0.3

    def test_stopping_does_not_wait_for_a_pause(self) -> None:
        joining = Joining(Attempts(NoAnswerError("no broker", waited_s=1)), lambda: None, pause_s=3600)
        joining.start()
        wait_for(lambda: joining.state == "no broker", "the attempt fails")
        began_s = time.monotonic()
        joining.stop()
        assert time.monotonic() - began_s < 1

    def test_one_that_stopped_is_an_ailment(self) -> None:
        joining = Joining(Attempts(NoAnswerError("no broker", waited_s=1)), lambda: None, pause_s=3600)
        joining.start()
        assert joining.ailment() is None
        joining.stop()
        assert joining.ailment() == "it does not try to join its fleet any more"


class TestClaims:
    def test_the_services_credential_is_found(self, tmp_path: Path) -> None:
        (tmp_path / CREDENTIAL).write_bytes(encode(CLAIM))
        assert find_claim(None, {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == CLAIM

    @pytest.mark.parametrize("text", [b"none", b"none\n"])
    def test_the_word_that_stands_for_none_is_none(self, tmp_path: Path, text: bytes) -> None:
        (tmp_path / CREDENTIAL).write_bytes(text)
        assert find_claim(None, {"CREDENTIALS_DIRECTORY": str(tmp_path)}) is None

    def test_without_a_service_there_is_none(self, tmp_path: Path) -> None:
        assert find_claim(None, {}) is None
        assert find_claim(None, {"CREDENTIALS_DIRECTORY": str(tmp_path)}) is None

    def test_credentials_that_systemd_promised_and_did_not_bring_are_told(self, tmp_path: Path) -> None:
        with pytest.raises(ClaimError, match=r"and it is not there.*mounts have to propagate"):
            find_claim(None, {"CREDENTIALS_DIRECTORY": str(tmp_path / "gone")})

    @pytest.mark.parametrize("text", [b"", b"{", b"\xff\xff", b'{"v": 1}', b"x" * 70_000, b"none"])
    def test_a_file_that_is_no_claim_is_told(self, tmp_path: Path, text: bytes) -> None:
        file = tmp_path / "claim.json"
        file.write_bytes(text)
        with pytest.raises(ClaimError, match=r"is no claim|more than"):
            find_claim(file, {})

    def test_a_file_that_is_not_there_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(ClaimError, match="cannot be read"):
            find_claim(tmp_path / "claim.json", {})


class TestStrangers:
    def find(self, path: Path | None, state: Path, **overrides: Any) -> Any:
        given = {"state_dir": str(state), **overrides}
        return find_stranger(CLAIM, path, given, on_joined=lambda: None, on_state=lambda text: None)

    def test_it_runs_by_the_names_of_its_claim_until_it_has_others(self, tmp_path: Path) -> None:
        found = self.find(None, tmp_path)
        assert (found.overrides["fleet"], found.overrides["device"]) == ("green", provisional_name())
        assert self.find(None, tmp_path, device="porch").overrides["device"] == "porch"

    def test_rules_and_a_broker_of_its_own_are_duties(self, tmp_path: Path) -> None:
        assert not self.find(None, tmp_path).has_duties
        assert self.find(None, tmp_path, broker_host="127.0.0.1").has_duties
        settings = tmp_path / "agent.yaml"
        settings.write_text("rules: [rules]\n")
        assert self.find(settings, tmp_path).has_duties
        settings.write_text("threads: 1\n")
        assert not self.find(settings, tmp_path).has_duties
        (tmp_path / "rules").mkdir()
        assert self.find(settings, tmp_path).has_duties

    def test_the_hosts_name_can_stand_on_the_wire(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for host, name in [
            ("Porch-1.lan", "porch-1"),
            ("", "unnamed"),
            ("pool", "unnamed"),
            ("Ä_ß", "unnamed"),
        ]:
            monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
            assert provisional_name() == name


def test_a_certificate_whose_dates_are_wrong_is_told_with_the_clock() -> None:
    early = ssl.SSLCertVerificationError()
    early.verify_code = 9
    config = BrokerConfig(host="broker", ca_file=Path("/ca.pem"))
    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert doubt_about_tls(config, early) == f" (the clock of this machine says {today})"
    early.verify_code = 18
    assert doubt_about_tls(config, early) == ""


# --- the agent as a process ------------------------------------------------------------------------------------------

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long offset_s(void) { const char *text = getenv("SHIM_OFFSET_S"); return text ? atol(text) : 0; }
static void note(const char *text) {
    const char *path = getenv("SHIM_LOG");
    int file = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    if (file >= 0) { if (write(file, text, strlen(text)) < 0) abort(); close(file); }
}
int clock_gettime(clockid_t which, struct timespec *out) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(which, out);
    if (!result && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) out->tv_sec += offset_s();
    return result;
}
int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    int (*real)(struct timeval *, void *) = dlsym(RTLD_NEXT, "gettimeofday");
    int result = real(out, zone);
    if (!result && out) out->tv_sec += offset_s();
    return result;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
void sync(void) { note("sync\n"); }
int connect(int socket, const struct sockaddr *to, socklen_t length) {
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    if (to->sa_family == AF_INET || to->sa_family == AF_INET6) note("connect\n");
    return real(socket, to, length);
}
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that moves the clock, and notes when disks are synced and connections made."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler to move the clock with")
    directory = tmp_path_factory.mktemp("shim")
    (directory / "shim.c").write_text(SHIM)
    subprocess.run(
        [
            "cc",
            "-shared",
            "-fPIC",
            "-O1",
            "-o",
            str(directory / "shim.so"),
            str(directory / "shim.c"),
            "-ldl",
        ],
        check=True,
    )
    return directory / "shim.so"


class Service:
    """The agent as a service manager runs it: a process that is heard, with a clock of its own."""

    def __init__(self, directory: Path, shim: Path, offset_s: int) -> None:
        self.log, self.notes = directory / "agent.log", directory / "notes"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(directory / "notify"))
        self.said: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()
        environment = {key: value for key, value in os.environ.items() if not key.startswith("EDGESLM_")}
        environment |= {
            "LD_PRELOAD": str(shim),
            "SHIM_OFFSET_S": str(offset_s),
            "SHIM_LOG": str(self.notes),
            "NOTIFY_SOCKET": str(directory / "notify"),
            "CREDENTIALS_DIRECTORY": str(directory),
        }
        command = [sys.executable, "-P", "-m", "edgeslm", "-v", "agent", "run"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--state-dir", str(directory / "state"), "--threads", "1"],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def _listen(self) -> None:
        while True:
            try:
                text = self._socket.recv(4096).decode()
            except OSError:
                return
            self.said.append(text)

    def has_said(self, text: str) -> bool:
        return any(text in said for said in self.said)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self._socket.close()


@contextmanager
def running(directory: Path, shim: Path, offset_s: int, claim: Claim) -> Iterator[Service]:
    (directory / CREDENTIAL).write_bytes(encode(claim))
    service = Service(directory, shim, offset_s)
    try:
        yield service
    except BaseException:
        print(service.log.read_text("utf-8", "replace")[-4000:], service.said)
        raise
    finally:
        service.close()


def ask(rig: FleetRig) -> Result:
    with RequestClient(rig.fleet.operator_config()) as client:
        request = PromptRequest(id="p1", prompt="turn on the kitchen light")
        return client.ask(device_topic("green", "porch", "prompt"), request, timeout_s=60)


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
class TestClocks:
    @pytest.mark.parametrize(
        "offset_s",
        [
            pytest.param(20 - int(time.time()), id="1970"),
            pytest.param(-200 * 24 * 3600, id="months behind", marks=pytest.mark.nightly),
            pytest.param(3 * YEAR_S, id="years ahead", marks=pytest.mark.nightly),
        ],
    )
    def test_a_board_joins_and_answers_whatever_its_clock_says(
        self, shim: Path, tmp_path: Path, offset_s: int
    ) -> None:
        with fleet_rig() as rig, rig.service():
            with running(tmp_path, shim, offset_s, rig.claim("porch").claim) as service:
                wait_for(lambda: service.has_said("online at"), "it joins")
                answer = ask(rig)
            assert answer.error is None, answer
            assert "Kitchen" in (answer.text or "")

    def test_it_is_there_before_anybody_answers_and_says_what_it_waits_for(
        self, shim: Path, tmp_path: Path
    ) -> None:
        with fleet_rig() as rig:
            with running(tmp_path, shim, 0, rig.claim("porch").claim) as service:
                wait_for(lambda: service.has_said("READY=1"), "it is ready")
                wait_for(lambda: service.has_said("waiting for the fleet's answer"), "it asks")
                with rig.service():
                    wait_for(lambda: service.has_said("online at"), "it joins")
            assert service.said.index("READY=1") < next(
                at for at, said in enumerate(service.said) if "online at" in said
            )

    def test_the_disks_are_synced_before_anybody_hears_of_it(self, shim: Path, tmp_path: Path) -> None:
        with fleet_rig() as rig, rig.service():
            with running(tmp_path, shim, 0, rig.claim("porch").claim) as service:
                wait_for(lambda: service.has_said("online at"), "it joins")
            noted = service.notes.read_text().split()
        assert noted[0] == "sync"
        # As a member it begins anew, loads its models, and settles those as well before it reports.
        assert noted.count("sync") >= 2
        assert "sync" in noted[noted.index("connect") :]
