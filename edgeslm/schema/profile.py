"""What a board is set up to do (``firmware_profiles/<profile>.yaml``): intent, which board and image then carry out.

What always holds: a profile says *what*, never *how*. It names no path on the board and no file of an image, so that
one profile means the same on every board that it is for. ``None`` anywhere stands for "as the image has it".

No secret stands in a profile. Where one is needed it is named by a :data:`SecretRef`, and read from there only when
an image is prepared.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from edgeslm.schema.base import FileModel, Identifier, is_identifier
from edgeslm.schema.budget import Budget
from edgeslm.schema.config import (
    HomeAssistantConfig,
    LimitsConfig,
    MetricsConfig,
    PrefixesConfig,
    RuntimeChoice,
    SessionsConfig,
    UpdatesConfig,
)
from edgeslm.schema.power import MetersConfig

BUILTIN: Final = "builtin:"
RELEASE: Final = "release:"

ImageKind = Literal["raspios-bookworm", "raspios-trixie", "debian", "ubuntu", "armbian", "dietpi"]
"""Kinds of operating system image, by what they are configured with."""
Governor = Literal["performance", "powersave", "ondemand", "conservative", "schedutil"]
"""The kernel's frequency governors that need nobody to steer them; ``userspace`` would."""
Toggle = bool | None
"""On, off, or as the image has it."""

MAX_CONFIG_LINE: Final = 98
"""Characters of a line of config.txt that the firmware reads (Raspberry Pi documentation, config.txt, file format)."""
_CONFIG_ELSEWHERE: Final = {
    "dtparam": "boot.dtparams",
    "dtoverlay": "boot.overlays",
    "arm_freq": "cpu.max_mhz or cpu.max_share",
    "include": "boot.config, line by line",
    "initramfs": "the image itself",
    "kernel": "the image itself",
    "cmdline": "boot.cmdline",
}
_CMDLINE_ELSEWHERE: Final = {
    "root": "the image itself",
    "rootfstype": "the image itself",
    "init": "the image itself",
    "maxcpus": "cpu.cores",
    "cpufreq.default_governor": "cpu.governor",
}


def _secret(value: object) -> object:
    # Said without the value: what stands here by mistake may be the secret itself.
    if not isinstance(value, str) or not _SECRET.fullmatch(value):
        raise ValueError("a secret is named here, not written: env:NAME or file:PATH")
    return value


_SECRET: Final = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]{0,63}|file:[^\x00-\x1f]{1,1024}")
SecretRef = Annotated[str, BeforeValidator(_secret)]
"""Where a secret is read when an image is prepared: ``env:NAME``, or ``file:PATH`` relative to the profile's file."""


def _config_value(value: object) -> object:
    is_number = isinstance(value, int) and not isinstance(value, bool) and -(2**31) <= value < 2**32
    if not is_number and not (isinstance(value, str) and _CONFIG_TEXT.fullmatch(value)):
        raise ValueError("config.txt knows numbers and texts of one line; for on and off write 1 and 0")
    return value


def _cmdline_value(value: object) -> object:
    if isinstance(value, bool):
        return value
    text = str(value) if isinstance(value, int) else value
    if not isinstance(text, str) or not _CMDLINE_TEXT.fullmatch(text):
        raise ValueError("a value without spaces and quotes, true for the bare word, or false to take it out")
    return text


def _dt_value(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _debian_name(value: str) -> str:
    if not _DEBIAN.fullmatch(value):
        raise ValueError("a Debian package is expected, or several that do: 'chromium | firefox-esr'")
    return value


_CONFIG_TEXT: Final = re.compile(r"[!-~]([ -~]{0,94}[!-~])?")
_CMDLINE_TEXT: Final = re.compile(r"[!#-~]{1,256}")
_DEBIAN: Final = re.compile(r"[a-z0-9][a-z0-9+.-]{1,63}( \| [a-z0-9][a-z0-9+.-]{1,63}){0,3}")
ConfigKey = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,47}(:[0-9]{1,2})?$")]
ConfigValue = Annotated[int | str, BeforeValidator(_config_value)]
DtName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][A-Za-z0-9_.,+-]{0,63}$")]
DtValue = Annotated[
    str, BeforeValidator(_dt_value), StringConstraints(pattern=r"^[A-Za-z0-9_.,:=+/-]{0,80}$")
]
CmdlineKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
CmdlineValue = Annotated[bool | str, BeforeValidator(_cmdline_value)]
ConfigSettings = Annotated[dict[ConfigKey, ConfigValue], Field(max_length=64)]
DebianName = Annotated[str, StringConstraints(max_length=300), AfterValidator(_debian_name)]
"""A Debian package, or several of which one is enough, as in Debian's control files: ``chromium | firefox-esr``."""
HostName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]{1,253}$")]
"""Name or address of a host."""
CARD: Final = "card"
"""A partition of its own on the card, instead of another block device."""
BlockDevice = Annotated[
    str,
    StringConstraints(pattern=r"^(card|(PART)?(LABEL|UUID)=[A-Za-z0-9_.-]{1,64}|/dev/[a-z0-9/_-]{1,64})$"),
]
"""``card``, or a block device as fstab names it."""


