"""Keys, thresholds, teams, floors and superfluous files of a release repository, from the command line."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parents[2]))

from edgeslm.cli.fleet import fleet
from edgeslm.fleet.release_setup import assignment_signer, online_signers
from edgeslm.models.packing import pack
from edgeslm.trust.fetch import DirectoryFetch
from edgeslm.trust.releases import TrustedReleases, enrol
from edgeslm.trust.storage import TrustStorage

WORDS = "four words of mine"


def run(root: Path | None, *arguments: str) -> Result:
    clean: dict[str, str | None] = {name: None for name in os.environ if name.startswith("EDGESLM_")}
    where = ["--fleet-dir", str(root)] if root is not None else []
    return CliRunner(env={**clean, "EDGESLM_PASSPHRASE": WORDS}).invoke(fleet, [*arguments, *where])


def ok(result: Result) -> Any:
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    return json.loads(result.stdout) if result.stdout.startswith(("{", "[")) else result.stdout


def package(directory: Path, version: str, name: str = "lamp") -> Path:
    members = directory / f"members-{name}-{version}"
    members.mkdir(parents=True)
    graph, tokenizer = members / "graph.tflite", members / "tokenizer.json"
    graph.write_bytes(b"\x1c\x00\x00\x00TFL3" + f"{name} {version}".encode() * 99)
    tokenizer.write_bytes(b'{"model": {"type": "BPE"}}')
    proof = {"tokens": [1], "greedy": [2], "logit_ids": [2], "logits": [0.5], "atol": 0.01}
    out = directory / f"{name}-{version}.slm"
    draft = {
        "format": 1,
        "name": name,
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
    pack(draft, {"graph.tflite": graph, "tokenizer.json": tokenizer}, out)
    return out


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet with two releases of ``lamp``."""
    where = tmp_path_factory.mktemp("template")
    made = where / "green"
    ok(run(made, "init", "green", "--broker-host", "broker.local"))
    ok(run(made, "release", "init"))
    for version in ("1.0.0", "1.1.0"):
        ok(run(made, "release", "add", str(package(where, version)), *signing(made, "targets")))
    return made


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(template, tmp_path / "green")


@pytest.fixture
def device(root: Path, tmp_path: Path) -> TrustedReleases:
    """A device that trusts the repository from its first root on."""
    public = root / "releases" / "public"
    storage = TrustStorage(tmp_path / "device")
    enrol(storage, (public / "metadata" / "1.root.json").read_bytes())
    return TrustedReleases(storage, DirectoryFetch(public))


def signing(root: Path, *roles: str) -> list[str]:
    keys = [str(root / "keys" / f"{role}.pem") if "/" not in role else role for role in roles]
    return [*(word for key in keys for word in ("--key", key)), "--yes", "--json"]


def keys_of(root: Path, role: str) -> dict[str, Any]:
    return next(one for one in ok(run(root, "release", "keys", "--json")) if one["role"] == role)


