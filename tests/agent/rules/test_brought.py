"""Rules that packages bring: beside the device's own, checked, put in use and taken away again."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgeslm.agent.rules import runner as runner_module
from edgeslm.agent.rules.brought import BroughtFile, BroughtRules
from edgeslm.agent.rules.late import LateRules
from edgeslm.agent.rules.loading import compile_rules
from edgeslm.agent.rules.runner import RuleRunner
from edgeslm.errors import JournalError, RuleFileError, UpdateError
from edgeslm.link.port import Message
from edgeslm.models.package import read_manifest
from edgeslm.schema.installed import InstalledPackage
from edgeslm.schema.package import Manifest

BUILT_IN = read_manifest(Path(__file__).parents[3] / "edgeslm" / "_packages" / "home-command.slm")


def rule(name: str, out: str = "out/fan", when: str = "t > 20", topic: str = "in/t") -> str:
    return (
        f"allow: [{out}]\ninputs: {{t: {{topic: {topic}}}}}\nrules:\n"
        f"  - {{name: {name}, when: {when}, then: [{{publish: {{topic: {out}, payload: '{name}'}}}}]}}\n"
    )


def package(directory: Path, name: str, version: str, *texts: str) -> InstalledPackage:
    """As it lies in the store, as far as rules go."""
    directory = directory / f"{name}-{version}"
    directory.mkdir(parents=True)
    files = tuple(f"rules.{number}.yaml" for number in range(len(texts)))
    for file, text in zip(files, texts, strict=True):
        (directory / file).write_text(text)
    manifest = Manifest.model_construct(
        **{**dict(BUILT_IN), "name": name, "version": version, "rules": files}
    )
    return InstalledPackage(directory, manifest, f"sha-{name}-{version}")


def brought(name: str, text: str, origin: str = "m@1.0.0") -> BroughtFile:
    return BroughtFile(name, text.encode(), origin)


# --- together with the device's own -----------------------------------------------------------------------------


def test_rules_of_packages_run_beside_the_devices_own_and_each_tells_its_origin() -> None:
    rules = compile_rules([("own.yaml", rule("mine").encode())], [brought("m/a.yaml", rule("theirs"))])
    assert {name: item.origin for name, item in rules.rules.items()} == {"mine": None, "theirs": "m@1.0.0"}
    assert rules.files == ("own.yaml", "m/a.yaml")


def test_a_rule_of_the_device_takes_the_place_of_one_of_that_name_and_that_is_told() -> None:
    own = ("own.yaml", rule("warm", out="out/mine").encode())
    rules = compile_rules(
        [own], [brought("m/a.yaml", rule("warm")), brought("n/a.yaml", rule("warm"), "n@2.0.0")]
    )
    assert rules.rules["warm"].file == "own.yaml"
    assert [(item.origin, item.name, item.by) for item in rules.overridden] == [
        ("m@1.0.0", "warm", "own.yaml"),
        ("n@2.0.0", "warm", "own.yaml"),
    ]
    assert [name for name, _ in rules.filters()] == ["in/t"]


def test_a_file_of_which_no_rule_is_in_use_listens_to_nothing() -> None:
    own = ("own.yaml", rule("warm").encode())
    rules = compile_rules([own], [brought("m/a.yaml", rule("warm", topic="elsewhere/t"))])
    assert [name for name, _ in rules.filters()] == ["in/t"]


def test_one_package_cannot_have_a_rule_twice_nor_can_the_device() -> None:
    twice = [brought("m/a.yaml", rule("warm")), brought("m/b.yaml", rule("warm"))]
    with pytest.raises(
        RuleFileError, match=r"m/b.yaml, line 4, rules.0.name: there is a rule 'warm' already"
    ):
        compile_rules([], twice)
    own = [("a.yaml", rule("warm").encode()), ("b.yaml", rule("warm").encode())]
    with pytest.raises(RuleFileError, match="already"):
        compile_rules(own, twice[:1])


def test_the_fingerprint_tells_versions_apart() -> None:
    one, two = (compile_rules([], [brought("m/a.yaml", rule("warm"), f"m@{n}.0.0")]) for n in (1, 2))
    assert one.fingerprint != two.fingerprint


def test_a_circle_across_device_and_package_is_found() -> None:
    own = ("own.yaml", rule("there", out="b/x", topic="a/x").encode())
    with pytest.raises(RuleFileError, match="without end"):
        compile_rules([own], [brought("m/a.yaml", rule("back", out="a/x", topic="b/x"))])


# --- before a trial ----------------------------------------------------------------------------------------------


def test_good_rules_are_let_through(tmp_path: Path) -> None:
    BroughtRules().check(package(tmp_path, "m", "1.0.0", rule("warm")))
    BroughtRules().check(package(tmp_path, "m", "1.0.1"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (rule("warm", when="t >"), r"m/rules.0.yaml, line 4, rules.0.when"),
        (rule("warm", when="tt > 2"), r"line 4, rules.0.when: .*tt"),
        (rule("warm", out="edgeslm/v1/x"), r"line 1, allow.0"),
        (rule("warm", topic="'#'"), r"line 2, inputs.t.topic"),
        ("rules: [{name: a, on: [], then: [{call: {rule: other}}]}]", r"rules.0.then.0.call.rule"),
        (rule("warm", when="__import__('os')"), r"rules.0.when"),
        (rule("a", out="b/x", topic="b/+"), "without end"),
    ],
    ids=["expression", "name", "allow", "input", "rule of others", "code", "circle"],
)
def test_rules_that_would_do_nowhere_are_refused_with_file_line_and_key(
    tmp_path: Path, text: str, told: str
) -> None:
    with pytest.raises(UpdateError, match=told) as raised:
        BroughtRules().check(package(tmp_path, "m", "2.0.0", text))
    assert raised.value.cause == "bad_package"
    assert "the rules of m@2.0.0" in raised.value.message


def test_rules_that_make_a_circle_with_the_devices_own_are_incompatible(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(rule("there", out="b/x", topic="a/x"))
    with pytest.raises(UpdateError, match="beside the other rules of this device") as raised:
        BroughtRules([own]).check(package(tmp_path, "m", "1.0.0", rule("back", out="a/x", topic="b/x")))
    assert raised.value.cause == "incompatible"


def test_rules_are_checked_beside_those_of_other_packages_but_not_of_the_one_that_they_replace(
    tmp_path: Path,
) -> None:
    there, back = rule("there", out="b/x", topic="a/x"), rule("back", out="a/x", topic="b/x")
    rules = BroughtRules()
    rules.use({"m": package(tmp_path, "m", "1.0.0", there)})
    with pytest.raises(UpdateError, match="without end"):
        rules.check(package(tmp_path, "n", "1.0.0", back))
    rules.check(package(tmp_path, "m", "1.1.0", back))


def test_a_fault_of_the_device_keeps_no_package_out(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("rules: 5")
    BroughtRules([own]).check(package(tmp_path, "m", "1.0.0", rule("warm")))


# --- in use ------------------------------------------------------------------------------------------------------


class Host:
    """Whom rules run beside."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.filters: dict[str, int] = {}

    def publish(self, message: Message) -> int:
        self.sent.append(message)
        return 1

    def change_filters(self, added, gone) -> None:
        self.filters.update(dict(added))
        for name in gone:
            self.filters.pop(name, None)

    def ask(self, request, rule, told) -> None: ...

    def take_back(self, request_ids) -> None: ...

    def give_way(self) -> None: ...