class BoardNeeds(FileModel):
    """What a board must have, whatever it is called.

    Attributes:
        family: families of boards of which it must be one; empty for any.
        ram_mb: memory of the board.
        cores: processor cores.
        cpu_features: as in board files.
        wifi, bluetooth, ethernet, hdmi: whether it must have one.
    """

    family: Annotated[tuple[Identifier, ...], Field(max_length=16)] = ()
    ram_mb: Annotated[int, Field(ge=0, le=1_048_576)] = 0
    cores: Annotated[int, Field(ge=1, le=256)] = 1
    cpu_features: Annotated[
        tuple[Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,32}$")], ...], Field(max_length=32)
    ] = ()
    wifi: bool = False
    bluetooth: bool = False
    ethernet: bool = False
    hdmi: bool = False


class OtherLoad(FileModel):
    """What else lives on the board, so that it is counted.

    Attributes:
        ram_mb: memory of other programs, such as a browser.
        power_w: watts of what hangs on the board's supply, such as sensors, sticks or a display.
    """

    ram_mb: Annotated[int, Field(ge=0, le=1_048_576)] = 0
    power_w: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 0.0


class BootSettings(FileModel):
    """What the firmware and the kernel are told. Only the first three are Raspberry Pi's own.

    Attributes:
        config: lines of config.txt by key; they hold for all models of board (``[all]``).
        dtparams: device tree parameters, such as ``i2c_arm: on``.
        overlays: device tree overlays with their parameters, ``""`` for none.
        cmdline: kernel parameters: a text or number is the value, ``true`` the bare word, ``false`` takes the word out.
    """

    config: ConfigSettings = Field(default_factory=dict)
    dtparams: Annotated[dict[DtName, DtValue], Field(max_length=64)] = Field(default_factory=dict)
    overlays: Annotated[dict[DtName, DtValue], Field(max_length=32)] = Field(default_factory=dict)
    cmdline: Annotated[dict[CmdlineKey, CmdlineValue], Field(max_length=64)] = Field(default_factory=dict)

    @field_validator("config")
    @classmethod
    def _said_here(cls, config: dict[str, int | str]) -> dict[str, int | str]:
        for key, value in config.items():
            if key.partition(":")[0] in _CONFIG_ELSEWHERE:
                raise ValueError(f"'{key}' is set by {_CONFIG_ELSEWHERE[key.partition(':')[0]]}")
            if len(f"{key}={value}") > MAX_CONFIG_LINE:
                raise ValueError(f"'{key}': the firmware reads {MAX_CONFIG_LINE} characters of a line")
        return config

    @field_validator("cmdline")
    @classmethod
    def _not_of_the_image(cls, cmdline: dict[str, bool | str]) -> dict[str, bool | str]:
        for key in cmdline:
            if key in _CMDLINE_ELSEWHERE:
                raise ValueError(f"'{key}' is set by {_CMDLINE_ELSEWHERE[key]}")
        return cmdline

    @property
    def needs_firmware(self) -> bool:
        """Whether anything in it can be carried out by Raspberry Pi's firmware alone."""
        return bool(self.config or self.dtparams or self.overlays)


class CpuSettings(FileModel):
    """How fast the processor may run.

    Attributes:
        governor: the kernel's frequency governor.
        max_mhz: highest frequency, for profiles of one type of board.
        max_share: highest frequency as a share of the board's highest, for profiles of many.
        cores: cores that are used (``maxcpus=``); the others stay off.
    """

    governor: Governor | None = None
    max_mhz: Annotated[int, Field(ge=100, le=10_000)] | None = None
    max_share: Annotated[float, Field(ge=0.1, le=1, allow_inf_nan=False)] | None = None
    cores: Annotated[int, Field(ge=1, le=256)] | None = None

    @model_validator(mode="after")
    def _one_cap(self) -> Self:
        if self.max_mhz is not None and self.max_share is not None:
            raise ValueError("max_mhz and max_share are two ways to say the same; give one")
        return self

    @property
    def caps(self) -> bool:
        """Whether a highest frequency is set."""
        return self.max_mhz is not None or self.max_share is not None

    def cap_mhz(self, highest_mhz: int | None, lowest_mhz: int | None = None) -> int | None:
        """The highest frequency on a board that goes from `lowest_mhz` to `highest_mhz`.

        ``None`` where nothing is capped, or a share is of something unknown. A share never goes below the lowest.
        """
        if self.max_share is None:
            return self.max_mhz
        if highest_mhz is None:
            return None
        return max(round(highest_mhz * self.max_share), lowest_mhz or 0)


