from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from edgeslm.agent.rules.loading import load_rules
from edgeslm.errors import ProfileError, ProfileSecretError
from edgeslm.flash.profiles import (
    MAX_FILE_BYTES,
    SAID,
    WHOLE,
    _merged,
    check_boards,
    difference,
    load_profile,
    profile_names,
    read_secret,
    rule_packs,
    rule_paths,
)
from edgeslm.schema.profile import Profile
from edgeslm.schema.update import GatePolicy
from edgeslm.yaml_lines import Location

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "profile" / "invalid").glob("*.yaml"))
SHIPPED = sorted(profile_names())


def write(directory: Path, name: str, **said: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "title": name, **said}, sort_keys=False), "utf-8")
    return path


@pytest.mark.parametrize("path", GOLDEN, ids=[path.stem for path in GOLDEN])
def test_a_wrong_file_is_told_with_line_key_and_what_was_expected(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    with pytest.raises(ProfileError) as caught:
        load_profile(path.name)
    assert f"{caught.value}\n" == path.with_suffix(".expected_error").read_text("utf-8")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", SHIPPED)
def test_every_profile_that_ships_is_whole(name: str) -> None:
    found = load_profile(name)
    assert found.profile.name == name
    assert found.profile.description
    assert all(path.exists() for path in rule_paths(found.profile))
    assert all(origin.line for origin in found.origins.values())


def test_the_profiles_that_people_ask_for_ship() -> None:
    assert {
        "default",
        "low-power",
        "solar",
        "clinic-kiosk",
        "sensor-gateway",
        "performance",
        "greenhouse",
    } <= set(SHIPPED)


@pytest.mark.parametrize("name", sorted(rule_packs()))
def test_every_rule_that_ships_with_a_profile_is_right(name: str) -> None:
    assert load_rules([rule_packs()[name]]).rules


def test_mappings_are_merged_and_lists_are_replaced(tmp_path: Path) -> None:
    write(
        tmp_path,
        "parent",
        boot={"config": {"gpu_mem": 16, "enable_uart": 1}},
        packages=["a1", "b1"],
        cpu={"governor": "ondemand"},
    )
    write(tmp_path, "child", extends="parent", boot={"config": {"gpu_mem": 32}}, packages=["c1"])
    profile = load_profile(str(tmp_path / "child.yaml")).profile
    assert profile.boot.config == {"gpu_mem": 32, "enable_uart": 1}
    assert profile.packages == ("c1",)
    assert profile.cpu.governor == "ondemand"


def test_a_broker_is_replaced_as_a_whole_so_that_no_password_goes_to_another_host(tmp_path: Path) -> None:
    write(
        tmp_path,
        "parent",
        broker={"host": "broker.lan", "username": "pi", "password": "env:BROKER", "port": 8883},
    )
    write(tmp_path, "child", extends="parent", broker={"host": "elsewhere.example"})
    broker = load_profile(str(tmp_path / "child.yaml")).profile.broker
    assert broker is not None
    assert (broker.host, broker.port, broker.username, broker.password) == (
        "elsewhere.example",
        1883,
        None,
        None,
    )


def test_a_wireless_network_is_replaced_as_a_whole(tmp_path: Path) -> None:
    home = {"ssid": "home", "country": "DE", "password": "env:HOME_WIFI"}
    write(tmp_path, "parent", network={"wifi": home, "metered": True})
    write(tmp_path, "child", extends="parent", network={"wifi": {"ssid": "cafe", "country": "DE"}})
    network = load_profile(str(tmp_path / "child.yaml")).profile.network
    assert network.metered
    assert network.wifi is not None
    assert network.wifi.password is None


def test_a_budget_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write(
        tmp_path,
        "parent",
        budget={"windows": [{"name": "day", "limit": "40 Wh", "over": "1d"}], "cap_frequency": True},
    )
    write(tmp_path, "child", extends="parent", budget={"temperature": {"ceiling": "70 C"}})
    budget = load_profile(str(tmp_path / "child.yaml")).profile.budget
    assert budget.windows == ()
    assert not budget.cap_frequency


def test_null_takes_back_what_the_parent_said(tmp_path: Path) -> None:
    write(tmp_path, "mine", extends="low-power", cpu={"max_share": None, "max_mhz": 900}, hdmi=None)
    profile = load_profile(str(tmp_path / "mine.yaml")).profile
    assert (profile.cpu.max_share, profile.cpu.max_mhz, profile.hdmi) == (None, 900, None)


def test_null_is_a_value_where_the_default_is_another_one(tmp_path: Path) -> None:
    gate = {"speed": None, "memory": 0.2}
    write(tmp_path, "parent", agent={"updates": {"policy": {"gate": gate}}})
    write(tmp_path, "mine", extends="parent", agent={"threads": None})
    found = load_profile(str(tmp_path / "mine.yaml"))
    updates = found.profile.agent.updates
    assert updates is not None
    assert (updates.policy.gate.speed, updates.policy.gate.memory) == (None, 0.2)
    assert updates.policy.gate.energy == GatePolicy().energy
    assert found.profile.agent.given() == {"updates": {"policy": {"gate": gate}}}
    assert found.values()["agent.updates.policy.gate.speed"][1].startswith(str(tmp_path / "parent.yaml"))


def test_it_is_known_wherever_null_is_not_the_default() -> None:
    assert set(_spoken_nulls(Profile, ())) == SAID


def _spoken_nulls(model: type[BaseModel], at: Location) -> Iterator[Location]:
    for name, field in model.model_fields.items():
        if type(None) in get_args(field.annotation) and field.default is not None:
            yield (*at, name)
        for inner in _models(field.annotation):
            yield from _spoken_nulls(inner, (*at, name))


def _models(kind: object) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for part in get_args(kind):
        yield from _models(part)


def test_every_value_is_told_with_the_line_that_said_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "name: mine\ntitle: Mine\nextends: solar\n\nlog:\n  max_mb: 12\nbudget:\n  min_tokens: 4\n", "utf-8"
    )
    found = load_profile(str(tmp_path / "mine.yaml"))
    assert found.ancestors == ("solar", "low-power", "default")
    values = found.values()
    assert values["log.max_mb"] == (12, f"{tmp_path / 'mine.yaml'}:6")
    assert values["log.storage"][1].startswith("solar.yaml:")
    assert values["radio.bluetooth"][1].startswith("low-power.yaml:")
    assert values["watchdog.timeout_s"][1].startswith("default.yaml:")
    assert values["read_only_root"] == (False, "default")
    assert values["budget.min_tokens"] == (4, f"{tmp_path / 'mine.yaml'}:8")
    assert values["budget.windows"] == ([], f"{tmp_path / 'mine.yaml'}:7")


