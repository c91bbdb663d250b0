from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_fleet_rig import HOST, FleetRig, Visitor, fleet_rig, free_ports, wait_for
from edgeslm.cli.enrol import enrol
from edgeslm.cli.fleet import fleet
from edgeslm.cli.fleet_common import PARTLY
from edgeslm.link.broker import find_mosquitto
from edgeslm.schema.enrol import Claim
from edgeslm.trust.claim import read_token
from edgeslm.trust.identity import IdentityStore

NEEDS_MOSQUITTO = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")


def run(*arguments: str, root: Path | None = None, stdin: str | None = None, **env: str) -> Result:
    clean = {name: "" for name in os.environ if name.startswith("EDGESLM_")}
    where = ["--fleet-dir", str(root)] if root is not None else []
    return CliRunner(env={**clean, **env}).invoke(fleet, [*arguments, *where], input=stdin)


def ok(result: Result) -> Any:
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    return (
        json.loads(result.stdout.splitlines()[-1]) if result.stdout.startswith(("{", "[")) else result.stdout
    )


def init(root: Path, *more: str) -> Result:
    return run("init", "green", "--broker-host", "broker.local", *more, root=root)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    ok(init(tmp_path / "green"))
    return tmp_path / "green"


@pytest.fixture(scope="module")
def rig() -> Iterator[FleetRig]:
    with fleet_rig() as made, made.service():
        yield made


# --- the fleet ----------------------------------------------------------------------------------------------


def test_a_new_fleet_says_what_to_do_next(tmp_path: Path) -> None:
    said = ok(init(tmp_path / "green"))
    for next_step in ("edgeslm fleet serve --broker", "edgeslm fleet claim", "edgeslm agent enrol", "ca.key"):
        assert next_step in said
    told = ok(init(tmp_path / "green", "--json"))
    listeners = "".join(Path(told[name]).read_text() for name in ("broker_config", "door_config"))
    assert listeners.count("\nlistener ") == 3
    assert {Path(told[name]).is_file() for name in ("authority", "operator_key", "operator_certificate")} == {
        True
    }


@pytest.mark.parametrize(
    "more",
    [
        ["--broker-host", "elsewhere"],
        ["--certificate-days", "7"],
        ["--claim-port", "8883"],
        ["--certificate-days", "-1"],
        ["--database", "no url"],
    ],
)
def test_settings_that_cannot_be_are_a_usage_error_and_change_nothing(root: Path, more: list[str]) -> None:
    before = (root / "fleet.yaml").read_bytes()
    result = init(root, *more)
    assert result.exit_code == 2
    assert result.stderr.startswith("edgeslm: ")
    assert (root / "fleet.yaml").read_bytes() == before


def test_a_fleet_is_found_by_flag_by_environment_or_by_being_the_only_one(root: Path, tmp_path: Path) -> None:
    assert ok(run("list", "--json", root=root)) == []
    assert ok(run("list", "--json", EDGESLM_FLEET_DIR=str(root))) == []
    home = {"XDG_DATA_HOME": str(tmp_path / "data")}
    ok(run("init", "blue", "--broker-host", "x", **home))
    assert ok(run("list", "--json", **home)) == []
    ok(run("init", "red", "--broker-host", "x", **home))
    assert run("list", **home).exit_code == 2
    assert ok(run("list", "--json", "--fleet", "red", **home)) == []
    assert run("list", root=tmp_path / "nowhere").exit_code == 2


def test_the_authority_s_key_may_have_a_passphrase_which_is_needed_to_sign_only(tmp_path: Path) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text("four words of mine\n")
    result = init(tmp_path / "green", "--encrypt-key", "--passphrase-file", str(secret))
    assert result.exit_code == 0, result.stderr
    root = tmp_path / "green"
    assert b"ENCRYPTED" in (root / "ca.key").read_bytes()
    ok(run("claim", "--device", "kitchen", "--json", root=root))
    assert "four words" not in result.stdout + result.stderr
    no_words = tmp_path / "wrong"
    no_words.write_text("four words of yours")
    (root / "broker" / "server.crt").unlink()  # now something has to be signed
    assert run("claim", "--json", root=root).exit_code == 2
    assert run("claim", "--json", "--passphrase-file", str(no_words), root=root).exit_code == 2
    ok(run("claim", "--json", "--passphrase-file", str(secret), root=root))


# --- claims -------------------------------------------------------------------------------------------------


def test_a_claim_is_printed_as_a_token_alone_on_stdout(root: Path) -> None:
    result = run("claim", "--device", "kitchen", root=root)
    assert read_token(ok(result).strip())
    assert "edgeslm agent enrol" in result.stderr