class RadioSettings(FileModel):
    """Radios of the board."""

    wifi: Toggle = None
    bluetooth: Toggle = None


class SwapSettings(FileModel):
    """Where memory goes when it runs out.

    Attributes:
        kind: ``none``, ``zram`` (compressed memory: spares the card), or ``file`` (on the card).
        size_mb: of it; needed for a file. For zram it is the uncompressed size.
        share: of the memory, for zram.
    """

    kind: Literal["none", "zram", "file"]
    size_mb: Annotated[int, Field(ge=16, le=65_536)] | None = None
    share: Annotated[float, Field(gt=0, le=4, allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _sized(self) -> Self:
        if self.kind == "none" and (self.size_mb is not None or self.share is not None):
            raise ValueError("no swap has no size")
        if self.kind == "file" and (self.size_mb is None or self.share is not None):
            raise ValueError("a file needs size_mb, and no share")
        if self.kind == "zram" and (self.size_mb is None) == (self.share is None):
            raise ValueError("zram needs one of size_mb and share")
        return self

    def size_of(self, ram_mb: int) -> int:
        """Megabytes of it on a board with `ram_mb`."""
        return self.size_mb if self.size_mb is not None else round(ram_mb * (self.share or 0.0))


class WatchdogSettings(FileModel):
    """The board's hardware watchdog, fed by systemd.

    Attributes:
        timeout_s: without a sign of life for so long the board is reset.
    """

    enabled: bool = True
    timeout_s: Annotated[int, Field(ge=2, le=600)] = 15


class LogSettings(FileModel):
    """The system's journal; writing it is most of what an idle board writes to its card.

    Attributes:
        storage: ``volatile`` keeps it in memory, and loses it with the power.
        max_mb: most that it may take, where it is kept.
    """

    storage: Literal["volatile", "persistent"]
    max_mb: Annotated[int, Field(ge=4, le=4096)] = 32


class WifiNetwork(FileModel):
    """The wireless network that the board joins.

    Attributes:
        country: ISO 3166 code, without which the radio stays off.
        password: where the passphrase is read; ``None`` for an open network.
    """

    ssid: Annotated[str, StringConstraints(min_length=1, max_length=32, pattern=r"^[^\x00-\x1f\x7f]*$")]
    country: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]
    password: SecretRef | None = None
    hidden: bool = False


class NetworkSettings(FileModel):
    """How the board reaches its broker. What belongs to one device, such as its address, is given to ``flash prepare``.

    Attributes:
        wired: whether the wired interface is used; by DHCP unless ``flash prepare`` is told otherwise.
        wifi: the wireless network.
        ntp: time servers; needed where the network lets none of the usual ones through.
        metered: the way out costs by the byte; becomes ``updates.is_metered`` of the agent.
    """

    wired: Toggle = None
    wifi: WifiNetwork | None = None
    ntp: Annotated[tuple[HostName, ...], Field(max_length=8)] = ()
    metered: bool = False


class ProfileBroker(FileModel):
    """The broker of a device that comes without a claim; a claim brings its own.

    Attributes:
        ca_file: certificate authority, relative to the profile's file; its presence switches TLS on.
        password: where the password is read.
    """

    host: HostName
    port: Annotated[int, Field(ge=1, le=65535)] = 1883
    username: Annotated[str, StringConstraints(min_length=1, max_length=255)] | None = None
    password: SecretRef | None = None
    ca_file: Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f]{1,1024}$")] | None = None

    @model_validator(mode="after")
    def _whole_login(self) -> Self:
        if self.password is not None and self.username is None:
            raise ValueError("a password needs a username")
        return self


class AgentSettings(FileModel):
    """Settings that go to ``agent.yaml`` as they are; what is not set is not written. See ``docs/agent.md``."""

    threads: Annotated[int, Field(ge=1, le=64)] | None = None
    runtime: RuntimeChoice | None = None
    pool: bool | None = None
    limits: LimitsConfig | None = None
    prefixes: PrefixesConfig | None = None
    sessions: SessionsConfig | None = None
    power: MetersConfig | None = None
    metrics: MetricsConfig | None = None
    updates: UpdatesConfig | None = None
    homeassistant: HomeAssistantConfig | None = None

    @model_validator(mode="after")
    def _no_places(self) -> Self:
        if self.homeassistant is not None and self.homeassistant.home is not None:
            raise ValueError("homeassistant.home names a file on the device; a profile carries none")
        return self

    def given(self) -> dict[str, Any]:
        """What was set, as ``agent.yaml`` has it.

        A limit of the gate that is ``None`` is said as well: it is not judged, while one left out has its default.
        """
        said = self.model_dump(mode="json", exclude_unset=True, exclude_none=True)
        if self.updates is not None and "gate" in self.updates.policy.model_fields_set:
            gate = self.updates.policy.gate
            unjudged = {name: None for name in gate.model_fields_set if getattr(gate, name) is None}
            said["updates"]["policy"]["gate"] |= unjudged
        return said


