"""Releases from the command line, with a real repository and real packages."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parents[2]))

from edgeslm.cli.fleet import fleet
from edgeslm.codec import encode
from edgeslm.errors import MetadataMissingError
from edgeslm.fleet.assignments import running_packages, take_reported
from edgeslm.fleet.directory import FleetDirectory
from edgeslm.fleet.store.models import DeviceRow
from edgeslm.models.packing import pack
from edgeslm.schema.update import Reported, ReportedModel
from edgeslm.trust.fetch import HttpFetch

WORDS = "four words of mine"


def run(root: Path, *arguments: str, words: str | None = WORDS) -> Result:
    clean: dict[str, str | None] = {name: None for name in os.environ if name.startswith("EDGESLM_")}
    where = ["--fleet-dir", str(root)]
    return CliRunner(env={**clean, "EDGESLM_PASSPHRASE": words}).invoke(fleet, [*arguments, *where])


def ok(result: Result) -> Any:
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    return json.loads(result.stdout) if result.stdout.startswith(("{", "[")) else result.stdout


def package(
    directory: Path,
    version: str,
    *,
    weights: bytes = b"w" * 200_000,
    rules: str | None = None,
    **changes: Any,
) -> Path:
    """A tiny package of that version."""
    members = directory / f"members-{version}"
    members.mkdir(parents=True)
    graph, tokenizer = members / "graph.tflite", members / "tokenizer.json"
    graph.write_bytes(b"\x1c\x00\x00\x00TFL3" + weights)
    tokenizer.write_bytes(b'{"model": {"type": "BPE"}}')
    proof = {"tokens": [1], "greedy": [2], "logit_ids": [2], "logits": [0.5], "atol": 0.01}
    draft = {
        "format": 1,
        "name": "lamp",
        "version": version,
        "task": "generate",
        "description": "A package for tests",
        "graphs": [{"file": "graph.tflite", "runtimes": ["litert"], "quantization": "int8", "proof": proof}],
        "tokenizer": {"kind": "tokenizers-json", "file": "tokenizer.json"},
        "context_tokens": 64,
        "max_prompt_tokens": 32,
        "max_answer_tokens": 16,
        "requires": {"ram_mb": 1, "agent": "0.1.0"},
        "licenses": [{"spdx": "Apache-2.0", "of": "all"}],
    }
    sources = {"graph.tflite": graph, "tokenizer.json": tokenizer}
    if rules is not None:
        sources["rules.home.yaml"] = members / "rules.home.yaml"
        sources["rules.home.yaml"].write_text(rules)
        draft["rules"] = ["rules.home.yaml"]
    out = directory / f"lamp-{version}.slm"
    pack({**draft, **changes}, sources, out)
    return out


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet with an empty release repository."""
    made = tmp_path_factory.mktemp("template") / "green"
    ok(run(made, "init", "green", "--broker-host", "broker.local"))
    ok(run(made, "release", "init"))
    return made


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(template, tmp_path / "green")


def add(root: Path, file: Path, *more: str) -> Any:
    key = str(root / "keys" / "targets.pem")
    return ok(run(root, "release", "add", str(file), "--key", key, "--yes", "--json", *more))


def released(root: Path) -> list[str]:
    return [
        f"{one['info']['name']}@{one['info']['version']}"
        for one in ok(run(root, "release", "list", "--json"))["releases"]
    ]


def test_making_the_repository_makes_locked_keys_and_is_done_once(tmp_path: Path) -> None:
    made = tmp_path / "green"
    ok(run(made, "init", "green", "--broker-host", "broker.local"))
    assert run(made, "release", "list").exit_code == 1
    assert run(made, "release", "init", words=None).exit_code == 2, "nobody can be asked"
    ok(run(made, "release", "init"))
    keys = {path.name: path.read_bytes() for path in (made / "keys").glob("*.pem")}
    assert {name for name, pem in keys.items() if b"ENCRYPTED" in pem} == {"root.pem", "targets.pem"}
    (made / "keys" / "root.pem").unlink()  # moved offline
    (made / "keys" / "targets.pem").unlink()
    ok(run(made, "release", "init"))
    assert not (made / "keys" / "root.pem").exists(), "no stray key in place of one that is offline"
    roles = {one["role"]: one["threshold"] for one in ok(run(made, "release", "keys", "--json"))}
    assert roles.keys() == {"root", "targets", "snapshot", "timestamp", "assignments-green"}