def wait(is_met, timeout_s: float = 10.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not is_met():
        assert time.monotonic() < until_s
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "RELOAD_S", 0.05)


def test_rules_come_and_go_with_the_package_that_is_in_force(tmp_path: Path) -> None:
    rules = BroughtRules()
    events: list[str] = []
    made = RuleRunner([], None, lambda kind, detail, figures: events.append(detail), brought=rules)
    host = Host()
    made.start(host)
    try:
        old = package(tmp_path, "m", "1.0.0", rule("warm"))
        new = package(tmp_path, "m", "2.0.0", rule("warm", topic="in/other"), rule("cold", when="t < 5"))
        rules.use({"m": old})
        wait(lambda: host.filters == {"in/t": 0})
        assert [item.origin for item in made.status().rules] == ["m@1.0.0"]
        rules.use({"m": new})
        wait(lambda: set(host.filters) == {"in/t", "in/other"})
        assert {(item.name, item.origin) for item in made.status().rules} == {
            ("warm", "m@2.0.0"),
            ("cold", "m@2.0.0"),
        }
        assert made.on_message(Message("in/other", b"25"))
        wait(lambda: [message.payload for message in host.sent] == [b"warm"])
        rules.use({"m": old})
        wait(lambda: host.filters == {"in/t": 0})
        rules.use({"m": package(tmp_path, "m", "3.0.0")})
        wait(lambda: not host.filters)
        assert made.status().rules == ()
        assert any("some of m@2.0.0" in event for event in events)
    finally:
        made.stop()


