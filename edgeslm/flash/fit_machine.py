"""Whether a board is what a profile is meant for, and can be set up as it says. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from edgeslm.flash.fit_types import Check, FitRequest
from edgeslm.schema.board import Board, Presence
from edgeslm.schema.profile import Profile


def check_machine(request: FitRequest) -> Iterator[Check]:
    """Everything that only board and profile decide, but for memory and power."""
    board, profile = request.board, request.profile
    yield _meant(board, profile)
    yield _needs(request)
    yield from _processor(board, profile)
    yield from _boot(board, profile)
    yield from _outputs(board, profile)
    yield _network(board, profile)
    yield from _watchdog(board, profile)


def _meant(board: Board, profile: Profile) -> Check:
    if not profile.is_for(board.name):
        return Check(
            name="board",
            status="fail",
            detail=f"the profile is for {', '.join(profile.boards)}",
            hint="Take one of these boards, or another profile",
        )
    family = profile.needs.family
    if family and board.family not in family:
        return Check(
            name="board",
            status="fail",
            detail=f"the profile is for boards of the family {' or '.join(family)}, this one is of '{board.family}'",
            hint="Take another profile, or extend this one without what only that family has",
        )
    return Check(
        name="board", status="pass", detail="any board" if not profile.boards and not family else "meant"
    )


def _needs(request: FitRequest) -> Check:
    board, needs = request.board, request.profile.needs
    missing: list[str] = []
    unknown: list[str] = []
    if board.cores is None:
        unknown += ["cores"] * (needs.cores > 1)
    elif board.cores < needs.cores:
        missing.append(f"{needs.cores} cores, it has {board.cores}")
    sizes = (request.ram_mb,) if request.ram_mb is not None else board.ram_mb
    if not sizes:
        unknown += ["memory"] * (needs.ram_mb > 0)
    elif max(sizes) < needs.ram_mb:
        missing.append(f"{needs.ram_mb:,} MB of memory, it has {max(sizes):,} MB")
    lacking = sorted(set(needs.cpu_features) - set(board.cpu_features))
    if lacking:
        missing.append(f"a processor with {', '.join(lacking)}")
    ports = board.ports
    wanted = {
        "wifi": needs.wifi,
        "bluetooth": needs.bluetooth,
        "ethernet": needs.ethernet,
        "hdmi": needs.hdmi,
    }
    for name in (name for name, is_wanted in wanted.items() if is_wanted):
        found = _port(board, name)
        if found == "never":
            missing.append(_PORTS[name])
        elif found != "always":
            unknown.append(_PORTS[name])
    if missing:
        return Check(name="needs", status="fail", detail=f"the board lacks {'; '.join(missing)}")
    if unknown:
        why = "not every unit has it" if ports is not None else "its file does not say"
        return Check(name="needs", status="unknown", detail=f"{', '.join(unknown)}: {why}")
    if min(sizes, default=needs.ram_mb) < needs.ram_mb:
        fitting = ", ".join(f"{size:,}" for size in sizes if size >= needs.ram_mb)
        return Check(
            name="needs",
            status="warning",
            detail=f"only with {fitting} MB of memory; {needs.ram_mb:,} MB are needed",
        )
    return Check(name="needs", status="pass", detail="the board has what the profile asks for")


_PORTS = {"wifi": "Wi-Fi", "bluetooth": "Bluetooth", "ethernet": "wired network", "hdmi": "HDMI"}


def _port(board: Board, name: str) -> Presence | None:
    """Whether boards of the type have a port; ``None`` where their file does not say."""
    if board.ports is None:
        return None
    if name == "wifi":
        return board.ports.wifi
    if name == "bluetooth":
        return board.ports.bluetooth
    has = board.ports.ethernet_mbit if name == "ethernet" else board.ports.hdmi
    return "always" if has else "never"


# --- processor -------------------------------------------------------------------------------------------------


def _processor(board: Board, profile: Profile) -> Iterator[Check]:
    cpu = profile.cpu
    if cpu.caps or cpu.governor is not None:
        yield _frequency(board, profile)
    used = cpu.cores if cpu.cores is not None else board.cores
    if cpu.cores is not None:
        if board.cores is None:
            yield Check(name="cores", status="unknown", detail=f"{cpu.cores} of an unknown number")
        elif cpu.cores > board.cores:
            yield Check(
                name="cores", status="fail", detail=f"{cpu.cores} are to be used, the board has {board.cores}"
            )
        else:
            yield Check(name="cores", status="pass", detail=f"{cpu.cores} of {board.cores} are used")
    threads = profile.agent.threads
    if threads is not None and used is not None and threads > used:
        yield Check(
            name="threads",
            status="fail",
            detail=f"agent.threads asks for {threads} threads on {used} cores",
            hint=f"At most {used}; the board's own recommendation is {board.threads}",
        )


def _frequency(board: Board, profile: Profile) -> Check:
    cpu = profile.cpu
    governor = f"governor {cpu.governor}" if cpu.governor is not None else ""
    if board.clusters and not any(cluster.policies for cluster in board.clusters):
        return Check(
            name="frequency",
            status="fail",
            detail="the kernel cannot change this board's frequency, and the profile sets a governor or a cap",
            hint="Take a profile without one",
        )
    highest, lowest = board.power.max_mhz, board.power.min_mhz
    cap = cpu.cap_mhz(highest, lowest)
    if not cpu.caps:
        return Check(name="frequency", status="pass" if board.clusters else "unknown", detail=governor)
    if cap is None or highest is None:
        return Check(
            name="frequency", status="unknown", detail="a cap, and the board's frequencies are not known"
        )
    share = ""
    if cpu.max_share is not None:
        asked = round(highest * cpu.max_share)
        share = f"{cpu.max_share:.0%} of {highest:,} MHz = " + (
            f"{asked:,} MHz, below the lowest: " if asked < cap else ""
        )
    text = f"{share}{cap:,} MHz, the board goes from {lowest or 0:,} to {highest:,} MHz"
    if cap > highest:
        return Check(
            name="frequency",
            status="fail",
            detail=f"a cap of {text}",
            hint="Profiles do not overclock: give a cap within the board's frequencies",
        )
    if lowest is not None and cap < lowest:
        return Check(
            name="frequency", status="fail", detail=f"a cap of {text}", hint=f"Give at least {lowest} MHz"
        )
    return Check(
        name="frequency", status="pass", detail=", ".join(filter(None, (governor, f"capped at {text}")))
    )


# --- boot, outputs, network ------------------------------------------------------------------------------------


def _boot(board: Board, profile: Profile) -> Iterator[Check]:
    boot = profile.boot
    kind = board.boot.kind if board.boot is not None else None
    if boot.needs_firmware and kind != "raspberrypi-firmware":
        keys = ", ".join(
            f"boot.{name}"
            for name, said in (
                ("config", boot.config),
                ("dtparams", boot.dtparams),
                ("overlays", boot.overlays),
            )
            if said
        )
        yield Check(
            name="firmware",
            status="fail" if kind is not None else "unknown",
            detail=f"{keys} are read by Raspberry Pi's firmware alone"
            + (
                ", and this board boots without it"
                if kind is not None
                else ", and how the board boots is not known"
            ),
        )
    elif boot.needs_firmware:
        count = len(boot.config) + len(boot.dtparams) + len(boot.overlays)
        yield Check(name="firmware", status="pass", detail=f"{count} settings for config.txt")
    words = sorted([*boot.cmdline, *(["maxcpus"] if profile.cpu.cores is not None else [])])
    if profile.hdmi is False and _port(board, "hdmi") != "never":
        words.append("video")
    if not words:
        return
    said = f"kernel parameters {', '.join(words)}"
    if kind == "raspberrypi-firmware":
        yield Check(name="kernel", status="pass", detail=f"{said} in cmdline.txt")
    else:
        yield Check(
            name="kernel",
            status="unknown",
            detail=f"{said}: whether the image has a file for them that is known shows when it is prepared",
        )


def _outputs(board: Board, profile: Profile) -> Iterator[Check]:
    said = {"wifi": profile.radio.wifi, "bluetooth": profile.radio.bluetooth, "hdmi": profile.hdmi}
    for name, wanted in said.items():
        found = _port(board, name)
        if wanted is None:
            continue
        if wanted and found == "never":
            yield Check(
                name=name, status="fail", detail=f"{_PORTS[name]} is to be on, and the board has none"
            )
        elif wanted and found != "always":
            yield Check(
                name=name, status="unknown", detail=f"{_PORTS[name]} is to be on; not every unit has it"
            )
        elif not wanted and found == "never":
            yield Check(name=name, status="pass", detail="to be off; the board has none")
        else:
            yield Check(name=name, status="pass", detail="on" if wanted else "off")


def _network(board: Board, profile: Profile) -> Check:
    wired = "never" if profile.network.wired is False else _port(board, "ethernet")
    radio = "never" if profile.radio.wifi is False else _port(board, "wifi")
    if profile.network.wired and wired == "never":
        return Check(
            name="network", status="fail", detail="the profile uses the wired network, the board has none"
        )
    if profile.network.wifi is not None and radio == "never":
        return Check(
            name="network",
            status="fail",
            detail=f"the profile joins the Wi-Fi '{profile.network.wifi.ssid}', the board has none",
        )
    if wired == "never" and radio == "never":
        no_wire = "the profile switches it off" if profile.network.wired is False else "the board has none"
        no_radio = "the profile switches it off" if profile.radio.wifi is False else "the board has none"
        return Check(
            name="network",
            status="fail",
            detail=f"no way to a broker: as for the wired network, {no_wire}; as for Wi-Fi, {no_radio}",
        )
    ways = [text for text, found in (("wired", wired), ("Wi-Fi", radio)) if found == "always"]
    if not ways:
        return Check(name="network", status="unknown", detail="not every unit of this board has a network")
    return Check(name="network", status="pass", detail=" or ".join(ways))


def _watchdog(board: Board, profile: Profile) -> Iterator[Check]:
    watchdog = profile.watchdog
    if watchdog is None or not watchdog.enabled:
        return
    longest = board.boot.watchdog_max_s if board.boot is not None else None
    if longest is None:
        detail = f"{watchdog.timeout_s} s; whether the board has one, and how long it can wait, is not known"
        yield Check(name="watchdog", status="unknown", detail=detail)
    elif watchdog.timeout_s > longest:
        yield Check(
            name="watchdog",
            status="fail",
            detail=f"{watchdog.timeout_s} s, this board's counts at most {longest:g} s",
            hint=f"Give watchdog.timeout_s: {longest:.0f} or less",
        )
    else:
        yield Check(name="watchdog", status="pass", detail=f"{watchdog.timeout_s} s of at most {longest:g} s")