def test_a_package_whose_rules_no_device_would_take_is_not_released(root: Path, tmp_path: Path) -> None:
    rules = "inputs: {t: {topic: in/t}}\nrules:\n  - {name: a, when: WHEN, then: [{event: e}]}\n"
    bad = package(tmp_path, "1.0.0", rules=rules.replace("WHEN", "t >"))
    refused = run(root, "release", "add", str(bad), "--yes")
    assert refused.exit_code == 2
    assert "lamp/rules.home.yaml, line 3, rules.0.when" in refused.stderr
    assert released(root) == []
    add(root, package(tmp_path, "1.1.0", rules=rules.replace("WHEN", "t > 1")))
    assert released(root) == ["lamp@1.1.0"]


def test_a_package_is_released_with_chunk_map_and_a_delta_that_pays(root: Path, tmp_path: Path) -> None:
    weights = bytearray(os.urandom(200_000))
    first = add(root, package(tmp_path, "1.0.0", weights=bytes(weights)))
    assert first["published"] == {"targets": 2}
    assert (first["pending"], first["deltas"]) == ([], {})
    weights[1000:1100] = os.urandom(100)
    second = add(root, package(tmp_path, "1.1.0", weights=bytes(weights)))
    assert list(second["deltas"]) == [first["sha256"]]
    assert second["deltas"][first["sha256"]] < 0.05 * second["size_bytes"]
    assert second["chunks_bytes"] > 0
    third = add(root, package(tmp_path, "1.2.0", weights=os.urandom(200_000)))
    assert third["deltas"] == {}, "a delta as large as the whole is left out"
    assert released(root) == ["lamp@1.0.0", "lamp@1.1.0", "lamp@1.2.0"]
    assert "from 1.0.0" in ok(run(root, "release", "show", "lamp@1.1.0"))
    public = root / "releases" / "public"
    assert {path.suffix for path in public.glob("targets/packages/*/*/*")} == {".slm", ".chunks", ".delta"}


def test_a_delta_also_leads_from_what_devices_run(root: Path, tmp_path: Path) -> None:
    weights = bytearray(os.urandom(200_000))
    first, second = (
        add(root, package(tmp_path, v, weights=bytes(weights)))["sha256"] for v in ("1.0.0", "1.1.0")
    )
    now = datetime.now(UTC)
    store = FleetDirectory(root).open_store()
    for name, standing in (("kitchen", "active"), ("shed", "retired")):
        model = ReportedModel(name="lamp", version="1.0.0", sha256=first)
        reported = Reported(device=name, epoch="e", seq=1, assignment=0, models=(model,))
        with store.write() as session:
            row = DeviceRow(name=name, standing="active", key_sha256="0" * 64, created_at=now)
            session.add(row)
            session.flush()
            assert take_reported(session, name, encode(reported), now) is not None
            row.standing = standing
    with store.read() as session:
        assert running_packages(session) == [first]
    store.close()
    file = package(tmp_path, "1.2.0", weights=bytes(weights))
    assert set(ok(run(root, "release", "add", str(file), "--dry-run", "--json"))["deltas"]) == {first, second}
    assert ok(run(root, "release", "add", str(file), "--dry-run", "--json", "--no-delta"))["deltas"] == {}
    assert set(add(root, file)["deltas"]) == {first, second}


def test_serving_runs_until_it_is_told_to_end(root: Path, tmp_path: Path) -> None:
    info = add(root, package(tmp_path, "1.0.0"))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EDGESLM_")}
    command = ["fleet", "release", "serve", "--host", "127.0.0.1", "--port", "0", "--fleet-dir", str(root)]
    with subprocess.Popen(
        [sys.executable, "-c", "from edgeslm.cli.main import main; main()", *command],
        stderr=subprocess.PIPE, text=True, env=clean,
    ) as process:  # fmt: skip
        try:
            assert process.stderr is not None
            url = next(line.split()[-1] for line in process.stderr if "http://" in line)
            public = root / "releases" / "public"
            for path in ("metadata/timestamp.json", "metadata/1.root.json"):
                assert HttpFetch(url)(path, 100_000) == (public / path).read_bytes()
            package_bytes = HttpFetch(url)(f"blocks/{info['sha256']}", 10**6)
            assert hashlib.sha256(package_bytes).hexdigest() == info["sha256"]
            for hidden in ("pending/targets.json", "blocks/" + "0" * 64, "targets/packages"):
                with pytest.raises(MetadataMissingError):
                    HttpFetch(url)(hidden, 100)
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_dry_run_tells_the_sizes_and_leaves_everything_as_it_was(root: Path, tmp_path: Path) -> None:
    add(root, package(tmp_path, "1.0.0"))
    before = {path: path.read_bytes() for path in (root / "releases").rglob("*") if path.is_file()}
    file = package(tmp_path, "1.1.0")
    told = ok(run(root, "release", "add", str(file), "--dry-run", "--json"))
    assert told["size_bytes"] == file.stat().st_size
    assert len(told["deltas"]) == 1
    assert {path: path.read_bytes() for path in (root / "releases").rglob("*") if path.is_file()} == before
    assert add(root, file)["deltas"] == told["deltas"], "what was told is what is done"


