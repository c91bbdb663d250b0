"""Facts about a type of board (``devices/<board>.yaml``), each with its source.

What is the same for every unit of the type stands here; what somebody wants of one stands in a profile. A fact that is
not known is left out, and means "not known", never "no".
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from edgeslm.schema.base import FileModel, Identifier
from edgeslm.schema.power import MeterKind

Watts = Annotated[float, Field(ge=0, le=10_000)]
Mhz = Annotated[int, Field(ge=1, le=100_000)]
Celsius = Annotated[float, Field(ge=30, le=150)]
SourceText = Annotated[str, StringConstraints(min_length=8, max_length=600)]
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,+-]{0,63}$")]
"""A name as the kernel writes it: a driver, a feature, a file, a ``compatible`` text."""
DeviceTreeFile = Annotated[
    str, StringConstraints(pattern=r"^([a-z0-9-]+/)?[A-Za-z0-9][A-Za-z0-9_.+-]*\.dtb$", max_length=96)
]
"""A device tree below the directory of device trees, such as ``rockchip/rk3588-rock-5b.dtb``."""

WATCHED_FEATURES: Final = frozenset(
    {"asimd", "fphp", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "atomics", "aes"}  # Arm
    | {"avx2", "fma", "avx_vnni", "avx512_vnni"}  # x86
)
"""Features that decide over the speed of inference or of encryption, as ``/proc/cpuinfo`` calls them."""

BootKind = Literal["raspberrypi-firmware", "u-boot-extlinux", "u-boot-script", "uefi", "direct", "none"]
Presence = Literal["always", "some", "never"]
"""``some``: it depends on the variant, the carrier board, or what is plugged in."""
StorageKind = Literal["sd", "emmc", "nvme", "usb"]


class PowerTable(FileModel):
    """What the board draws, for estimates where no meter is.

    The whole: ``idle_w + busy_cores * core_load_w * (mhz / max_mhz) ** frequency_exponent
    + temperature_w_per_c * (temperature - 25) + network_j_per_mb * megabytes / s``.

    Attributes:
        idle_w: watts of the running board with nothing to do, at 25 degrees.
        core_load_w: watts that one fully busy core adds at the highest frequency; the mean where cores differ.
        max_mhz: the highest frequency; ``None`` where it is not known: then frequency plays no part.
        min_mhz: the lowest frequency that the board can be held at.
        frequency_exponent: how load power grows with frequency; 1 with voltage fixed, up to 3 where voltage follows.
        temperature_w_per_c: watts of leakage that a degree of the processor adds.
        network_j_per_mb: joules to move a megabyte over the board's network.
        supply_w: watts that the recommended power supply can give.
        error_share: how far a device of this type may be off these figures (one sigma).
        source: where the figures come from.
    """

    idle_w: Watts
    core_load_w: Watts
    max_mhz: Mhz | None = None
    min_mhz: Mhz | None = None
    frequency_exponent: Annotated[float, Field(ge=0, le=4)] = 2.0
    temperature_w_per_c: Annotated[float, Field(ge=0, le=10)] = 0.0
    network_j_per_mb: Annotated[float, Field(ge=0, le=1000)] = 0.0
    supply_w: Watts | None = None
    error_share: Annotated[float, Field(gt=0, le=2)] = 0.3
    source: SourceText


class ThermalTable(FileModel):
    """How the board warms up and where it protects itself.

    Attributes:
        throttle_c: processor temperature from which the firmware or the kernel lowers the frequency.
        critical_c: processor temperature at which the kernel switches the board off; ``None``: not known.
        resistance_c_per_w: degrees above the air that a watt of draw brings in the end, in its usual case.
        time_constant_s: seconds to 63 % of that.
        source: where the figures come from.
    """

    throttle_c: Celsius
    critical_c: Celsius | None = None
    resistance_c_per_w: Annotated[float, Field(gt=0, le=100)]
    time_constant_s: Annotated[float, Field(gt=0, le=36_000)]
    source: SourceText


class CoreCluster(FileModel):
    """Cores of one kind.

    Attributes:
        core: their design, such as ``Cortex-A76``.
        max_mhz: the highest frequency out of the box; boards that came with several have the lower.
        policies: the directories below ``/sys/devices/system/cpu/cpufreq`` that hold their governor and frequency cap,
            such as ``policy0``; empty where that is not known.
    """

    core: Word
    count: Annotated[int, Field(ge=1, le=1024)]
    min_mhz: Mhz | None = None
    max_mhz: Mhz
    policies: Annotated[
        tuple[Annotated[str, StringConstraints(pattern=r"^policy\d{1,3}$")], ...], Field(max_length=16)
    ] = ()


class BootLayout(FileModel):
    """How the board comes to its kernel, with the images that are usual for it.

    Attributes:
        kind: what loads the kernel. ``raspberrypi-firmware`` reads a FAT partition with config.txt and cmdline.txt;
            ``u-boot-extlinux`` an ``extlinux.conf``; ``u-boot-script`` a ``boot.scr`` with its settings beside it, as
            Armbian has; ``uefi`` an EFI system partition; ``direct`` is a kernel handed over from outside, as QEMU
            does; ``none`` is a machine whose boot is not ours to set.
        partition: file system that it reads; ``ext4`` is mostly the root file system itself.
        mounted_at: where that partition is seen in the running system; ``/`` and ``/boot`` in one are ``/boot``.
        settings_file: the firmware's settings, relative to that partition.
        command_line_file: the kernel's command line, on one line, relative to that partition.
        device_trees: files that the board boots with; the first is the usual one.
        kernel_files: kernels that the firmware looks for by itself, in its order.
        watchdog_max_s: longest time that the hardware watchdog can be set to; ``None``: not known, or there is none.
    """

    kind: BootKind
    partition: Literal["fat", "ext4"] | None = None
    mounted_at: Annotated[str, StringConstraints(pattern=r"^/[a-z/]{0,62}$")] | None = None
    settings_file: Word | None = None
    command_line_file: Word | None = None
    device_trees: Annotated[tuple[DeviceTreeFile, ...], Field(max_length=16)] = ()
    kernel_files: Annotated[tuple[Word, ...], Field(max_length=4)] = ()
    watchdog_max_s: Annotated[float, Field(ge=1, le=100_000)] | None = None
    source: SourceText


class MeterFact(FileModel):
    """A power meter that every board of the type has.

    Attributes:
        kind: how it is read (see ``meters`` in the settings).
        chip: what measures.
        covers: what it sees and what it does not.
    """

    kind: MeterKind
    chip: Annotated[str, StringConstraints(min_length=2, max_length=64)]
    covers: Annotated[str, StringConstraints(min_length=8, max_length=300)]
    source: SourceText


class Supply(FileModel):
    """The power supply that the maker recommends.

    Attributes:
        connector: where the power goes in.
    """

    volts: Annotated[float, Field(gt=0, le=60)]
    amps: Annotated[float, Field(gt=0, le=50)]
    connector: Literal["micro-usb", "usb-c", "barrel", "header", "carrier"]
    source: SourceText


class Ports(FileModel):
    """What the board can talk through; profiles switch off what they do not need.

    Attributes:
        ethernet_mbit: speed of the wired network; 0 is none.
        hdmi: how many displays can be connected; of a module, those of its usual carrier.
    """

    wifi: Presence
    bluetooth: Presence
    ethernet_mbit: Annotated[int, Field(ge=0, le=100_000)]
    hdmi: Annotated[int, Field(ge=0, le=8)]
    source: SourceText


class Board(FileModel):
    """One hardware type.

    Attributes:
        family: whose board it is; profiles can be meant for a family.
        arch: as ``uname -m`` says with a 64-bit kernel; the only kernels that edgeslm runs on.
        clusters: cores by kind, the fastest first; together as many as `cores`.
        ram_mb: the sizes it is sold with, in MiB and ascending; for a device the nearest above what its kernel counts.
        cpu_features: what all cores of every unit can do, of :data:`WATCHED_FEATURES`, in the words of the kernel's
            ``/proc/cpuinfo``: ``asimddp`` is Arm's dotprod, ``asimdhp`` arithmetic on half floats.
        recognised_by: texts of which one is part of the device tree's ``model``, up to the end of a word; empty for
            boards that are chosen by hand or by being the last resort of their architecture, and for those that stand
            for any processor.
        other_models: texts that tell another board, although one of `recognised_by` is part of them.
        compatible: texts of which one is in the device tree's ``compatible``; asked where no model fits.
        storage: what it can boot from, the usual one first.
        threads: worker threads recommended for one model.
        context_tokens: longest context recommended for a generating model on the smallest variant; our judgement.
    """

    name: Identifier
    title: Annotated[str, StringConstraints(min_length=1, max_length=128)]
    family: Identifier = "other"
    arch: Literal["aarch64", "x86_64", "any"]
    soc: Annotated[str, StringConstraints(max_length=128)]
    cores: Annotated[int, Field(ge=1, le=1024)] | None
    clusters: Annotated[tuple[CoreCluster, ...], Field(max_length=4)] = ()
    ram_mb: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(max_length=16)]
    cpu_features: Annotated[tuple[Word, ...], Field(max_length=32)]
    recognised_by: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=3, max_length=128)], ...], Field(max_length=16)
    ]
    other_models: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=3, max_length=128)], ...], Field(max_length=16)
    ] = ()
    compatible: Annotated[tuple[Word, ...], Field(max_length=16)] = ()
    threads: Annotated[int, Field(ge=1, le=64)]
    context_tokens: Annotated[int, Field(ge=64, le=1_000_000)] | None = None
    boot: BootLayout | None = None
    storage: Annotated[tuple[StorageKind, ...], Field(max_length=4)] = ()
    ports: Ports | None = None
    supply: Supply | None = None
    power: PowerTable
    meters: Annotated[tuple[MeterFact, ...], Field(max_length=8)] = ()
    thermal: ThermalTable | None = None
    sources: Annotated[tuple[SourceText, ...], Field(min_length=1, max_length=16)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        counted = sum(cluster.count for cluster in self.clusters)
        if self.clusters and counted != self.cores:
            raise ValueError(f"clusters have {counted} cores together, 'cores' says {self.cores}")
        if list(self.ram_mb) != sorted(set(self.ram_mb)):
            raise ValueError("'ram_mb' ascends, each size once")
        return self