class ServiceLimits(FileModel):
    """What the agent's service may take of the board.

    Attributes:
        memory_max_mb: beyond it the kernel ends the service, and systemd starts it again.
        cpu_quota_percent: of one core, as systemd has it: 200 stands for two.
    """

    memory_max_mb: Annotated[int, Field(ge=64, le=1_048_576)] | None = None
    cpu_quota_percent: Annotated[int, Field(ge=5, le=25_600)] | None = None


def _reference(value: str) -> str:
    for prefix in (BUILTIN, RELEASE):
        if value.startswith(prefix):
            name, at, version = value.removeprefix(prefix).partition("@")
            if not is_identifier(name) or (at and not (prefix == RELEASE and _VERSION.fullmatch(version))):
                raise ValueError("builtin:NAME, release:NAME, release:NAME@VERSION or a path is expected")
    return value


_VERSION: Final = re.compile(r"\d{1,9}\.\d{1,9}\.\d{1,9}(-[0-9A-Za-z.-]{1,64})?")
Reference = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f]{1,1024}$"), AfterValidator(_reference)]


class Profile(FileModel):
    """Everything that a board is set up to do. What a file leaves out comes from the profile that it extends.

    Attributes:
        extends: the profile that this one goes on from.
        boards: boards that it is for; empty for every board that has what `needs` asks for.
        other: what else lives on the board.
        image: kinds of image that it goes on; empty for all of them.
        hdmi, leds: whether the outputs for monitors, and the lights, are powered.
        read_only_root: whether the root is mounted read-only. The agent's state must lie elsewhere then:
            `state_device`.
        state_device: what holds the agent's state: ``card`` for a partition of its own on the card, which an image
            can be prepared with, or a block device as in fstab, which none can so far.
        packages: Debian packages that have to be in the image already; nothing is installed.
        broker: of a device without a claim.
        models: packages to serve, the first by default: ``builtin:NAME``, ``release:NAME`` or
            ``release:NAME@VERSION`` (assigned by the fleet after joining; not on the card), or the path of a
            ``.slm`` file.
        rules: files of rules or directories of them, or ``builtin:NAME`` for those of a profile that ships.
        budget: what the device may draw; replaced as a whole by a profile that states one.
    """

    name: Identifier
    title: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    description: Annotated[str, StringConstraints(max_length=2000)] = ""
    extends: Identifier | None = None
    boards: Annotated[tuple[Identifier, ...], Field(max_length=64)] = ()
    needs: BoardNeeds = BoardNeeds()
    other: OtherLoad = OtherLoad()
    image: Annotated[tuple[ImageKind, ...], Field(max_length=8)] = ()
    boot: BootSettings = BootSettings()
    cpu: CpuSettings = CpuSettings()
    radio: RadioSettings = RadioSettings()
    hdmi: Toggle = None
    leds: Toggle = None
    swap: SwapSettings | None = None
    watchdog: WatchdogSettings | None = None
    log: LogSettings | None = None
    read_only_root: bool = False
    state_device: BlockDevice | None = None
    packages: Annotated[tuple[DebianName, ...], Field(max_length=64)] = ()
    network: NetworkSettings = NetworkSettings()
    broker: ProfileBroker | None = None
    models: Annotated[tuple[Reference, ...], Field(min_length=1, max_length=16)] = ("builtin:home-command",)
    rules: Annotated[tuple[Reference, ...], Field(max_length=32)] = ()
    budget: Budget = Budget()
    agent: AgentSettings = AgentSettings()
    service: ServiceLimits = ServiceLimits()

    @field_validator("boards", "image", "models", "rules", "packages")
    @classmethod
    def _named_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"'{twice[0][:80]}' is there twice")
        return names

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.read_only_root and self.state_device is None:
            raise ValueError(
                "read_only_root needs state_device: the agent keeps its identity and its journal there"
            )
        if self.state_device is not None and not self.read_only_root:
            raise ValueError("state_device goes with read_only_root")
        if self.network.wifi is not None and self.radio.wifi is False:
            raise ValueError("network.wifi names a network, and radio.wifi switches the radio off")
        if self.network.wired is False and self.radio.wifi is False:
            raise ValueError("network.wired and radio.wifi are both off: the board could reach no broker")
        return self

    def is_for(self, board: str) -> bool:
        """Whether it names `board`, or no board at all."""
        return not self.boards or board in self.boards
