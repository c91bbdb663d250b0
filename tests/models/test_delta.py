"""A delta gives exactly the bytes of the package that it was made for, or nothing at all."""

from __future__ import annotations

import hashlib
import os
import signal
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeslm.errors import DeltaError, EdgeslmError, PackageError, StoreError
from edgeslm.models import delta as delta_module
from edgeslm.models import delta_making as making_module
from edgeslm.models.archive import sha256_file
from edgeslm.models.delta import FRAME, FRAME_BYTES, HEADER, RUN, apply_delta, read_header
from edgeslm.models.delta_making import make_delta
from edgeslm.models.image import FileImage, PackageImage
from edgeslm.models.store import ModelStore

HEAD = b"\x1c\x00\x00\x00TFL3" + b"tensor table " * 80


def weights(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(-127, 128, count, dtype=np.int8)


def stepped(old: np.ndarray, share: float, seed: int = 2) -> np.ndarray:
    """`old` with that share of its weights one step higher or lower."""
    chance = np.random.default_rng(seed)
    new = old.copy()
    at = np.flatnonzero(chance.random(len(old)) < share)
    new[at] += chance.choice(np.array([-1, 1], np.int8), len(at))
    return new


@pytest.fixture
def world(tmp_path, slm):
    """Packs graphs, and makes and applies deltas from an installed first one."""

    class World:
        store = ModelStore(tmp_path / "store")

        def pack(self, name: str, graph: bytes, **members: bytes | None) -> Path:
            slm.pack(tmp_path / name, slm.members(tiny__tflite=graph, **members), version="1.0.0")
            return tmp_path / name

        def install(self, path: Path):
            return self.store.install(path)

        def delta(self, old: Path, new: Path, name: str = "a.delta") -> Path:
            make_delta(old, new, tmp_path / name)
            return tmp_path / name

        def apply(self, delta: Path, installed, new: Path) -> None:
            out = tmp_path / "out.slm"
            apply_delta(delta, installed, out, sha256=sha256_file(new), size_bytes=new.stat().st_size)
            assert out.read_bytes() == new.read_bytes()
            out.unlink()

        def share(self, old: Path, new: Path) -> float:
            """Size of the delta as a share of the whole, after it was applied and found right."""
            delta = self.delta(old, new)
            self.apply(delta, self.install(old), new)
            return delta.stat().st_size / new.stat().st_size

    return World()


# --- sizes --------------------------------------------------------------------------------------------------


def test_5_percent_of_weights_changed_by_a_step_take_less_than_5_percent(world):
    old = weights(3 * 2**20)
    one = world.pack("one.slm", HEAD + old.tobytes())
    two = world.pack("two.slm", HEAD + stepped(old, 0.05).tobytes())
    # -(0.95 log2 0.95 + 0.05 log2 0.05) + 0.05 bits a weight are 4.2 % and cannot be undercut.
    assert 0.042 < world.share(one, two) < 0.0435


def test_weights_that_moved_are_found_where_they_were(world):
    old = weights(2**20)
    one = world.pack("one.slm", HEAD + old.tobytes())
    two = world.pack("two.slm", HEAD + b"one more table entry" * 7 + stepped(old, 0.05).tobytes())
    assert world.share(one, two) < 0.05


def test_tensors_that_changed_places_are_found(world):
    one_tensor, other_tensor = weights(700_000, 1), weights(900_001, 2)
    one = world.pack("one.slm", HEAD + one_tensor.tobytes() + other_tensor.tobytes())
    moved = HEAD + stepped(other_tensor, 0.05).tobytes() + stepped(one_tensor, 0.05).tobytes()
    assert world.share(one, world.pack("two.slm", moved)) < 0.06


def test_a_graph_under_another_name_is_found(tmp_path, world, slm):
    graph = HEAD + weights(500_000).tobytes()
    one = world.pack("one.slm", graph)
    draft = slm.draft()
    draft["graphs"][0]["file"] = "renamed.tflite"
    members = slm.members(tiny__tflite=None, renamed__tflite=graph)
    slm.pack(tmp_path / "two.slm", members, graphs=draft["graphs"])
    assert world.share(one, tmp_path / "two.slm") < 0.002


def test_text_with_insertions_takes_little_more_than_what_was_inserted(world, slm):
    words = [f'"word{number * 7919 % 65537}": {number}' for number in range(20_000)]
    text = '{{"model": {{"vocab": {{{}}}}}}}'
    one = world.pack("one.slm", slm.graph, tokenizer__json=text.format(", ".join(words)).encode())
    for at in (15, 9_000, 9_001, 19_000):
        words.insert(at, f'"inserted {at} {"x" * 30}": {at}')
    two = world.pack("two.slm", slm.graph, tokenizer__json=text.format(", ".join(words)).encode())
    assert world.share(one, two) * two.stat().st_size < 1_500


def test_random_new_values_take_their_places_and_their_bytes(world):
    old, chance = weights(2**20), np.random.default_rng(3)
    new = old.copy()
    at = np.flatnonzero(chance.random(len(old)) < 0.05)
    new[at] = chance.integers(-128, 128, len(at))
    one, two = world.pack("one.slm", HEAD + old.tobytes()), world.pack("two.slm", HEAD + new.tobytes())
    assert world.share(one, two) < 0.09


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.002, 0.11, 0.24, 0.3, 1.0])
def test_any_share_of_changes_comes_out_right(world, share):
    old = weights(FRAME_BYTES + 12_345)
    one, two = (
        world.pack("one.slm", HEAD + old.tobytes()),
        world.pack("two.slm", HEAD + stepped(old, share).tobytes()),
    )
    assert world.share(one, two) < 0.002 + 0.4 * share**0.6


