"""Packages that bring rules: packed, read and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeslm.errors import PackageContentError, PackageError, PackageFormatError, PackageSizeError
from edgeslm.models.inspect import summary, verify_package
from edgeslm.models.package import check_package, read_manifest, read_rules, unpack
from edgeslm.models.packing import pack_directory
from edgeslm.models.store import ModelStore
from edgeslm.schema.package import MAX_RULE_FILE_BYTES, MAX_RULE_FILES

RULES = (
    "allow: [out/fan]\ninputs: {t: {topic: in/t}}\nrules:\n"
    "  - {name: warm, when: t > 20, then: [{publish: {topic: out/fan, payload: 'ON'}}]}\n"
)
NAME = "rules.home.yaml"


def build(tmp_path: Path, slm, body: bytes, **changes) -> Path:
    """A package by somebody who checks nothing."""
    members = slm.members(**{NAME.replace(".", "__"): body})
    path = tmp_path / "tiny.slm"
    path.write_bytes(slm.raw(slm.package(members, **{"rules": [NAME], **changes})))
    return path


@pytest.fixture
def source(tmp_path: Path, slm) -> Path:
    directory = tmp_path / "tiny"
    slm.sources(directory)
    (directory / "manifest.json").write_text(json.dumps(slm.draft()))
    return directory


def test_a_directory_of_rules_is_packed_with_the_rest(tmp_path, source):
    (source / "rules").mkdir()
    (source / "rules" / "home.yaml").write_text(RULES)
    (source / "rules" / "away.yml").write_text(RULES.replace("warm", "cold"))
    pack_directory(source, tmp_path / "tiny.slm")
    manifest, bodies = read_rules(tmp_path / "tiny.slm")
    assert manifest.rules == ("rules.away.yml", NAME)
    assert bodies[NAME] == RULES.encode()
    roles = {item.name: item.role for item in verify_package(tmp_path / "tiny.slm").members}
    assert roles[NAME] == "rules"
    assert summary(tmp_path / "tiny.slm").rules == manifest.rules
    installed = ModelStore(tmp_path / "store").install(tmp_path / "tiny.slm")
    assert installed.file(NAME).read_text() == RULES


def test_rules_may_come_from_elsewhere(tmp_path, source):
    (source / "rules").mkdir()
    (source / "rules" / "other.yaml").write_text("no rules")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "home.yaml").write_text(RULES)
    pack_directory(source, tmp_path / "tiny.slm", tmp_path / "mine")
    assert read_manifest(tmp_path / "tiny.slm").rules == (NAME,)


def test_a_package_without_rules_has_the_bytes_that_it_always_had(tmp_path, slm, source):
    assert pack_directory(source, tmp_path / "tiny.slm") == slm.pack(tmp_path / "parts.slm")
    assert b'"rules"' not in (tmp_path / "tiny.slm").read_bytes()


@pytest.mark.parametrize("name", ["notes.txt", "deep"])
def test_a_directory_of_rules_holds_nothing_else(tmp_path, source, name):
    (source / "rules").mkdir()
    (source / "rules" / name).mkdir()
    with pytest.raises(PackageContentError, match=name):
        pack_directory(source, tmp_path / "tiny.slm")


def test_rules_are_stated_once(tmp_path, slm, source):
    (source / "rules").mkdir()
    (source / "rules" / "home.yaml").write_text(RULES)
    (source / "manifest.json").write_text(json.dumps(slm.draft(rules=["LICENSE.txt"])))
    with pytest.raises(PackageFormatError, match="the draft states 'rules'"):
        pack_directory(source, tmp_path / "tiny.slm")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "empty"),
        (b"\xff", "not UTF-8"),
        (b"rules: [", "line 1"),
        (RULES.replace("when", "wehn").encode(), "line 4, rules.0.wehn: unknown key"),
        (RULES.replace("topic: in/t", "topic: in/#/t").encode(), "line 2, inputs.t.topic"),
        (b"a: &a [1, 2]\nrules: [*a, *a]", "line"),
        (b"rules: []", "rules"),
        (b"rules:\n" + b"- [" * 2000, "rules.home.yaml"),
    ],
    ids=["empty", "not text", "not yaml", "key", "value", "alias", "none", "deep"],
)
def test_a_hostile_file_of_rules_is_refused_with_file_line_and_key(tmp_path, slm, body, told):
    path = build(tmp_path, slm, body)
    with pytest.raises(PackageContentError, match=told) as raised:
        check_package(path)
    assert raised.value.member == NAME
    assert f"tiny.slm: {NAME}" in raised.value.message
    with pytest.raises(PackageContentError):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_of_rules_is_bounded(tmp_path, slm):
    with pytest.raises(PackageSizeError, match=NAME):
        check_package(build(tmp_path, slm, b"#" * (MAX_RULE_FILE_BYTES + 1)))


@pytest.mark.parametrize(
    "named",
    [["missing.yaml"], [NAME, NAME], ["../x.yaml"], [NAME] * (MAX_RULE_FILES + 1), NAME],
    ids=["missing", "twice", "elsewhere", "many", "no list"],
)
def test_what_the_manifest_says_of_rules_has_to_be_so(tmp_path, slm, named):
    with pytest.raises(PackageError):
        check_package(build(tmp_path, slm, RULES.encode(), rules=named))
