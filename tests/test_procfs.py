from __future__ import annotations

from pathlib import Path

import pytest

from edgeslm.procfs import boot_id, cpu_flags, memory_kib


def test_this_boot_has_an_id_where_the_kernel_tells(tmp_path: Path) -> None:
    file = tmp_path / "boot_id"
    assert boot_id(file) is None
    file.write_text("0f3b\n")
    assert boot_id(file) == "0f3b"


def test_a_row_of_the_table_of_memory_is_told_in_kib(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal:  100 kB\nMemAvailable: 2048 kB\n")
    assert memory_kib("MemAvailable", file) == 2048
    assert memory_kib("MemFree", file) is None
    assert memory_kib("MemTotal", tmp_path / "none") is None


@pytest.mark.parametrize("text", ["", "MemTotal", "MemTotal:", "MemTotal: many kB", "\xff"])
def test_a_table_of_memory_that_is_none_tells_nothing(tmp_path: Path, text: str) -> None:
    file = tmp_path / "meminfo"
    file.write_text(text, "latin-1")
    assert memory_kib("MemTotal", file) is None


@pytest.mark.parametrize("row", ["flags\t\t: fpu avx2", "Features\t: fpu avx2"])
def test_a_processor_says_what_it_can_do_on_either_architecture(tmp_path: Path, row: str) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\n{row}\nvmx flags\t: ept\n")
    assert cpu_flags(file) == {"fpu", "avx2"}
    assert cpu_flags(tmp_path / "none") is None