def test_what_the_base_does_not_have_is_carried_whole(world):
    one = world.pack("one.slm", HEAD + weights(300_000, 1).tobytes())
    two = world.pack("two.slm", HEAD + weights(2_400_000, 2).tobytes(), more__bin=b"text " * 1000)
    assert world.share(one, two) < 1.002
    assert world.share(two, one) < 1.002


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_two_packages_have_a_delta_that_is_right(world, slm, data):
    pieces = [
        data.draw(st.binary(max_size=200)),
        *(weights(n, n).tobytes() for n in data.draw(st.lists(st.integers(0, 3000), max_size=4))),
    ]
    graphs = [
        HEAD[:8] + b"".join(data.draw(st.permutations(pieces))[: data.draw(st.integers(0, 5))]) for _ in "12"
    ]
    one = world.pack("one.slm", graphs[0], extra__bin=data.draw(st.sampled_from([b"", b"x"])))
    two = world.pack("two.slm", graphs[1], extra__bin=data.draw(st.sampled_from([b"", b"xy", b"y" * 999])))
    assert world.share(one, two) >= 0


def test_frames_end_where_the_file_does(world, monkeypatch):
    for module in (delta_module, making_module):
        monkeypatch.setattr(module, "FRAME_BYTES", 512)
    old = weights(5_000)
    one, two = (
        world.pack("one.slm", HEAD + old.tobytes()),
        world.pack("two.slm", HEAD + stepped(old, 0.1).tobytes()),
    )
    world.share(one, two)
    for size in range(two.stat().st_size, two.stat().st_size + 520, 40):
        padded = HEAD + stepped(old, 0.1).tobytes() + bytes(size - two.stat().st_size)
        world.share(one, world.pack("three.slm", padded))


# --- images -------------------------------------------------------------------------------------------------


def test_an_installed_package_reads_as_its_file(world, slm):
    path = world.pack("one.slm", slm.graph, empty__bin=b"", one__bin=b"x")
    with PackageImage(world.install(path)) as image, FileImage(path) as file:
        whole = path.read_bytes()
        assert image.size_bytes == file.size_bytes == len(whole)
        for offset in range(0, len(whole) + 2, 7):
            for size in (0, 1, 30, 700, len(whole)):
                assert image.read(offset, size) == file.read(offset, size) == whole[offset : offset + size]


def test_a_member_that_shrinks_under_an_image_is_an_error(world, slm):
    installed = world.install(world.pack("one.slm", slm.graph))
    with PackageImage(installed) as image:
        os.truncate(installed.file("tiny.tflite"), 5)
        with pytest.raises(PackageError, match="changed while it was read"):
            image.read(0, image.size_bytes)


# --- faults -------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(world):
    old = weights(20_000)
    one = world.pack("one.slm", HEAD + old.tobytes())
    two = world.pack("two.slm", HEAD + stepped(old, 0.05).tobytes())
    return world.install(one), two, world.delta(one, two)


