"""Network settings in the files of the program that an image manages its interfaces with.

What always holds: whatever the name of a network is, each file is read back as exactly that name: where a format knows
bytes they are given as such. Files that hold a key are for root alone. No interface is waited for, so that a board
without its network starts as fast as one with it.

Sources: ``nm-settings-keyfile(5)`` (a name as a list of bytes, a key as 64 digits), ``wpa_supplicant.conf(5)`` (a name
as hexadecimal digits), ``netplan(5)``, ``systemd.network(5)``.
"""

from __future__ import annotations

import re
import uuid

import yaml

from edgeslm.errors import FirstBootOptionError
from edgeslm.flash.first_boot.method import FirstBootFiles, Method, refuse
from edgeslm.flash.first_boot.system import System
from edgeslm.flash.tree import Entry
from edgeslm.schema.customisation import Customisation, StaticAddress, Wifi, Wired

_PLAIN_SSID = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_IDENTITIES = uuid.UUID("b7f4f0a4-6d0e-5a51-9a0b-3f6c1a5b7e11")
"""So that one network has one identity in every run."""
WIRELESS = "wlan0"
"""As Raspberry Pi OS, Ubuntu and Armbian call the only one, and what the kernel calls the first."""
WIRED = "eth0"


def regulatory_words(wifi: Wifi | None) -> tuple[str, ...]:
    """Words for the kernel's command line that say whose rules the radio keeps before anything else does."""
    return () if wifi is None else (f"cfg80211.ieee80211_regdom={wifi.country}",)


def network_files(method: Method, system: System, customisation: Customisation) -> FirstBootFiles:
    """Files for what manages the interfaces of an image: netplan, NetworkManager or systemd-networkd.

    Raises:
        FirstBootOptionError: it has none of them, or nothing that joins wireless networks.
    """
    wifi, wired = customisation.wifi, customisation.wired
    if wifi is None and wired is None:
        return FirstBootFiles()
    if system.has_program("netplan"):
        return _netplan(system, wifi, wired)
    if system.unit_path("NetworkManager.service"):
        return FirstBootFiles(root=network_manager_entries(wifi, wired))
    if system.unit_path("systemd-networkd.service"):
        return _networkd(method, system, wifi, wired)
    raise _nothing_known(method, customisation)


def network_manager_entries(wifi: Wifi | None, wired: Wired | None) -> tuple[Entry, ...]:
    """Profiles of NetworkManager."""
    entries = []
    if wifi is not None:
        lines = [
            *_connection("edgeslm-wifi", "wifi", wifi.ssid),
            "[wifi]",
            "mode=infrastructure",
            f"ssid={_keyfile_ssid(wifi.ssid)}",
            *(["hidden=true"] if wifi.hidden else []),
            "",
        ]
        if wifi.psk is not None:
            lines += ["[wifi-security]", "key-mgmt=wpa-psk", f"psk={wifi.psk}", ""]
        lines += ["[ipv4]", "method=auto", "", "[ipv6]", "method=auto"]
        entries.append(_profile("edgeslm-wifi", lines))
    if wired is not None:
        lines = [*_connection("edgeslm-wired", "ethernet", "wired"), "[ipv4]"]
        if isinstance(wired, StaticAddress):
            gateway = f",{wired.gateway}" if wired.gateway is not None else ""
            lines += ["method=manual", f"address1={wired.address}{gateway}"]
            lines += _listed("dns", [str(server) for server in wired.dns if server.version == 4])
            lines += ["", "[ipv6]", "method=auto"]
            lines += _listed("dns", [str(server) for server in wired.dns if server.version == 6])
        else:
            lines += ["method=auto", "", "[ipv6]", "method=auto"]
        entries.append(_profile("edgeslm-wired", lines))
    return tuple(entries)


def netplan_document(
    wifi: Wifi | None, wired: Wired | None, *, wired_matches: str | None = None
) -> dict[str, object]:
    """What netplan and cloud-init's version 2 read.

    Args:
        wired_matches: names of the interface; ``None``: it is :data:`WIRED`.
    """
    network: dict[str, object] = {"version": 2}
    if wired is not None:
        ethernet: dict[str, object] = {"optional": True}
        if wired_matches is not None:
            ethernet["match"] = {"name": wired_matches}
        if isinstance(wired, StaticAddress):
            ethernet |= {"dhcp4": False, "addresses": [str(wired.address)]}
            if wired.gateway is not None:
                ethernet["routes"] = [{"to": "default", "via": str(wired.gateway)}]
            if wired.dns:
                ethernet["nameservers"] = {"addresses": [str(server) for server in wired.dns]}
        else:
            ethernet["dhcp4"] = True
        network["ethernets"] = {WIRED if wired_matches is None else "wired": ethernet}
    if wifi is not None:
        point: dict[str, object] = {}
        if wifi.psk is None:
            point["auth"] = {"key-management": "none"}
        else:
            # Beside the network, not below auth: netplan then takes WPA2 and what is between it and WPA3.
            point["password"] = wifi.psk
        if wifi.hidden:
            point["hidden"] = True
        network["wifis"] = {
            WIRELESS: {
                "optional": True,
                "dhcp4": True,
                "regulatory-domain": wifi.country,
                "access-points": {wifi.ssid: point},
            }
        }
    return {"network": network}


