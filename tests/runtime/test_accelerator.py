"""A library that would end the process is not loaded on processors that cannot run it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from edgeslm.runtime import executor
from edgeslm.runtime.backend import choose_runtime
from edgeslm.runtime.executor import has_compiled_model, is_deadly

A53 = frozenset({"fp", "asimd", "crc32"})
A76 = A53 | {"atomics", "asimddp"}


@pytest.mark.parametrize(
    ("machine", "flags", "is_there", "expected"),
    [
        ("aarch64", A53, True, True),
        ("aarch64", None, True, True),
        ("aarch64", A53, False, False),
        ("aarch64", A76, True, False),
        ("x86_64", frozenset({"avx2"}), True, False),
    ],
)
def test_only_processors_without_lse_are_in_danger_and_only_where_it_lies(
    tmp_path: Path, machine: str, flags: frozenset[str] | None, is_there: bool, expected: bool
) -> None:
    accelerator = tmp_path / "libLiteRtWebGpuAccelerator.so"
    if is_there:
        accelerator.write_bytes(b"")
    assert is_deadly(accelerator, machine, flags) is expected


def test_the_other_way_of_computing_is_taken_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = choose_runtime()
    if runtime.kind != "litert":
        pytest.skip("ai-edge-litert is not installed")
    module = importlib.import_module("ai_edge_litert.compiled_model")
    if not (Path(module.__file__ or "").parent / "libLiteRtWebGpuAccelerator.so").exists():
        pytest.skip("this ai-edge-litert comes without the accelerator")
    monkeypatch.setattr(executor.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(executor, "cpu_flags", lambda: A53)
    assert not has_compiled_model(runtime)
    assert "libLiteRtWebGpuAccelerator.so would end this process" in caplog.text