def attempt(tmp_path, pair, delta: Path) -> str:
    """Apply `delta`, which has to fail and to leave nothing; what it is told."""
    base, target, _ = pair
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(DeltaError) as caught:
        apply_delta(
            delta, base, tmp_path / "out.slm", sha256=sha256_file(target), size_bytes=target.stat().st_size
        )
    assert caught.value.path == str(delta)
    assert str(caught.value).isprintable()
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    return str(caught.value)


def test_a_delta_cut_anywhere_is_refused(tmp_path, pair):
    whole = pair[2].read_bytes()
    for cut in [*range(200), *range(200, len(whole), 97), len(whole) - 1]:
        (tmp_path / "cut.delta").write_bytes(whole[:cut])
        attempt(tmp_path, pair, tmp_path / "cut.delta")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_a_changed_byte_never_gives_another_file(tmp_path, pair, position, flip):
    data = bytearray(pair[2].read_bytes())
    data[position % len(data)] ^= flip
    (tmp_path / "changed.delta").write_bytes(data)
    base, target, _ = pair
    out = tmp_path / "out.slm"
    try:
        apply_delta(
            tmp_path / "changed.delta",
            base,
            out,
            sha256=sha256_file(target),
            size_bytes=target.stat().st_size,
        )
    except DeltaError:
        assert not out.exists()
    else:  # DEFLATE has bits that mean nothing
        assert out.read_bytes() == target.read_bytes()
        out.unlink()