def state(root: Path) -> dict[str, bytes]:
    """Every file of repository and keys; the locks aside."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for part in ("releases", "keys")
        for path in (root / part).rglob("*")
        if path.is_file() and path.name != ".lock"
    }


# --- rotation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["timestamp", "snapshot"])
def test_a_key_of_this_machine_is_replaced_and_the_old_one_is_put_aside(
    root: Path, role: str, device: TrustedReleases
) -> None:
    old = keys_of(root, role)["keys"]
    done = ok(run(root, "release", "rotate", role, "--new", *signing(root, "root")))
    assert done["published"] == {"root": 2}
    (new,) = keys_of(root, role)["keys"]
    assert [new] != old
    assert not (root / "keys" / f"{role}.pem").exists()
    assert (root / "keys" / "retired" / f"{role}.pem").exists()
    assert new in {signer.public_key.keyid for signer in online_signers(root / "keys")}
    ok(run(root, "release", "refresh"))
    assert device.refresh().root == 2
    # Once more: the number goes on, and no retired key comes back under another name.
    ok(run(root, "release", "rotate", role, "--new", *signing(root, "root")))
    assert (root / "keys" / f"{role}-3.pem").exists()
    assert device.refresh().root == 3


def test_until_a_rotation_is_signed_the_old_key_goes_on_and_the_new_one_stays(
    root: Path, tmp_path: Path, device: TrustedReleases
) -> None:
    waiting = ok(run(root, "release", "rotate", "timestamp", "--new", "--json"))
    assert waiting["published"] == {}
    assert waiting["pending"][0]["missing"] == 1
    ok(run(root, "release", "refresh"))
    third = package(tmp_path, "1.2.0")
    ok(run(root, "release", "add", str(third), *signing(root, "targets")))
    assert {path.name for path in (root / "keys").glob("timestamp*.pem")} == {
        "timestamp.pem",
        "timestamp-2.pem",
    }
    ok(run(root, "release", "sign", *signing(root, "root")))
    ok(run(root, "release", "publish", "--json"))
    assert {path.name for path in (root / "keys").glob("timestamp*.pem")} == {"timestamp-2.pem"}
    device.refresh()
    assert device.find("lamp", "1.2.0")


def test_the_key_of_assignments_is_replaced_when_that_is_published(root: Path) -> None:
    keys = root / "keys"
    old = assignment_signer(keys).public_key.keyid
    ok(run(root, "release", "rotate", "assignments-green", "--new", "--json"))
    assert assignment_signer(keys).public_key.keyid == old
    ok(run(root, "release", "sign", *signing(root, "targets")))
    ok(run(root, "release", "publish", "--json"))
    assert [assignment_signer(keys).public_key.keyid] == keys_of(root, "assignments-green")["keys"] != [old]


def test_two_of_two_sign_the_targets_on_two_machines(root: Path, tmp_path: Path) -> None:
    anna = tmp_path / "anna" / "targets.pem"
    made = ok(run(None, "release", "new-key", str(anna), "--json"))
    public = str(anna.with_suffix(".pub"))
    rotate = ["release", "rotate", "targets", "--add", public, "--threshold", "2"]
    ok(run(root, *rotate, *signing(root, "root", "targets")))
    carried = str(shutil.copy(root / "releases" / "pending" / "targets.json", tmp_path))
    ok(run(None, "release", "sign-file", carried, "--key", str(anna)))
    collected = ok(run(root, "release", "collect", "targets", carried, "--json"))["pending"]
    (one,) = [item for item in collected if item["role"] == "targets"]
    assert one["missing"] == 0
    assert made["key"] in one["signed_by"]
    ok(run(root, "release", "publish", "--json"))
    assert keys_of(root, "targets")["threshold"] == 2
    alone = ok(run(root, "release", "withdraw", "lamp@1.0.0", *signing(root, "targets")))
    assert (alone["published"], alone["pending"][0]["missing"]) == ({}, 1)
    both = ok(run(root, "release", "sign", *signing(root, str(anna))))
    assert both["pending"][0]["missing"] == 0


def test_a_stolen_root_key_is_revoked_by_it_and_its_heir(root: Path, tmp_path: Path, device: Any) -> None:
    heir = tmp_path / "root-2.pem"
    ok(run(None, "release", "new-key", str(heir)))
    (old,) = keys_of(root, "root")["keys"]
    change = ["release", "rotate", "root", "--add", str(heir.with_suffix(".pub")), "--remove", old[:10]]
    ok(run(root, *change, *signing(root, "root", str(heir))))
    assert old not in keys_of(root, "root")["keys"]
    assert device.refresh().root == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["targets"], "nothing would change"),
        (["targets", "--new"], "not on this machine"),
        (["targets", "--threshold", "2"], "2 of 1 keys"),
        (["targets", "--remove", "ffffffff"], "names 0 of the role's keys"),
        (["nobody", "--threshold", "1"], "no role nobody"),
        (["assignments-blue", "--new"], "not on this machine"),
        (["targets", "--add", "KEYS/root.pem"], "no public key"),
    ],
)
def test_a_rotation_that_cannot_be_changes_nothing(root: Path, arguments: list[str], said: str) -> None:
    before = state(root)
    given = [word.replace("KEYS", str(root / "keys")) for word in arguments]
    for more in ([], ["--dry-run"]):
        failed = run(root, "release", "rotate", *given, *more)
        assert failed.exit_code in {1, 2}, failed.stderr
        assert said in failed.stderr
    assert state(root) == before


# --- teams --------------------------------------------------------------------------------------------------


def test_a_team_signs_its_own_names_alone_until_they_are_taken_from_it(
    root: Path, tmp_path: Path, device: TrustedReleases
) -> None:
    growers = tmp_path / "growers.pem"
    ok(run(None, "release", "new-key", str(growers)))
    delegate = ["release", "delegate", "growers", "greenhouse-*", "--add", str(growers.with_suffix(".pub"))]
    ok(run(root, *delegate, *signing(root, "targets", str(growers))))
    assert keys_of(root, "growers")["signs"] == ["packages/greenhouse-*/*/*"]
    advisor = str(package(tmp_path, "1.0.0", "greenhouse-advisor"))
    assert "growers" in ok(run(root, "release", "add", advisor, *signing(root, str(growers))))["published"]
    device.refresh()
    assert device.find("greenhouse-advisor", "1.0.0").role == "growers"
    clash = run(root, "release", "delegate", "others", "greenhouse-x", *delegate[4:])
    assert clash.exit_code == 1
    ok(run(root, "release", "undelegate", "growers", *signing(root, "targets")))
    names = [one["info"]["name"] for one in ok(run(root, "release", "list", "--json"))["releases"]]
    assert "greenhouse-advisor" not in names


def test_a_team_without_keys_is_refused(root: Path) -> None:
    assert run(root, "release", "delegate", "growers", "greenhouse-*").exit_code == 2


# --- dry runs, floors, files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "change"),
    [
        (["rotate", "timestamp", "--new"], "+ timestamp: 1 of"),
        (["delegate", "growers", "greenhouse-*", "--add", "KEYS/root.pub"], "+ growers may sign"),
        (["undelegate", "assignments-green"], "- assignments-green may sign"),
        (["floor", "lamp", "1.1.0"], "+ security floor of lamp: 1.1.0"),
        (["withdraw", "lamp@1.0.0"], "- packages/lamp/1.0.0"),
        (["renew", "targets"], ""),
    ],
)
def test_a_dry_run_says_what_would_be_signed_and_changes_nothing(
    root: Path, command: list[str], change: str
) -> None:
    given = [word.replace("KEYS", str(root / "keys")) for word in command]
    before = state(root)
    done = run(root, "release", *given, "--dry-run", "--json")
    (told,) = [one for one in ok(done)["pending"] if one["role"] in {"root", "targets"}]
    assert any(line.startswith(change) for line in [*told["changes"], ""])
    assert "dry run: nothing was done" in done.stderr
    assert state(root) == before


def test_a_floor_is_raised_and_holds(root: Path, device: TrustedReleases) -> None:
    ok(run(root, "release", "floor", "lamp", "1.1.0", *signing(root, "targets")))
    device.refresh()
    assert device.find("lamp", "1.1.0").floor == "1.1.0"
    assert run(root, "release", "floor", "lamp", "new").exit_code == 1


def test_files_of_a_withdrawn_release_are_listed_with_their_bytes_and_then_removed(root: Path) -> None:
    ok(run(root, "release", "withdraw", "lamp@1.0.0", *signing(root, "targets")))
    before = state(root)
    told = ok(run(root, "release", "prune", "--dry-run", "--json"))
    assert state(root) == before
    public = root / "releases" / "public"
    sizes = {file["path"]: file["size_bytes"] for file in told["files"]}
    assert any(path.startswith("targets/packages/lamp/1.0.0/") for path in sizes)
    assert sizes == {path: (public / path).stat().st_size for path in sizes}
    assert told["size_bytes"] == sum(sizes.values())
    assert run(root, "release", "prune").exit_code == 2, "nobody can be asked"
    assert ok(run(root, "release", "prune", "--yes", "--json"))["files"] == told["files"]
    assert not (public / "targets" / "packages" / "lamp" / "1.0.0").exists()
    again = run(root, "release", "prune", "--yes")
    assert (again.exit_code, again.stdout) == (0, "")


def test_what_is_pending_is_given_up(root: Path) -> None:
    ok(run(root, "release", "floor", "lamp", "1.1.0", "--json"))
    assert run(root, "release", "discard", "root", "--yes").exit_code == 2
    assert ok(run(root, "release", "discard", "targets", "--yes", "--json"))["pending"] == []


def test_who_changed_what_is_kept(root: Path) -> None:
    ok(run(root, "release", "rotate", "timestamp", "--new", *signing(root, "root")))
    log = ok(run(root, "audit", "--json"))
    assert "release rotate" in {one["action"] for one in log}
