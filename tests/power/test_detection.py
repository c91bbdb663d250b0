"""Every board's own words are detected as that board; what differs is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslm.power.boards import load_boards
from edgeslm.power.detection import Machine, detect, ram_variant_mb, read_machine
from edgeslm.schema.board import Board

BOARDS = load_boards()
GENERIC = {"generic-arm64", "host"}
OWN_TEXTS = [(board.name, text) for board in BOARDS.values() for text in board.recognised_by]
OWN_COMPATIBLE = [(board.name, text) for board in BOARDS.values() for text in board.compatible]
ARM = Machine(arch="aarch64")


def machine_of(board: Board) -> Machine:
    """A machine that is as `board`'s file says."""
    return Machine(
        arch="aarch64",
        model=board.recognised_by[0],
        compatible=board.compatible,
        cores=board.cores,
        cpu_features=frozenset(board.cpu_features) | {"fp", "crc32", "cpuid"},
        ram_mb=board.ram_mb[0] - 100,
        max_mhz=board.power.max_mhz,
    )


@pytest.mark.parametrize(("name", "text"), OWN_TEXTS)
@pytest.mark.parametrize("ending", ["", " Rev 1.0", " Rev 1.3"])
def test_each_text_of_a_board_is_detected_as_that_board(name, text, ending):
    found = detect(BOARDS, replace(ARM, model=text + ending))
    assert (found.board.name, found.by, found.matched) == (name, "model", text)
    assert detect(dict(reversed(BOARDS.items())), replace(ARM, model=text + ending)).board.name == name


@pytest.mark.parametrize(("name", "text"), OWN_COMPATIBLE)
def test_each_compatible_of_a_board_is_detected_where_no_model_fits(name, text):
    found = detect(BOARDS, replace(ARM, model="Unheard of", compatible=(text, "brcm,bcm2712")))
    assert (found.board.name, found.by, found.matched) == (name, "compatible", text)


def test_no_text_is_that_of_two_boards():
    for texts in (OWN_TEXTS, OWN_COMPATIBLE):
        assert len({text for _, text in texts}) == len(texts)


@pytest.mark.parametrize("board", [board for board in BOARDS.values() if board.recognised_by], ids=str)
def test_a_machine_as_the_file_says_differs_in_nothing_and_has_its_smallest_memory(board):
    found = detect(BOARDS, machine_of(board))
    assert (found.board, found.differences, found.ram_variant_mb) == (board, (), board.ram_mb[0])


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Raspberry Pi Compute Module 4S Rev 1.0", "generic-arm64"),
        ("Raspberry Pi Compute Module 5 Lite Rev 1.0", "cm5"),
        ("Raspberry Pi 3 Model A Plus Rev 1.0", "generic-arm64"),
        ("Raspberry Pi 3 Model B+", "pi-3b-plus"),
        ("Raspberry Pi 500 Plus Rev 1.0", "pi-500"),
        ("Raspberry Pi 5", "generic-arm64"),
        ("Xunlong Orange Pi 5", "orange-pi-5"),
        ("Xunlong Orange Pi 5 Plus", "generic-arm64"),
        ("Xunlong Orange Pi 5B", "generic-arm64"),
        ("Radxa ROCK 5B+", "generic-arm64"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "jetson-orin-nano"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "generic-arm64"),
    ],
)
def test_relatives_are_not_mixed_up(model, name):
    assert detect(BOARDS, replace(ARM, model=model)).board.name == name


def test_the_model_goes_before_what_is_compatible_and_of_that_the_first():
    compatible = ("raspberrypi,5-model-b", "raspberrypi,4-model-b")
    assert (
        detect(BOARDS, replace(ARM, model="Raspberry Pi 400", compatible=compatible)).board.name == "pi-400"
    )
    found = detect(BOARDS, replace(ARM, model="Raspberry Pi 5", compatible=compatible))
    assert (found.board.name, found.others) == ("pi-5", ("pi-4b",))