def deflated(data: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflater.compress(data) + deflater.flush()


def unended(data: bytes) -> bytes:
    """All of the data, and no last block."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflater.compress(data) + deflater.flush(zlib.Z_SYNC_FLUSH)


def frame(runs: bytes, gaps: bytes = b"", values: bytes = b"", *, plain: int | None = None) -> bytes:
    """A frame with stored parts; with `plain` the values are said to inflate to so many bytes."""
    stored = [len(runs), len(runs), len(gaps), len(gaps), len(values)]
    return FRAME.pack(*stored, len(values) if plain is None else plain) + runs + gaps + values


BOMB = deflated(bytes(50 * 2**20))


def zeros(length: int, gaps: bytes, values: bytes = b"", *, plain: int | None = None) -> bytes:
    """A frame of one run of zeros."""
    return frame(RUN.pack(length, -1), gaps, values, plain=plain)


HOSTILE = {
    "no_frame": ("ends early", lambda n, b: b""),
    "bytes_behind": ("behind its last frame", lambda n, b: frame(RUN.pack(n, -1)) + b"x"),
    "run_of_nothing": ("run that leaves its frame", lambda n, b: frame(RUN.pack(0, -1) + RUN.pack(n, -1))),
    "runs_too_short": ("do not fill", lambda n, b: frame(RUN.pack(n - 1, -1))),
    "runs_too_long": ("run that leaves its frame", lambda n, b: frame(RUN.pack(n + 1, -1))),
    "run_of_gibibytes": ("run that leaves its frame", lambda n, b: frame(RUN.pack(2**32 - 1, -1))),
    "run_before_the_base": ("leaves the base", lambda n, b: frame(RUN.pack(n, -2))),
    "run_behind_the_base": ("leaves the base", lambda n, b: frame(RUN.pack(n, b - n + 1))),
    "run_far_behind_the_base": ("leaves the base", lambda n, b: frame(RUN.pack(n, 2**63 - 1))),
    "broken_runs": ("broken list", lambda n, b: frame(RUN.pack(n, -1)[:-1])),
    "many_runs": ("no part of a frame", lambda n, b: frame(RUN.pack(1, 0) * 5000)),
    "place_outside": ("that leaves its frame", lambda n, b: zeros(n, b"\xff" * (n // 255) + b"\xfe", b"\0\1")),
    "places_without_values": ("broken palette", lambda n, b: zeros(n, b"\1\1")),
    "more_places_than_values": ("another number", lambda n, b: zeros(n, b"\1\1", b"\0\1")),
    "fewer_places_than_values": ("another number", lambda n, b: zeros(n, b"\1", b"\0\1\1")),
    "many_places": ("no part of a frame", lambda n, b: zeros(n, bytes(2**20))),
    "palette_too_large": ("broken palette", lambda n, b: zeros(n, b"\1", b"\x11" + bytes(17) + b"\0")),
    "palette_cut": ("broken palette", lambda n, b: zeros(n, b"\1", b"\4\0")),
    "values_for_another_frame": ("another number", lambda n, b: zeros(n, b"", b"\0" + bytes(n + 1))),
    "palette_of_another_count": ("another number", lambda n, b: zeros(n, b"\1", b"\1\7\0\0")),
    "part_of_gibibytes": ("no part of a frame", lambda n, b: zeros(n, b"", b"", plain=2**32 - 1)),
    "packed_larger_than_plain": ("no part of a frame", lambda n, b: zeros(n, b"", b"abc", plain=2)),
    "bomb": ("inflates to another size", lambda n, b: zeros(n, b"", BOMB, plain=2**20)),
    "not_deflate": ("does not inflate", lambda n, b: zeros(n, b"", b"\xff" * 9, plain=n + 1)),
    "endless_deflate": ("inflates to another size", lambda n, b: zeros(n, b"", unended(bytes(n + 1)), plain=n + 1)),
    "bytes_behind_deflate": (
        "inflates to another size", lambda n, b: zeros(n, b"", deflated(bytes(n + 1)) + b"x", plain=n + 1)
    ),
    "right_form_wrong_file": ("rebuilds", lambda n, b: frame(RUN.pack(n, -1))),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_delta_is_refused(tmp_path, pair, name):
    header = read_header(pair[2])
    words, spoil = HOSTILE[name]
    (tmp_path / "hostile.delta").write_bytes(header.encode() + spoil(header.target_bytes, header.base_bytes))
    assert words in attempt(tmp_path, pair, tmp_path / "hostile.delta")


def test_a_right_frame_by_hand_is_taken(tmp_path, pair):
    base, target, delta = pair
    header, whole = read_header(delta), target.read_bytes()
    by_hand = header.encode() + frame(RUN.pack(len(whole), -1), b"", b"\0" + whole)
    (tmp_path / "hand.delta").write_bytes(by_hand)
    apply_delta(
        tmp_path / "hand.delta", base, tmp_path / "out.slm", sha256=sha256_file(target), size_bytes=len(whole)
    )
    assert (tmp_path / "out.slm").read_bytes() == whole


@pytest.mark.parametrize("field", ["magic", "version", "base", "base_bytes", "target", "target_bytes"])
def test_a_delta_for_something_else_is_refused(tmp_path, pair, field):
    data = bytearray(pair[2].read_bytes())
    data[
        {"magic": 0, "version": 8, "base": 12, "base_bytes": 44, "target": 52, "target_bytes": 84}[field]
    ] ^= 1
    (tmp_path / "other.delta").write_bytes(data)
    attempt(tmp_path, pair, tmp_path / "other.delta")


def test_sizes_beyond_every_package_are_refused(tmp_path, pair):
    for at in (44, 84):
        data = bytearray(pair[2].read_bytes())
        data[at : at + 8] = struct.pack("<Q", 2**50)
        (tmp_path / "huge.delta").write_bytes(data)
        with pytest.raises(DeltaError, match="no package has"):
            read_header(tmp_path / "huge.delta")


def test_a_damaged_base_is_found_by_the_result(tmp_path, pair):
    base = pair[0]
    path = base.file("tiny.tflite")
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[9000] ^= 1
    path.write_bytes(data)
    attempt(tmp_path, pair, pair[2])


def test_a_missing_member_of_the_base_is_a_package_error(tmp_path, pair):
    pair[0].file("LICENSE.txt").unlink()
    with pytest.raises(PackageError) as caught:
        apply_delta(pair[2], pair[0], tmp_path / "out.slm", sha256="0" * 64, size_bytes=1)
    assert "LICENSE.txt" in caught.value.path


def test_what_is_no_file_is_refused(tmp_path, pair):
    os.mkfifo(tmp_path / "fifo.delta")
    attempt(tmp_path, pair, tmp_path / "fifo.delta")
    attempt(tmp_path, pair, tmp_path / "missing.delta")


def test_a_full_disk_leaves_what_was_there(tmp_path, pair, monkeypatch):
    base, target, delta = pair
    (tmp_path / "out.slm").write_bytes(b"before")

    def refuse(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StoreError, match="No space left"):
        apply_delta(
            delta, base, tmp_path / "out.slm", sha256=sha256_file(target), size_bytes=target.stat().st_size
        )
    with pytest.raises(StoreError, match="No space left"):
        make_delta(target, target, tmp_path / "out.slm")
    assert (tmp_path / "out.slm").read_bytes() == b"before"
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name or path.name.startswith(".out")]


def test_an_apply_killed_at_any_write_can_be_repeated(tmp_path, pair, monkeypatch):
    base, target, delta = pair
    out = tmp_path / "out.slm"

    def apply() -> None:
        apply_delta(delta, base, out, sha256=sha256_file(target), size_bytes=target.stat().st_size)

    for step in range(100):
        child = os.fork()
        if not child:
            count = 0

            def kill(event: str, _arguments: object) -> None:
                nonlocal count
                if event in {"open", "os.rename", "os.remove"} or event == "step":
                    if count == step:  # noqa: B023 - the child never sees the next one
                        os.kill(os.getpid(), signal.SIGKILL)
                    count += 1

            sys.addaudithook(kill)
            apply()
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert not out.exists() or out.read_bytes() == target.read_bytes()
        out.unlink(missing_ok=True)
        if killed == 0:
            break
    assert step > 8
    apply()
    assert out.read_bytes() == target.read_bytes()
    assert not (tmp_path / ".out.slm.partial").exists()


def test_a_delta_that_does_not_give_the_target_never_gets_its_name(tmp_path, pair, monkeypatch):
    monkeypatch.setattr(making_module, "_packed_values", lambda values: b"\0" + bytes(len(values)))
    with pytest.raises(DeltaError, match="does not rebuild"):
        make_delta(tmp_path / "one.slm", pair[1], tmp_path / "x.delta")
    assert not list(tmp_path.glob("*x.delta*"))


@pytest.mark.parametrize("what", ["no package", "missing"])
def test_deltas_are_made_of_packages_only(tmp_path, pair, what):
    if what == "no package":
        (tmp_path / "bad.slm").write_bytes(b"bad")
    with pytest.raises(PackageError):
        make_delta(pair[1], tmp_path / "bad.slm", tmp_path / "x.delta")
    with pytest.raises(PackageError):
        make_delta(tmp_path / "bad.slm", pair[1], tmp_path / "x.delta")
    assert not list(tmp_path.glob("*x.delta*"))


MEASURE = """
    import sys
    from pathlib import Path
    from edgeslm.models.delta import apply_delta, read_header
    from edgeslm.models.store import ModelStore

    def peak_kib():
        return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

    base = ModelStore(Path(sys.argv[1])).list()[0]
    delta = Path(sys.argv[2])
    header = read_header(delta)
    before = peak_kib()
    try:
        apply_delta(delta, base, Path(sys.argv[3]), sha256=header.target_sha256, size_bytes=header.target_bytes)
    except Exception as error:
        print(type(error).__name__, file=sys.stderr)
    print((peak_kib() - before) / 1024)
"""


def extra_memory_mib(store: Path, delta: Path, out: Path) -> float:
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(store), str(delta), str(out)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)


def test_applying_takes_less_than_16_mib_of_memory(tmp_path, world):
    old = weights(24 * 2**20)
    one, two = (
        world.pack("one.slm", HEAD + old.tobytes()),
        world.pack("two.slm", HEAD + stepped(old, 0.05).tobytes()),
    )
    world.install(one)
    delta = world.delta(one, two)
    assert extra_memory_mib(tmp_path / "store", delta, tmp_path / "out.slm") < 16
    assert (tmp_path / "out.slm").read_bytes() == two.read_bytes()


def test_a_hostile_delta_takes_no_more_memory(tmp_path, world):
    one = world.pack("one.slm", HEAD + weights(3 * 2**20).tobytes())
    world.install(one)
    header = read_header(world.delta(one, one))
    dense = frame(RUN.pack(FRAME_BYTES, -1), bytes(2**18), b"\0" + bytes(2**18))
    bomb = frame(RUN.pack(FRAME_BYTES, -1), b"", BOMB, plain=2**20 + 17)
    larger_than_a_frame = frame(RUN.pack(FRAME_BYTES, -1), b"", BOMB, plain=50 * 2**20)
    for body in (dense * 3, bomb, larger_than_a_frame):
        (tmp_path / "hostile.delta").write_bytes(header.encode() + body)
        assert extra_memory_mib(tmp_path / "store", tmp_path / "hostile.delta", tmp_path / "out.slm") < 16
        assert not (tmp_path / "out.slm").exists()


def test_the_header_says_what_leads_where(pair):
    base, target, delta = pair
    header = read_header(delta)
    assert header.base_sha256 == base.sha256
    assert header.target_sha256 == hashlib.sha256(target.read_bytes()).hexdigest()
    assert (header.target_bytes, len(header.encode())) == (target.stat().st_size, HEADER.size)
    assert issubclass(DeltaError, EdgeslmError)
