"""The registry that an operator lives in, on the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgeslm.cli.fleet import fleet
from edgeslm.cli.main import cli
from edgeslm.fleet import registry
from edgeslm.fleet.assignments import take_reported
from edgeslm.fleet.directory import FleetDirectory, create_fleet
from edgeslm.fleet.store.models import CertificateRow, DeviceRow
from edgeslm.schema.fleet import FleetBroker, FleetConfig

NOW = datetime.now(UTC)
WAIT_S = 60


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fleet") / "green"
    config = FleetConfig(name="green", broker=FleetBroker(host="localhost"))
    made = create_fleet(root, config, passphrase=None, now=NOW)
    store = made.open_store()
    with store.write() as session:
        for number, name in enumerate(("attic", "cellar", "kitchen")):
            seen = NOW - timedelta(hours=10 * number)
            row = DeviceRow(
                name=name,
                standing="active",
                presence=("online", "offline", "online")[number],
                key_sha256=str(number) * 64,
                notes="",
                board=("pi-4b", "pi-5", "pi-4b")[number],
                serial=f"SN{number}",
                created_at=NOW - timedelta(days=9),
                first_seen_at=seen,
                last_seen_at=seen,
                certificates=[
                    CertificateRow(
                        name=name,
                        serial=str(number),
                        key_sha256="0" * 64,
                        pem="",
                        not_before=NOW - timedelta(days=9),
                        not_after=NOW + timedelta(days=30),
                    )
                ],
            )
            session.add(row)
            session.flush()
            registry.note_event(session, name, "joined", "joined", NOW - timedelta(days=9), device=row)
            model = {"name": "lamp", "version": f"1.{number}.0", "sha256": "a" * 64}
            body = {"v": 1, "device": name, "epoch": "e", "seq": 1, "assignment": 0, "models": [model]}
            assert take_reported(session, name, json.dumps(body).encode(), NOW - timedelta(days=1))
    store.close()
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    """A fleet of three devices; the keys of its template serve well enough."""
    copy = tmp_path / "green"
    copy.mkdir(mode=0o700)
    for path in template.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
            (copy / path.name).chmod(path.stat().st_mode)
    return copy


@pytest.fixture
def run(root: Path) -> Any:
    clean = {name: "" for name in os.environ if name.startswith("EDGESLM_")}

    def invoke(*arguments: str) -> Result:
        environment = {**clean, "EDGESLM_FLEET_DIR": str(root)}
        return CliRunner(env=environment).invoke(fleet, list(arguments))

    return invoke


def ok(result: Result) -> str:
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    return result.stdout


def as_json(result: Result) -> Any:
    return json.loads(ok(result))


def refused(result: Result, *words: str, code: int = 2) -> None:
    assert result.exit_code == code, (result.stdout, result.stderr)
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("edgeslm: ")
    for word in words:
        assert word in result.stderr


def listed(run: Any, *arguments: str) -> list[str]:
    return [one["name"] for one in as_json(run("list", "--json", *arguments))]


# --- tags and notes -----------------------------------------------------------------------------------------


def test_devices_are_tagged_by_name_by_query_and_by_group(run: Any) -> None:
    assert ok(run("tag", "kitchen", "+north", "+old")) == "kitchen: north old\n"
    ok(run("group", "create", "four", "--where", "board=pi-4b"))
    assert ok(run("tag", "--group", "four", "-old", "+house")) == "attic: house\nkitchen: house north\n"
    assert ok(run("tag", "--where", "tag:north", "+north")) == "kitchen: house north, as before\n"
    assert as_json(run("tag", "cellar", "+dark", "--json")) == [{"device": "cellar", "tags": ["dark"]}]
    assert listed(run, "--tag", "house") == ["attic", "kitchen"]
    assert listed(run, "--tag", "house", "--tag", "north") == ["kitchen"]


@pytest.mark.parametrize("tag", ["-greenhouse", "-yard", "-house", "-json", "-where"])
def test_a_tag_to_take_off_is_never_taken_for_an_option(run: Any, tag: str) -> None:
    ok(run("tag", "kitchen", "+" + tag[1:]))
    assert ok(run("tag", "kitchen", tag)) == "kitchen: no tags\n"


def test_wrong_tags_and_devices_change_nothing(run: Any) -> None:
    refused(run("tag", "kitchen", "cellr", "+north"), "Did you mean cellar?")
    refused(run("tag", "kitchen", "+North"), "no tag")
    refused(run("tag", "kitchen"), "which tags?")
    refused(run("tag", "+north"), "which devices?")
    refused(run("tag", "kitchen", "+north", "--colour"), "--colour")
    refused(run("tag", "--where", "name=nobody", "+north"), "no device")
    ok(run("tag", "kitchen", "+north", "--dry-run"))
    assert listed(run, "--where", "tag != none") == []


def test_a_note_is_kept_printed_and_removed(run: Any) -> None:
    assert run("note", "kitchen").stderr == "no note\n"
    ok(run("note", "kitchen", "left of the door"))
    assert ok(run("note", "kitchen")) == "left of the door\n"
    assert "left of the door" in ok(run("show", "kitchen"))
    assert as_json(run("note", "kitchen", "--clear", "--json")) == {"device": "kitchen", "note": ""}
    refused(run("note", "kitchen", "x", "--clear"))
    refused(run("note", "kitchen", "\x1b[31mred"))


# --- groups -------------------------------------------------------------------------------------------------


def test_groups_are_made_changed_and_forgotten(run: Any) -> None:
    assert ok(run("group", "create", "upper", "--device", "attic")) == "made group upper: 1 device: attic\n"
    assert ok(run("group", "create", "four", "--where", "board=pi-4b")).startswith("made group four: 2 ")
    ok(run("group", "create", "both", "--where", "group:four and not group:upper"))
    assert listed(run, "--group", "both") == ["kitchen"]
    assert ok(run("group", "add", "upper", "kitchen", "attic")) == (
        "added 1 device to upper; 1 was in it before\n"
    )
    assert listed(run, "-g", "both") == []
    ok(run("group", "remove", "upper", "--where", "name=kitchen"))
    assert ok(run("group", "rename", "upper", "top")) == "upper is top now\n"
    queries = {one["name"]: one["query"] for one in as_json(run("group", "list", "--json"))}
    assert queries == {"both": "group:four and not group:top", "four": "board = pi-4b", "top": None}
    assert as_json(run("group", "query", "four", "board=pi-5", "--json"))["joined"] == ["cellar"]
    refused(run("group", "delete", "four", "--yes"), "both")
    ok(run("group", "delete", "both", "--yes"))
    assert [one["name"] for one in as_json(run("group", "list", "--json"))] == ["four", "top"]
    shown = ok(run("group", "show", "top"))
    assert shown.splitlines()[-1] == "attic"


def test_a_dry_run_of_a_group_changes_nothing(run: Any) -> None:
    ok(run("group", "create", "upper", "--device", "attic", "--dry-run"))
    assert as_json(run("group", "list", "--json")) == []
    ok(run("group", "create", "upper"))
    ok(run("group", "add", "upper", "attic", "--dry-run"))
    ok(run("group", "delete", "upper", "--dry-run"))
    ok(run("group", "rename", "upper", "lower", "--dry-run"))
    assert as_json(run("group", "show", "upper", "--json"))["devices"] == []


def test_a_dry_run_of_a_note_changes_nothing(run: Any) -> None:
    ok(run("note", "attic", "behind the chimney", "--dry-run"))
    assert as_json(run("note", "attic", "--json"))["note"] == ""


def test_wrong_groups_are_named(run: Any) -> None:
    ok(run("group", "create", "upper", "--device", "attic"))
    refused(run("list", "--group", "uper"), "Did you mean upper?")
    refused(run("list", "--where", "group:uper"), "Did you mean upper?")
    refused(run("group", "show", "uper"), "Did you mean upper?")
    refused(run("group", "create", "upper"), "already")
    refused(run("group", "create", "x", "--where", "online", "--device", "attic"), "not both")
    refused(run("group", "create", "x", "--where", "group:x"), "part of itself")
    refused(run("group", "add", "upper"), "which devices?")
    refused(run("group", "delete", "upper"), "--yes")


# --- list and show ------------------------------------------------------------------------------------------


def test_the_list_is_narrowed_and_sorted(run: Any) -> None:
    assert listed(run) == ["attic", "cellar", "kitchen"]
    assert listed(run, "--online") == ["attic", "kitchen"]
    assert listed(run, "kitchen", "cellar") == ["cellar", "kitchen"]
    assert listed(run, "--where", "model.lamp < 1.2 and board=pi-4b") == ["attic"]
    assert listed(run, "--sort", "seen") == ["kitchen", "cellar", "attic"]
    assert listed(run, "--sort", "board", "--reverse") == ["cellar", "attic", "kitchen"]
    assert run("list", "--where", "name=nobody").stderr == "no such devices\n"


def test_columns_are_chosen_or_added(run: Any) -> None:
    assert ok(run("list", "kitchen", "--columns", "device,runs,meter")).splitlines() == [
        "DEVICE   RUNS        METER",
        "kitchen  lamp@1.2.0  -",
    ]
    heads = ok(run("list", "--columns", "+note,runs")).splitlines()[0].split()
    assert heads == ["DEVICE", "STATE", "BOARD", "SERIAL", "TAGS", "SEEN", "CERTIFICATE", "NOTE", "RUNS"]
    refused(run("list", "--columns", "device,sean"), "Did you mean seen?", "serial")
    refused(run("list", "--sort", "sean"), "Did you mean seen?")


def test_a_wrong_query_is_told_with_its_place(run: Any) -> None:
    refused(run("list", "--where", "online and bord=pi-4b"), "character 12", "Did you mean board?")


def test_showing_a_device_says_what_it_runs_and_ran(run: Any) -> None:
    ok(run("group", "create", "upper", "--device", "kitchen"))
    shown = ok(run("show", "kitchen"))
    assert "groups     upper" in shown
    assert "lamp   1.2.0" in shown
    told = as_json(run("show", "kitchen", "--json"))
    assert (told["groups"], told["runs"][0]["version"]) == (["upper"], "1.2.0")
    assert told["device"]["running"] == {"lamp": "1.2.0"}


# --- looking back -------------------------------------------------------------------------------------------


def test_history_is_one_line_of_time(run: Any) -> None:
    ok(run("note", "kitchen", "hello"))
    kinds = [one["kind"] for one in as_json(run("history", "kitchen", "--json"))]
    assert kinds == ["joined", "issued", "runs", "note"]
    assert [one["kind"] for one in as_json(run("history", "kitchen", "--since", "2h", "--json"))] == ["note"]
    date = f"{NOW - timedelta(days=2):%Y-%m-%d}"
    assert len(as_json(run("history", "kitchen", "--since", date, "--json"))) == 2
    assert "lamp 1.2.0" in ok(run("history", "kitchen"))
    limited = run("history", "kitchen", "--limit", "1")
    assert "3 older entries" in limited.stderr
    assert len(ok(limited).splitlines()) == 2
    for wrong in ("soon", "0h", "0001-01-01", "2026-13-01"):
        assert run("history", "kitchen", "--since", wrong).exit_code in {0, 2}
    assert run("history", "kitchen", "--since", "soon").exit_code == 2
    refused(run("history", "kitchne"), "Did you mean kitchen?")


def test_events_are_of_kinds_times_and_devices(run: Any, root: Path) -> None:
    assert len(as_json(run("events", "--json"))) == 3
    assert [one["subject"] for one in as_json(run("events", "--where", "board=pi-5", "--json"))] == ["cellar"]
    assert as_json(run("events", "--since", "1d", "--json")) == []
    store = FleetDirectory(root).open_store()
    with store.write() as session:
        registry.retire_device(session, "cellar", actor="anna", now=NOW - timedelta(days=2))
    store.close()
    assert [one["kind"] for one in as_json(run("events", "cellar", "--json"))] == ["joined", "retired"]
    misspelt = run("events", "--kind", "joind")
    assert "did you mean joined?" in misspelt.stderr
    assert ok(misspelt) == ""


def test_events_are_followed_until_stopped(root: Path) -> None:
    command = [sys.executable, "-m", "edgeslm", "fleet", "events", "--follow", "--json", "--since", "1h"]
    with subprocess.Popen(
        [*command, "--fleet-dir", str(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            store = FleetDirectory(root).open_store()
            deadline_s = time.monotonic() + WAIT_S
            with store.write() as session:
                registry.note_event(session, "kitchen", "test", "\x1b[31mred", datetime.now(UTC))
            assert process.stdout is not None
            line = json.loads(process.stdout.readline())
            assert (line["kind"], time.monotonic() < deadline_s) == ("test", True)
            with store.write() as session:
                registry.note_event(session, "cellar", "test", "two", datetime.now(UTC))
            assert json.loads(process.stdout.readline())["text"] == "two"
            store.close()
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()
    assert (process.returncode, said) == (0, "")


def test_the_audit_log_is_filtered(run: Any) -> None:
    ok(run("tag", "kitchen", "+north"))
    ok(run("group", "create", "upper", "--device", "attic"))
    assert [one["action"] for one in as_json(run("audit", "--json"))] == ["group-create", "tag"]
    assert [one["subject"] for one in as_json(run("audit", "--action", "group", "--json"))] == ["upper"]
    assert [one["action"] for one in as_json(run("audit", "kitchen", "--json"))] == ["tag"]
    assert as_json(run("audit", "--by", "nobody-here", "--json")) == []
    assert len(as_json(run("audit", "--since", "1h", "--limit", "1", "--json"))) == 1


def test_a_word_is_found_wherever_it_is(run: Any) -> None:
    ok(run("tag", "kitchen", "+cellar-stairs"))
    found = [(one["kind"], one["name"], one["where"]) for one in as_json(run("search", "CELLAR", "--json"))]
    assert found == [("device", "cellar", "name"), ("device", "kitchen", "tag")]
    assert "SN1" in ok(run("search", "sn1"))
    assert run("search", "nothing like that").stderr == "nothing has that in it\n"
    refused(run("search", " "))


def test_devices_are_compared(run: Any) -> None:
    ok(run("tag", "kitchen", "+north"))
    found = {
        one["what"]: (one["one"], one["other"]) for one in as_json(run("diff", "kitchen", "attic", "--json"))
    }
    assert found == {"tag north": ("yes", None), "model lamp": ("1.2.0", "1.0.0")}
    assert run("diff", "kitchen", "kitchen").stderr == "kitchen and kitchen do not differ\n"
    assert run("diff", "kitchen").stderr == "nothing is assigned to kitchen\n"
    assert "board" in ok(run("diff", "kitchen", "attic", "--all"))
    refused(run("diff", "kitchen", "atic"), "Did you mean attic?")


# --- out and in ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_tags_notes_and_groups_go_out_and_come_in(run: Any, tmp_path: Path, suffix: str) -> None:
    file = str(tmp_path / f"out.{suffix}")
    ok(run("tag", "kitchen", "+north"))
    ok(run("note", "kitchen", "=1+1"))
    ok(run("group", "create", "upper", "--device", "attic"))
    ok(run("export", file))
    refused(run("export", file), "--force")
    assert ok(run("import", file)) == "nothing to change\n"
    ok(run("tag", "kitchen", "-north"))
    ok(run("note", "kitchen", "--clear"))
    ok(run("group", "remove", "upper", "attic"))
    planned = run("import", file, "--dry-run")
    assert planned.stderr.splitlines() == [
        "attic: groups nothing > upper",
        "kitchen: tags nothing > north",
        "kitchen: note nothing > =1+1",
        "dry run: nothing was done",
    ]
    assert listed(run, "--where", "tag:north") == []
    refused(run("import", file), "--yes")
    assert ok(run("import", file, "--yes")) == "3 changes made\n"
    assert listed(run, "--where", 'tag:north and note = "=1+1"') == ["kitchen"]
    assert listed(run, "-g", "upper") == ["attic"]


def test_a_file_that_does_not_fit_changes_nothing(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_text("name,tags\nkitchen,north\natic,south\n")
    refused(run("import", str(file), "--yes"), "atic (nearest: attic)", "--skip-unknown")
    assert listed(run, "--where", "tag != none") == []
    told = as_json(run("import", str(file), "--yes", "--skip-unknown", "--json"))
    assert (told["changed"], told["unknown"]) == (True, ["atic"])
    file.write_text("name,colour\nkitchen,red\n")
    refused(run("import", str(file), "--yes"), "colour")
    refused(run("export", str(tmp_path / "no" / "out.json")), "cannot be written", code=1)


def test_an_export_to_stdout_is_the_file_alone(run: Any) -> None:
    assert json.loads(ok(run("export", "-")))["fleet"] == "green"
    assert ok(run("export", "-", "--csv")).startswith("name,tags,")


# --- the tab key --------------------------------------------------------------------------------------------


def completed(root: Path, line: str) -> list[str]:
    words = line.split(" ")
    environment = {
        "_EDGESLM_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "EDGESLM_FLEET_DIR": str(root),
    }
    result = CliRunner(env=environment).invoke(cli, [], prog_name="edgeslm")
    assert result.stderr == ""
    return [said.partition(",")[2] for said in result.stdout.splitlines() if said]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("edgeslm fleet show ki", ["kitchen"]),
        ("edgeslm fleet list a", ["attic"]),
        ("edgeslm fleet list --group ", ["lower", "upper"]),
        ("edgeslm fleet group show u", ["upper"]),
        ("edgeslm fleet group add upper c", ["cellar"]),
        ("edgeslm fleet list --tag n", ["north"]),
        ("edgeslm fleet tag kitchen +", ["+north"]),
        ("edgeslm fleet diff kitchen a", ["attic"]),
        ("edgeslm fleet events --kind ", ["joined"]),
        ("edgeslm fleet list --sort se", ["serial", "seen"]),
        ("edgeslm fleet assign ki", ["kitchen"]),
        ("edgeslm fleet assign kitchen ", []),
        ("edgeslm fleet rename kitchen a", []),
        ("edgeslm fleet hist", ["history"]),
    ],
)
def test_the_shell_completes(run: Any, root: Path, line: str, words: list[str]) -> None:
    ok(run("tag", "attic", "+north"))
    ok(run("group", "create", "upper"))
    ok(run("group", "create", "lower"))
    assert completed(root, line) == words


def test_completing_without_a_fleet_says_nothing(tmp_path: Path) -> None:
    assert completed(tmp_path / "nowhere", "edgeslm fleet show ") == []
    (tmp_path / "fleet.yaml").write_text("name: [")
    assert completed(tmp_path, "edgeslm fleet show ") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_printed(shell: str) -> None:
    said = ok(CliRunner().invoke(cli, ["completion", shell], prog_name="edgeslm"))
    assert "_EDGESLM_COMPLETE" in said