def to_yaml(document: dict[str, object]) -> str:
    """`document` as YAML that every reader reads alike: ASCII, and texts that could be taken for else are quoted."""
    return yaml.safe_dump(
        document, sort_keys=False, allow_unicode=False, default_flow_style=False, width=10_000
    )


# --- pieces -----------------------------------------------------------------------------------------------------


def _netplan(system: System, wifi: Wifi | None, wired: Wired | None) -> FirstBootFiles:
    body = to_yaml(netplan_document(wifi, wired, wired_matches="e*")).encode()
    # Armbian's own: two definitions that match one interface would leave it to chance which one stands.
    everything = "/etc/netplan/10-dhcp-all-interfaces.yaml"
    replaced = (everything,) if isinstance(wired, StaticAddress) and system.has(everything) else ()
    return FirstBootFiles(
        root=(Entry("/etc/netplan/60-edgeslm.yaml", content=body, mode=0o600),), remove_root=replaced
    )


def _networkd(method: Method, system: System, wifi: Wifi | None, wired: Wired | None) -> FirstBootFiles:
    entries = [system.enabling("systemd-networkd.service")]
    if system.unit_path("systemd-resolved.service"):
        entries.append(system.enabling("systemd-resolved.service"))
    if wired is not None:
        lines = ["[Match]", "Name=en* eth* end*", "", "[Link]", "RequiredForOnline=no", "", "[Network]"]
        if isinstance(wired, StaticAddress):
            lines.append(f"Address={wired.address}")
            lines += [] if wired.gateway is None else [f"Gateway={wired.gateway}"]
            lines += [f"DNS={server}" for server in wired.dns]
            if wired.dns and not system.unit_path("systemd-resolved.service"):
                servers = "".join(f"nameserver {server}\n" for server in wired.dns)
                entries.append(Entry("/etc/resolv.conf", content=servers.encode()))
        else:
            lines.append("DHCP=yes")
        entries.append(_text("/etc/systemd/network/10-edgeslm-wired.network", lines))
    if wifi is not None:
        if not system.unit_path("wpa_supplicant@.service"):
            raise refuse(
                method,
                "wifi",
                "has nothing that joins a wireless network",
                "Make the image with the package wpasupplicant or network-manager.",
            )
        lines = ["[Match]", "Type=wlan", "", "[Link]", "RequiredForOnline=no", "", "[Network]", "DHCP=yes"]
        entries += [
            _text("/etc/systemd/network/10-edgeslm-wifi.network", lines),
            _text(
                f"/etc/wpa_supplicant/wpa_supplicant-{WIRELESS}.conf",
                [
                    "ctrl_interface=DIR=/run/wpa_supplicant GROUP=netdev",
                    f"country={wifi.country}",
                    "network={",
                    f"\tssid={wifi.ssid.encode().hex()}",
                    *(["\tscan_ssid=1"] if wifi.hidden else []),
                    *(
                        ["\tkey_mgmt=NONE"]
                        if wifi.psk is None
                        else ["\tkey_mgmt=WPA-PSK", f"\tpsk={wifi.psk}"]
                    ),
                    "}",
                ],
                mode=0o600,
            ),
            system.enabling("wpa_supplicant@.service", instance=WIRELESS),
        ]
    return FirstBootFiles(root=tuple(entries))


def _nothing_known(method: Method, customisation: Customisation) -> FirstBootOptionError:
    return refuse(
        method,
        "wired" if customisation.wired is not None else "wifi",
        "manages its network with none of netplan, NetworkManager and systemd-networkd",
    )


def _connection(name: str, kind: str, what: str) -> list[str]:
    identity = uuid.uuid5(_IDENTITIES, f"{kind} {what}")
    return ["[connection]", f"id={name}", f"uuid={identity}", f"type={kind}", "autoconnect-priority=10", ""]


def _keyfile_ssid(ssid: str) -> str:
    if _PLAIN_SSID.fullmatch(ssid):
        return ssid
    return "".join(f"{byte};" for byte in ssid.encode())


def _listed(key: str, values: list[str]) -> list[str]:
    return [f"{key}={''.join(f'{value};' for value in values)}"] if values else []


def _profile(name: str, lines: list[str]) -> Entry:
    # NetworkManager ignores a profile that others could read.
    return _text(f"/etc/NetworkManager/system-connections/{name}.nmconnection", lines, mode=0o600)


def _text(path: str, lines: list[str], *, mode: int = 0o644) -> Entry:
    return Entry(path, content="".join(f"{line}\n" for line in lines).encode(), mode=mode)