def test_a_value_that_was_taken_back_is_told_as_the_default(tmp_path: Path) -> None:
    write(tmp_path, "mine", extends="solar", swap=None, budget=None, cpu={"cores": None})
    values = load_profile(str(tmp_path / "mine.yaml")).values()
    assert values["cpu.cores"] == (None, "default")
    assert values["budget.cap_frequency"] == (False, "default")


def test_paths_are_meant_from_the_file_that_says_them(tmp_path: Path) -> None:
    write(
        tmp_path / "a",
        "parent",
        rules=["rules"],
        models=["m.slm", "builtin:home-command", "release:x", "/abs/y.slm"],
        network={"wifi": {"ssid": "x", "country": "DE", "password": "file:psk"}},
        broker={"host": "h", "username": "u", "password": "env:SECRET", "ca_file": "ca.pem"},
    )
    write(tmp_path / "b", "child", extends="parent")
    profile = load_profile(str(tmp_path / "b" / "child.yaml"), tmp_path / "a").profile
    base = tmp_path / "a"
    assert profile.rules == (str(base / "rules"),)
    assert profile.models == (str(base / "m.slm"), "builtin:home-command", "release:x", "/abs/y.slm")
    assert profile.network.wifi is not None
    assert profile.network.wifi.password == f"file:{base / 'psk'}"
    assert profile.broker is not None
    assert profile.broker.ca_file == str(base / "ca.pem")
    assert profile.broker.password == "env:SECRET"


def test_a_profile_of_ones_own_goes_before_one_that_ships(tmp_path: Path) -> None:
    write(tmp_path, "low-power", extends="default", hdmi=True)
    write(tmp_path, "mine", extends="low-power")
    assert load_profile("low-power").profile.hdmi is False
    assert load_profile("low-power", tmp_path).profile.hdmi is True
    assert load_profile("mine", tmp_path).profile.hdmi is True
    assert load_profile(str(tmp_path / "mine.yaml")).profile.hdmi is True


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(ProfileError, match=r"there is no profile 'solr'. Did you mean 'solar'\?") as caught:
        load_profile("solr")
    assert caught.value.nearest == "solar"


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ProfileError, match=r"there is no profile file /nowhere/x\.yaml"):
        load_profile("/nowhere/x.yaml")


def test_a_chain_without_end_is_refused(tmp_path: Path) -> None:
    for step in range(12):
        write(tmp_path, f"p{step}", extends=f"p{step + 1}")
    write(tmp_path, "p12")
    with pytest.raises(ProfileError, match="more than 8 profiles one above the other"):
        load_profile(str(tmp_path / "p0.yaml"))


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    path.write_bytes(b"# " + b"x" * MAX_FILE_BYTES)
    with pytest.raises(ProfileError, match="more than 65536 bytes"):
        load_profile(str(path))


