from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from edgeslm.errors import FirstBootOptionError
from edgeslm.schema.customisation import Customisation

MakeImage = Callable[..., Any]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBcWDzeXLwBzt94Wnnk2wArfcvyp9G6XVpwaaWrJRaKK o'p\"s: {} # $(id) &x *y"
HASH = "$6$abcdefgh$" + "x" * 86
PSK = "0123456789abcdef" * 4
EVERYTHING: dict[str, Any] = {
    "hostname": "on",
    "account": {"name": "yes", "password_hash": HASH},
    "ssh_keys": [KEY],
    "wifi": {"ssid": "null: [*x]\u2603 'q' \"d\"", "psk": PSK, "country": "NO", "hidden": True},
    "wired": {"address": "192.168.7.20/24", "gateway": "192.168.7.1", "dns": ["192.168.7.1"]},
    "locale": "de_DE.UTF-8",
    "keyboard": "de",
    "timezone": "Europe/Berlin",
}


def seed(files: Any, place: str) -> dict[str, Any]:
    entries = {entry.path: entry for entry in (*files.boot, *files.root)}
    found = {}
    for name in ("user-data", "meta-data", "network-config"):
        entry = entries.get(f"{place}/{name}".replace("//", "/"))
        if entry is not None:
            found[name] = yaml.safe_load(entry.content)
    return found


def test_the_seed_says_what_was_asked_whatever_it_is_called(make_image: MakeImage) -> None:
    files = make_image("raspios-trixie").method.files(Customisation.model_validate(EVERYTHING))
    found = seed(files, "/")
    user = found["user-data"]
    assert user["hostname"] == "on"
    assert user["user"]["name"] == "yes"
    assert user["user"]["passwd"] == HASH
    assert user["user"]["ssh_authorized_keys"] == [KEY]
    assert user["ssh_pwauth"] is False
    assert user["user"]["sudo"] is None
    assert (user["locale"], user["timezone"]) == ("de_DE.UTF-8", "Europe/Berlin")
    assert list(found["network-config"]["network"]["wifis"]["wlan0"]["access-points"]) == [
        EVERYTHING["wifi"]["ssid"]
    ]
    assert found["meta-data"]["instance-id"].startswith("edgeslm-")
    assert next(iter(files.boot)).content.startswith(b"#cloud-config\n")


def test_the_last_command_syncs_and_nothing_is_installed(make_image: MakeImage) -> None:
    user = seed(make_image("raspios-trixie").method.files(Customisation.model_validate(EVERYTHING)), "/")
    assert user["user-data"]["runcmd"][-1] == ["sync"]
    assert ["systemctl", "enable", "--now", "ssh.service"] in user["user-data"]["runcmd"]
    assert not {"packages", "package_update", "package_upgrade", "ntp"} & set(user["user-data"])


def test_the_instance_on_the_kernels_line_is_that_of_the_seed(make_image: MakeImage) -> None:
    files = make_image("raspios-trixie").method.files(Customisation(hostname="sensor-07"))
    instance = seed(files, "/")["meta-data"]["instance-id"]
    assert f"ds=nocloud;i={instance}" in files.cmdline


def test_other_wishes_are_another_instance(make_image: MakeImage) -> None:
    method = make_image("raspios-trixie").method
    first, second = (
        seed(method.files(Customisation(hostname=name)), "/")["meta-data"]["instance-id"]
        for name in ("sensor-07", "sensor-08")
    )
    assert first != second


def test_without_wishes_for_the_network_the_image_keeps_its_own(make_image: MakeImage) -> None:
    assert "network-config" not in seed(
        make_image("raspios-trixie").method.files(Customisation(hostname="a")), "/"
    )


def test_a_wireless_board_keeps_its_wire(make_image: MakeImage) -> None:
    files = make_image("ubuntu-pi").method.files(
        Customisation.model_validate({"wifi": {"ssid": "home", "psk": PSK, "country": "DE"}})
    )
    assert seed(files, "/")["network-config"]["network"]["ethernets"] == {
        "eth0": {"optional": True, "dhcp4": True}
    }