def test_without_a_key_a_release_waits_and_is_shown_before_it_is_signed(root: Path, tmp_path: Path) -> None:
    file, key = package(tmp_path, "1.0.0"), str(root / "keys" / "targets.pem")
    told = ok(run(root, "release", "add", str(file), "--json"))
    assert told["published"] == {}
    assert [(one["role"], one["missing"]) for one in told["pending"]] == [("targets", 1)]
    assert released(root) == []
    again = run(root, "release", "add", str(file), "--key", key)
    assert (again.exit_code, "pending, and not signed" in again.stderr) == (2, True), "nobody could be asked"
    assert "needs 1 more signature" in ok(run(root, "release", "list"))
    assert "nothing is signed enough" in run(root, "release", "publish").stderr
    assert released(root) == []
    unasked = run(root, "release", "sign", "--key", key)
    assert unasked.exit_code == 2, "nobody could be asked"
    assert "+ packages/lamp/1.0.0" in unasked.stderr
    assert told["sha256"] in unasked.stderr, "what is signed is shown whole"
    assert run(root, "release", "sign", "--key", key, "--yes", words="other words of mine").exit_code == 2
    snapshot = str(root / "keys" / "snapshot.pem")
    assert run(root, "release", "sign", "--key", snapshot, "--yes").exit_code == 2, "not its business"
    ok(run(root, "release", "sign", "--key", key, "--yes"))
    assert released(root) == []
    assert ok(run(root, "release", "publish", "--json"))["published"] == {"targets": 2}
    assert released(root) == ["lamp@1.0.0"]


def test_a_damaged_package_and_other_bytes_under_a_known_name_are_refused(root: Path, tmp_path: Path) -> None:
    file = package(tmp_path, "1.0.0")
    add(root, file)
    spoiled = tmp_path / "spoiled.slm"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    spoiled.write_bytes(data)
    other = package(tmp_path / "other", "1.0.0", weights=b"x" * 1000)
    for wrong in (spoiled, other):
        result = run(root, "release", "add", str(wrong), "--yes")
        assert result.exit_code != 0
        assert result.stderr.startswith("edgeslm: ")
        assert not isinstance(result.exception, AssertionError)
    assert released(root) == ["lamp@1.0.0"]
    assert ok(run(root, "release", "list", "--json"))["pending"] == []


def test_a_release_is_withdrawn_and_who_did_what_is_kept(root: Path, tmp_path: Path) -> None:
    key = str(root / "keys" / "targets.pem")
    add(root, package(tmp_path, "1.0.0"))
    assert run(root, "release", "show", "lamp@2.0.0").exit_code == 2
    assert run(root, "release", "show", "lamp").exit_code == 2
    run(root, "release", "withdraw", "lamp@1.0.0", "--dry-run")
    assert released(root) == ["lamp@1.0.0"]
    ok(run(root, "release", "withdraw", "lamp@1.0.0", "--key", key, "--yes"))
    assert released(root) == []
    actions = [one["action"] for one in ok(run(root, "audit", "--json"))]
    assert actions == [
        "release publish",
        "release withdraw",
        "release publish",
        "release add",
        "release init",
    ]


def test_refreshing_signs_the_timestamp_anew_and_nothing_that_is_offline(root: Path) -> None:
    before = {one["role"]: one for one in ok(run(root, "release", "keys", "--json"))}
    after = {one["role"]: one for one in ok(run(root, "release", "refresh", "--json"))}
    assert after["timestamp"]["version"] == before["timestamp"]["version"] + 1
    assert after["targets"] == before["targets"]