@given(st.binary(max_size=400))
def test_no_bytes_are_worse_than_a_named_error(tmp_path_factory: pytest.TempPathFactory, body: bytes) -> None:
    path = tmp_path_factory.mktemp("profile") / "mine.yaml"
    path.write_bytes(body)
    with pytest.raises(ProfileError):
        load_profile(str(path))


_SETTINGS = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.lists(st.integers(), max_size=3)
    ),
    lambda inner: st.dictionaries(st.sampled_from(["a", "b", "budget", "cpu", "network"]), inner, max_size=4),
    max_leaves=12,
)
_FILES = st.dictionaries(st.sampled_from(["a", "b", "budget", "cpu", "network"]), _SETTINGS, max_size=4)


@given(_FILES, _FILES)
def test_what_the_child_says_holds_and_what_it_does_not_say_stays(
    parent: dict[str, Any], child: dict[str, Any]
) -> None:
    base = _merged({}, parent, ())
    whole = _merged(base, child, ())
    for key, value in child.items():
        if value is None:
            assert key not in whole
        elif not isinstance(value, dict):
            assert whole[key] == value
        elif (key,) in WHOLE:
            assert whole[key] == _merged({}, value, (key,))
    for key, value in base.items():
        if key not in child:
            assert whole[key] == value
    assert _merged(whole, {}, ()) == whole


@pytest.mark.parametrize("name", SHIPPED)
def test_a_profile_does_not_differ_from_itself(name: str) -> None:
    profile = load_profile(name).profile
    assert difference(profile, profile) == ()


def test_a_difference_names_key_and_both_values() -> None:
    changes = {
        change.key: (change.before, change.after)
        for change in difference(load_profile("default").profile, load_profile("low-power").profile)
    }
    assert changes["cpu.max_share"] == (None, 0.7)
    assert changes["log.storage"] == ("persistent", "volatile")
    assert not {"name", "title", "extends"} & set(changes)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"boards": ["pi-44b"]}, r"mine\.yaml:3, boards: there is no board 'pi-44b'. Did you mean 'pi-4b'\?"),
        (
            {"needs": {"family": ["rasberry-pi"]}},
            r"mine\.yaml:4, needs\.family: there is no family of boards 'rasberry-pi'. Did you mean 'raspberry-pi'",
        ),
    ],
)
def test_a_board_that_nobody_knows_is_told_with_the_nearest(tmp_path: Path, said: Any, told: str) -> None:
    found = load_profile(str(write(tmp_path, "mine", **said)))
    with pytest.raises(ProfileError, match=told):
        check_boards(found, {"pi-4b": "raspberry-pi", "rock-5b": "rockchip"})


_ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=12)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["wifi", "password", "host", "ca_file", "config", "kind", "windows", "limit", "over"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(sorted(Profile.model_fields)), _ANY, max_size=6))
def test_whatever_stands_at_a_key_is_taken_or_told(
    tmp_path_factory: pytest.TempPathFactory, said: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("profile") / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "title": "Mine", **said}), "utf-8")
    try:
        found = load_profile(str(path))
    except ProfileError:
        return
    assert found.profile.name == "mine"
    assert found.values()


# --- rules and secrets -------------------------------------------------------------------------------------------


def test_rules_that_are_not_there_are_named(tmp_path: Path) -> None:
    write(tmp_path, "mine", rules=["builtin:greenhous"])
    with pytest.raises(ProfileError, match=r"no such rules ship.*greenhouse") as caught:
        rule_paths(load_profile(str(tmp_path / "mine.yaml")).profile)
    assert caught.value.nearest == "greenhouse"
    write(tmp_path, "other", rules=["gone.yaml"])
    with pytest.raises(ProfileError, match=r"gone\.yaml, and there is no such file"):
        rule_paths(load_profile(str(tmp_path / "other.yaml")).profile)


def test_a_secret_comes_from_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLINIC_WIFI", "correct horse")
    assert read_secret("env:CLINIC_WIFI") == "correct horse"
    (tmp_path / "psk").write_text("battery staple\n", "utf-8")
    assert read_secret(f"file:{tmp_path / 'psk'}") == "battery staple"


@pytest.mark.parametrize("body", [b"", b"\n", b"two\nlines\n", b"\xff\xfe", b"nul\0byte", b"x" * 5000])
def test_refuses_a_secret_that_is_no_line_of_text_without_repeating_it(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "psk"
    path.write_bytes(body)
    with pytest.raises(ProfileSecretError) as caught:
        read_secret(f"file:{path}")
    assert "lines" not in str(caught.value)
    assert "xxx" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_missing_secret_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    with pytest.raises(ProfileSecretError, match="NOT_SET, which is not set"):
        read_secret("env:NOT_SET")
    with pytest.raises(ProfileSecretError, match="No such file"):
        read_secret(f"file:{tmp_path / 'gone'}")