def test_an_image_without_a_place_on_its_boot_partition_is_seeded_in_its_root(make_image: MakeImage) -> None:
    files = make_image("debian-cloud").method.files(Customisation.model_validate(EVERYTHING))
    assert not files.boot
    assert not files.cmdline
    place = "/var/lib/cloud/seed/nocloud"
    assert set(seed(files, place)) == {"user-data", "meta-data", "network-config"}
    entries = {entry.path: entry for entry in files.root}
    assert entries[f"{place}/user-data"].mode == 0o600
    only = yaml.safe_load(entries["/etc/cloud/cloud.cfg.d/99_zz_edgeslm.cfg"].content)
    assert only == {"datasource_list": ["NoCloud", "None"]}


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("file:///boot/firmware", "/"),
        ("file:///boot/firmware/", "/"),
        ("/boot/firmware/jaiabot/init/", "/jaiabot/init"),
    ],
)
def test_the_seed_goes_where_the_image_looks_for_it(make_image: MakeImage, source: str, place: str) -> None:
    image = make_image(
        "raspios-trixie",
        extra={
            "etc/cloud/cloud.cfg.d/99_zzz.cfg": f"datasource: {{NoCloud: {{seedfrom: '{source}'}}}}\n",
            "etc/cloud/cloud.cfg.d/broken.cfg": "a: [\n",
            "etc/cloud/cloud.cfg.d/zzzz.cfg": "- a list\n",
        },
    )
    assert "user-data" in seed(image.method.files(Customisation(hostname="a")), place)


@pytest.mark.parametrize(
    "source", ["http://192.168.1.1/seed/", "file:///srv/seed", "file:///boot/firmware/../../etc"]
)
def test_a_seed_from_elsewhere_becomes_one_in_the_root(make_image: MakeImage, source: str) -> None:
    image = make_image(
        "raspios-trixie",
        extra={"etc/cloud/cloud.cfg.d/99_zzz.cfg": f"datasource: {{NoCloud: {{seedfrom: '{source}'}}}}\n"},
    )
    files = image.method.files(Customisation(hostname="a"))
    assert not files.boot
    assert "user-data" in seed(files, "/var/lib/cloud/seed/nocloud")


def test_keys_alone_lock_the_password_and_let_become_root(make_image: MakeImage) -> None:
    files = make_image("raspios-trixie").method.files(
        Customisation.model_validate({"account": {"name": "ops"}, "ssh_keys": [KEY]})
    )
    user = seed(files, "/")["user-data"]["user"]
    assert user["lock_passwd"] is True
    assert "passwd" not in user
    assert user["sudo"] == "ALL=(ALL) NOPASSWD:ALL"


def test_refuses_root_by_name(make_image: MakeImage) -> None:
    with pytest.raises(FirstBootOptionError, match=r"--user: .*root"):
        make_image("ubuntu-pi").method.files(
            Customisation.model_validate({"account": {"name": "root", "password_hash": HASH}})
        )


def test_refuses_wireless_where_nothing_would_carry_it_out(make_image: MakeImage) -> None:
    image = make_image("debian-cloud", without=("usr/sbin/netplan",))
    with pytest.raises(FirstBootOptionError, match=r"--wifi: .*netplan"):
        image.method.files(Customisation.model_validate({"wifi": {"ssid": "home", "country": "DE"}}))


def test_what_cloud_init_made_is_synced_before_others_start(make_image: MakeImage) -> None:
    image = make_image("raspios-trixie")
    image.take(Customisation(hostname="a"))
    for unit in ("cloud-init.service", "cloud-init-network.service"):
        assert "sync" in image.text(f"/etc/systemd/system/{unit}.d/50-edgeslm-sync.conf")


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None, reason="needs a Debian to fetch from"
)
def test_cloud_inits_own_schemas_take_the_seed(make_image: MakeImage, tmp_path: Path) -> None:
    got = subprocess.run(
        ["apt-get", "download", "cloud-init"], cwd=tmp_path, capture_output=True, timeout=300, check=False
    )
    packages = list(tmp_path.glob("cloud-init_*.deb"))
    if got.returncode != 0 or not packages:
        pytest.skip("cloud-init cannot be fetched here")
    subprocess.run(["dpkg-deb", "-x", packages[0], tmp_path / "package"], check=True, timeout=300)
    schemas = tmp_path / "package/usr/lib/python3/dist-packages/cloudinit/config/schemas"
    files = make_image("raspios-trixie").method.files(Customisation.model_validate(EVERYTHING))
    found = seed(files, "/")
    network = found["network-config"]
    del network["network"][
        "wifis"
    ]  # which cloud-init hands on to netplan, and has no words for in its schema
    for name, body in (
        ("schema-cloud-config-v1.json", found["user-data"]),
        ("schema-network-config-v2.json", network),
    ):
        schema = json.loads((schemas / name).read_text())
        validator = jsonschema_rs.validator_for(schema)
        assert [error.message for error in validator.iter_errors(body)] == []