def test_a_rule_that_is_the_same_in_the_next_version_keeps_its_counts(tmp_path: Path) -> None:
    rules = BroughtRules()
    rules.use({"m": package(tmp_path, "m", "1.0.0", rule("warm"))})
    made = RuleRunner([], None, lambda kind, detail, figures: None, brought=rules)
    made.start(Host())
    try:
        made.on_message(Message("in/t", b"25"))
        wait(lambda: made.status().rules[0].acted == 1)
        rules.use({"m": package(tmp_path, "m", "1.1.0", rule("warm"))})
        wait(lambda: made.status().rules[0].origin == "m@1.1.0")
        assert (made.status().rules[0].acted, made.status().inputs[0].value) == (1, 25)
    finally:
        made.stop()


def test_a_package_whose_rules_rotted_on_the_card_leaves_the_former_ones(tmp_path: Path) -> None:
    rules = BroughtRules()
    rules.use({"m": package(tmp_path, "m", "1.0.0", rule("warm"))})
    made = RuleRunner([], None, lambda kind, detail, figures: None, brought=rules)
    made.start(Host())
    try:
        rotten = package(tmp_path, "m", "2.0.0", rule("cold"))
        rotten.file("rules.0.yaml").unlink()
        rules.use({"m": rotten})
        wait(lambda: made.status().error is not None)
        assert [item.name for item in made.status().rules] == ["warm"]
    finally:
        made.stop()


def test_what_is_overridden_is_told_in_the_status(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(rule("warm"))
    rules = BroughtRules([own])
    rules.use({"m": package(tmp_path, "m", "1.0.0", rule("warm"))})
    made = RuleRunner(rules.own, None, lambda kind, detail, figures: None, brought=rules)
    assert [item.origin for item in made.status().overridden] == ["m@1.0.0"]
    made.stop()


# --- where there were none ---------------------------------------------------------------------------------------


def test_a_device_without_rules_begins_when_a_package_brings_some(tmp_path: Path) -> None:
    rules, host, made = BroughtRules(), Host(), []

    def make() -> RuleRunner:
        made.append(RuleRunner([], None, lambda kind, detail, figures: None, brought=rules))
        return made[-1]

    late = LateRules(rules, make)
    late.start(host)
    rules.use({"m": package(tmp_path, "m", "1.0.0")})
    assert (made, late.filters(), late.on_message(Message("in/t", b"25"))) == ([], [], False)
    thread = threading.Thread(target=rules.use, args=({"m": package(tmp_path, "m", "1.1.0", rule("warm"))},))
    thread.start()
    thread.join()
    assert host.filters == {"in/t": 0}
    assert late.filters() == [("in/t", 0)]
    assert late.on_message(Message("in/t", b"25"))
    wait(lambda: [message.payload for message in host.sent] == [b"warm"])
    rules.use({"m": package(tmp_path, "m", "1.2.0", rule("warm", topic="in/u"))})
    wait(lambda: host.filters == {"in/u": 0})
    assert len(made) == 1
    late.stop()


def test_what_keeps_late_rules_from_beginning_is_tried_again(tmp_path: Path) -> None:
    rules, host, tries = BroughtRules(), Host(), []

    def make() -> RuleRunner:
        tries.append(1)
        if len(tries) == 1:
            raise JournalError("the disk is full")
        return RuleRunner([], None, lambda kind, detail, figures: None, brought=rules)

    late = LateRules(rules, make)
    late.start(host)
    first = package(tmp_path, "m", "1.0.0", rule("warm"))
    rules.use({"m": first})
    assert not host.filters
    rules.use({"m": replace(first, sha256="other")})
    assert host.filters
    late.stop()
    rules.use({"m": first})
    assert len(tries) == 2


SCRIPT = """
import sys
from edgeslm.agent.rules.brought import BroughtRules
from edgeslm.agent.rules.late import LateRules
rules = BroughtRules()
LateRules(rules, None)
rules.use({})
sys.exit(any(name in sys.modules for name in ("jinja2", "yaml", "jsonschema_rs", "edgeslm.agent.rules.engine")))
"""


def test_the_code_of_rules_is_not_loaded_for_packages_without_any() -> None:
    assert subprocess.run([sys.executable, "-c", SCRIPT], check=False, timeout=60).returncode == 0