def test_claims_are_written_for_their_owner_alone_and_never_over_a_file(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "claim.json"
    ok(run("claim", "--device", "kitchen", "--out", str(file), root=root))
    assert file.stat().st_mode & 0o077 == 0
    claim = Claim.model_validate_json(file.read_bytes())
    assert (claim.device, claim.host) == ("kitchen", "broker.local")
    again = run("claim", "--device", "kitchen", "--out", str(file), root=root)
    assert again.exit_code == 1
    assert Claim.model_validate_json(file.read_bytes()) == claim
    assert len(ok(run("claims", "--json", root=root))) == 1, "a claim that nobody got is none"


def test_a_dry_run_of_claims_makes_none(root: Path, tmp_path: Path) -> None:
    said = ok(run("claim", "--count", "2", "--out", str(tmp_path / "claims"), "--dry-run", root=root))
    assert "2 claims would be made" in said
    assert not (tmp_path / "claims").exists()
    assert ok(run("claims", "--json", root=root)) == []


def test_many_claims_are_made_at_once(root: Path, tmp_path: Path) -> None:
    result = run("claim", "--count", "3", "--expires", "7d", "--out", str(tmp_path / "claims"), root=root)
    assert len({str(read_token(line)) for line in ok(result).splitlines()}) == 3
    assert len(list((tmp_path / "claims").glob("*.json"))) == 3
    lines = run("claim", "--count", "2", "--json", root=root).stdout.splitlines()
    assert [sorted(json.loads(line)) for line in lines] == [["claim", "token"]] * 2
    assert len(ok(run("claims", "--json", root=root))) == 5


@pytest.mark.parametrize(
    "more",
    [
        ["--device", "a", "--count", "2"],
        ["--replace"],
        ["--expires", "soon"],
        ["--expires", "0h"],
        ["--expires", "9999d"],
        ["--device", "pool"],
        ["--device", "Kitchen"],
        ["--count", "0"],
    ],
)
def test_a_claim_that_makes_no_sense_is_not_made(root: Path, more: list[str]) -> None:
    assert run("claim", *more, root=root).exit_code in {1, 2}
    assert ok(run("claims", "--all", "--json", root=root)) == []


def test_a_claim_is_taken_back(root: Path) -> None:
    claim = ok(run("claim", "--json", root=root))["claim"]["claim"]
    assert run("revoke", "--claim", claim, root=root).exit_code == 2, "nobody was asked"
    ok(run("revoke", "--claim", claim, "--yes", root=root))
    assert ok(run("claims", "--json", root=root)) == []
    assert [one["state"] for one in ok(run("claims", "--all", "--json", root=root))] == ["revoked"]


# --- devices ------------------------------------------------------------------------------------------------


def enrolled(rig: FleetRig, name: str) -> dict[str, Any]:
    """A device that joins by the command line."""
    file = rig.directory / f"{name}.json"
    ok(run("claim", "--device", name, "--out", str(file), root=rig.fleet.root))
    state_dir = rig.directory / "boards" / name
    result = CliRunner().invoke(
        enrol, [str(file), "--state-dir", str(state_dir), "--timeout", "20", "--json"]
    )
    told = ok(result)
    assert isinstance(told, dict)
    return told


@NEEDS_MOSQUITTO
def test_a_device_joins_by_file_and_does_nothing_the_second_time(rig: FleetRig) -> None:
    first = enrolled(rig, "kitchen")
    assert (first["fleet"], first["device"], first["port"]) == ("green", "kitchen", rig.config.broker.port)
    state_dir = rig.directory / "boards" / "kitchen"
    again = CliRunner().invoke(
        enrol, [str(rig.directory / "kitchen.json"), "--state-dir", str(state_dir), "--json"]
    )
    assert ok(again) == first
    shown = ok(run("show", "kitchen", "--json", root=rig.fleet.root))
    assert shown["device"]["standing"] == "active"
    assert shown["certificates"][0]["serial"] == first["serial"]


@NEEDS_MOSQUITTO
def test_a_device_joins_by_a_token_that_is_piped_once_it_is_approved(rig: FleetRig) -> None:
    token = ok(run("claim", root=rig.fleet.root))
    arguments = [
        "--fleet",
        "green",
        "--host",
        HOST,
        "--port",
        str(rig.config.broker.claim_port),
        "--device",
        "shed",
    ]
    state_dir = rig.directory / "boards" / "shed"
    command = [*arguments, "--state-dir", str(state_dir), "--json"]
    early = CliRunner().invoke(enrol, [*command, "--timeout", "1.5"], input=token)
    assert early.exit_code == 1
    assert "waiting for approval" in early.stderr
    (waiting,) = ok(run("pending", "--json", root=rig.fleet.root))
    assert waiting["device"] == "shed"
    assert "shed" in ok(run("pending", root=rig.fleet.root))
    assert ok(run("approve", "shed", "--json", root=rig.fleet.root)) == {"approved": ["shed"]}
    assert ok(CliRunner().invoke(enrol, [*command, "--timeout", "20"], input=token))["device"] == "shed"
    assert ok(run("pending", "--json", root=rig.fleet.root)) == []


@NEEDS_MOSQUITTO
def test_a_device_that_belongs_to_a_fleet_joins_another_one_only_on_demand(
    rig: FleetRig, tmp_path: Path
) -> None:
    enrolled(rig, "loyal")
    file = tmp_path / "claim.json"
    ok(run("claim", "--device", "loyal-2", "--out", str(file), root=rig.fleet.root))
    state_dir = rig.directory / "boards" / "loyal"
    result = CliRunner().invoke(enrol, [str(file), "--state-dir", str(state_dir), "--timeout", "5"])
    assert result.exit_code == 1
    assert "green/loyal already" in result.stderr
    result = CliRunner().invoke(
        enrol, [str(file), "--state-dir", str(state_dir), "--timeout", "20", "--replace"]
    )
    assert "green/loyal-2" in ok(result)


@pytest.mark.parametrize("text", ["", "{", '{"v": 1}', "abc", "0" * 40])
def test_what_is_no_claim_is_a_usage_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "claim.json"
    file.write_text(text)
    result = CliRunner().invoke(enrol, [str(file), "--state-dir", str(tmp_path / "state")])
    assert result.exit_code == 2
    assert not list((tmp_path / "state").rglob("*.key"))


def test_a_token_on_the_command_line_is_not_taken(tmp_path: Path, root: Path) -> None:
    token = ok(run("claim", root=root)).strip()
    result = CliRunner().invoke(enrol, [token, "--state-dir", str(tmp_path / "state")])
    assert result.exit_code == 2
    assert "never an argument" in result.stderr


@NEEDS_MOSQUITTO
def test_revoking_asks_shows_its_plan_and_puts_the_device_off(rig: FleetRig) -> None:
    enrolled(rig, "lost")
    root = rig.fleet.root
    assert run("revoke", "lost", root=root).exit_code == 2
    dry = run("revoke", "lost", "--dry-run", root=root)
    assert (dry.exit_code, "lost:" in dry.stderr) == (0, True)
    assert ok(run("show", "lost", "--json", root=root))["device"]["standing"] == "active"
    assert ok(run("revoke", "lost", "--yes", "--reason", "stolen", "--json", root=root)) == {
        "revoked": ["lost"]
    }
    shown = ok(run("show", "lost", "--json", root=root))
    assert shown["device"]["standing"] == "revoked"
    assert shown["certificates"][0]["reason"] == "stolen"
    identity = IdentityStore(rig.directory / "boards" / "lost" / "identity").current()
    assert identity is not None
    with Visitor(identity.broker_config(), "its-agent", must_connect=False) as agent:
        assert wait_for(lambda: bool(agent.events.reasons))
        assert agent.events.connections == 0
    assert run("revoke", "lost", "--yes", root=root).exit_code == 1


@NEEDS_MOSQUITTO
def test_where_some_of_several_fail_the_exit_code_says_so(rig: FleetRig) -> None:
    root = rig.fleet.root
    for name in ("one", "two"):
        enrolled(rig, name)
    ok(run("revoke", "one", "--yes", root=root))
    result = run("revoke", "one", "two", "--yes", "--json", root=root)
    assert result.exit_code == PARTLY
    assert json.loads(result.stdout) == {"revoked": ["two"]}
    assert "one is revoked" in result.stderr.replace("'", "")
    assert run("revoke", "one", "two", "--yes", root=root).exit_code == 1
    unknown = run("revoke", "two", "tow", "--yes", root=root)
    assert (unknown.exit_code, "Did you mean" in unknown.stderr) == (2, True)


@NEEDS_MOSQUITTO
def test_devices_are_renamed_and_retired(rig: FleetRig) -> None:
    root = rig.fleet.root
    enrolled(rig, "attic")
    told = ok(run("rename", "attic", "loft", "--yes", "--json", root=root))
    assert told == {"device": "attic", "rename_to": "loft"}
    assert ok(run("show", "attic", "--json", root=root))["device"]["rename_to"] == "loft"
    assert run("rename", "attic", "kitchen-2", "--dry-run", root=root).exit_code == 0
    assert run("rename", "nobody", "x", "--yes", root=root).exit_code == 2
    assert ok(run("retire", "attic", "--yes", "--json", root=root)) == {"retired": ["attic"]}
    assert "attic" not in [one["name"] for one in ok(run("list", "--json", root=root))]
    assert "attic" in [one["name"] for one in ok(run("list", "--all", "--json", root=root))]


@NEEDS_MOSQUITTO
def test_tables_say_what_json_says_without_trailing_blanks(rig: FleetRig) -> None:
    root = rig.fleet.root
    enrolled(rig, "table")
    for command in (["list"], ["show", "table"], ["audit"], ["claims", "--all"]):
        said = ok(run(*command, root=root))
        assert "table" in said
        assert all(line == line.rstrip() for line in said.splitlines())
    audit = ok(run("audit", "table", "--json", root=root))
    assert [one["action"] for one in audit] == ["approve", "claim"]
    assert audit[0]["actor"] == "service"
    assert "@" in audit[1]["actor"]


def test_an_unknown_device_is_named_with_its_neighbours(root: Path) -> None:
    for command in (["show", "nobody"], ["approve", "nobody"], ["reject", "nobody"]):
        result = run(*command, root=root)
        assert result.exit_code == 2
        assert "nobody" in result.stderr
    assert "no devices" in run("list", root=root).stderr
    assert "nothing waits" in run("pending", root=root).stderr


# --- backup -------------------------------------------------------------------------------------------------


def test_a_fleet_is_backed_up_and_restored(root: Path, tmp_path: Path) -> None:
    ok(run("claim", "--device", "kitchen", root=root))
    file = tmp_path / "backup.tar"
    told = ok(run("backup", str(file), "--json", root=root))
    assert told["size_bytes"] == file.stat().st_size
    assert run("backup", str(file), root=root).exit_code == 2
    ok(run("restore", str(file), "--dir", str(tmp_path / "again")))
    assert [one["device"] for one in ok(run("claims", "--json", root=tmp_path / "again"))] == ["kitchen"]
    assert run("restore", str(file), "--dir", str(root)).exit_code == 2


# --- serving ------------------------------------------------------------------------------------------------


@NEEDS_MOSQUITTO
def test_serving_runs_the_broker_too_and_ends_both_on_sigterm(tmp_path: Path) -> None:
    ports = [str(port) for port in free_ports(3)]
    root = tmp_path / "green"
    ok(
        run("init", "green", "--broker-host", HOST, "--bind", HOST, "--broker-port", ports[0],
            "--claim-port", ports[1], "--operator-port", ports[2], root=root)
    )  # fmt: skip
    code = "from edgeslm.cli.fleet import fleet; fleet()"
    serving = subprocess.Popen(
        [sys.executable, "-c", code, "serve", "--broker", "--fleet-dir", str(root)],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert serving.stderr is not None
        said = [serving.stderr.readline() for _ in range(2)]
        assert "mosquitto listens" in said[0]
        assert "answering devices" in said[1]
        os.kill(int((root / "broker" / "door.pid").read_text()), signal.SIGKILL)
        assert "started anew: door" in serving.stderr.readline()
        file = tmp_path / "claim.json"
        ok(run("claim", "--device", "kitchen", "--out", str(file), root=root))
        arguments = [str(file), "--state-dir", str(tmp_path / "board"), "--timeout", "20"]
        assert "green/kitchen" in ok(CliRunner().invoke(enrol, arguments))
    finally:
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(15) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, int(ports[0])), timeout=5)
    ok(run("claim", "--device", "cellar", root=root))


@NEEDS_MOSQUITTO
def test_a_claim_may_be_waited_for_without_a_server(tmp_path: Path) -> None:
    with fleet_rig() as rig:
        file = tmp_path / "claim.json"
        code = "from edgeslm.cli.fleet import fleet; fleet()"
        command = ["claim", "--device", "kitchen", "--out", str(file), "--wait", "1min"]
        waiting = subprocess.Popen(
            [sys.executable, "-c", code, *command, "--fleet-dir", str(rig.fleet.root)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert wait_for(file.exists)
        assert wait_for(lambda: file.stat().st_size > 0)
        arguments = [str(file), "--state-dir", str(tmp_path / "board"), "--timeout", "20"]
        ok(CliRunner().invoke(enrol, arguments))
        _, said = waiting.communicate(timeout=20)
        assert waiting.returncode == 0
        assert "1 of 1 joined" in said
        none = run("claim", "--device", "cellar", "--wait", "1min", root=tmp_path / "nowhere")
        assert none.exit_code == 2