def test_a_virtual_machine_of_qemu_is_known_by_its_device_tree():
    found = detect(BOARDS, replace(ARM, model="linux,dummy-virt", compatible=("linux,dummy-virt",)))
    assert (found.board.name, found.by, found.differences) == ("qemu-virt", "compatible", ())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arch": "armv7l"}, "install a 64-bit system"),
        ({"cores": 3}, "3 cores are in use, the board has 4"),
        ({"ram_mb": 40_000}, "40000 MB of memory are more than any known variant has (16384 MB)"),
        ({"cpu_features": frozenset({"asimd", "fphp", "asimdhp", "atomics", "aes"})}, "lacks asimddp"),
        (
            {
                "cpu_features": frozenset(
                    {"asimd", "fphp", "asimdhp", "asimddp", "atomics", "aes", "i8mm", "fp"}
                )
            },
            "also has i8mm,",
        ),
        ({"max_mhz": 2800}, "estimates are too low until it is calibrated"),
        ({"max_mhz": 1500}, "estimates are too high until it is calibrated"),
    ],
)
def test_what_differs_is_told(changes, words):
    found = detect(BOARDS, replace(machine_of(BOARDS["pi-5"]), **changes))
    assert found.board.name == "pi-5"
    assert len(found.differences) == 1
    assert words in found.differences[0]


@pytest.mark.parametrize(
    ("counted_mb", "variant_mb"),
    [(906, 1024), (1024, 1024), (3792, 4096), (7_900, 8192), (9000, None), (None, None)],
)
def test_the_variant_is_the_next_size_above_what_the_kernel_counts(counted_mb, variant_mb):
    assert ram_variant_mb(BOARDS["pi-4b"], counted_mb) == variant_mb


@given(
    st.text(max_size=60) | st.sampled_from([text for _, text in OWN_TEXTS]),
    st.lists(st.text(max_size=20), max_size=3),
    st.sampled_from(["aarch64", "armv7l", "x86_64", "riscv64"]),
)
def test_any_machine_is_some_board(model, compatible, arch):
    found = detect(BOARDS, Machine(arch=arch, model=model, compatible=tuple(compatible)))
    assert found.board.name in BOARDS
    assert (found.by == "architecture") == (found.board.name in GENERIC)


# --- reading -------------------------------------------------------------------------------------------------


def test_the_machine_is_read_from_the_files_of_the_kernel(tmp_path: Path):
    for name, content in (
        ("proc/device-tree/model", b"Raspberry Pi 4 Model B Rev 1.4\0"),
        ("proc/device-tree/compatible", b"raspberrypi,4-model-b\0brcm,bcm2711\0"),
        ("proc/meminfo", b"MemTotal:        3882964 kB\nMemFree: 1 kB\n"),
        ("proc/cpuinfo", b"processor : 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\n"),
        ("sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq", b"1800000\n"),
        ("sys/devices/system/cpu/cpufreq/policy9/cpuinfo_max_freq", b"no number\n"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    machine = read_machine(tmp_path)
    assert machine.model == "Raspberry Pi 4 Model B Rev 1.4"
    assert machine.compatible == ("raspberrypi,4-model-b", "brcm,bcm2711")
    assert (machine.ram_mb, machine.max_mhz) == (3791, 1800)
    assert machine.cpu_features == {"fp", "asimd", "evtstrm", "crc32", "cpuid"}
    found = detect(BOARDS, replace(machine, arch="aarch64", cores=4))
    assert (found.board.name, found.ram_variant_mb) == ("pi-4b", 4096)
    assert found.differences == (
        "it runs at up to 1800 MHz, the power table is for 1500 MHz: estimates are too low until it is calibrated",
    )


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0\0", b"\0" * 10_000, b"x" * 100_000])
def test_a_device_tree_of_nonsense_is_no_board(tmp_path: Path, content: bytes):
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    for name in ("model", "compatible"):
        (tmp_path / "proc/device-tree" / name).write_bytes(content)
    assert detect(BOARDS, read_machine(tmp_path)).board.name in GENERIC


def test_a_machine_that_says_nothing_is_read_without_an_error(tmp_path: Path):
    machine = read_machine(tmp_path)
    assert (machine.model, machine.compatible, machine.ram_mb, machine.max_mhz) == (None, (), None, None)
    assert detect(BOARDS, machine).by == "architecture"
