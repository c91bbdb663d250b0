"""The store holds whole packages or none, whatever is killed, cut off or full."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeslm.errors import (
    PackageContentError,
    PackageError,
    PackageFormatError,
    PackageHashError,
    PackageSizeError,
    StoreError,
)
from edgeslm.models import store as store_module
from edgeslm.models.store import ModelStore

STEPS = (
    "open",
    "os.mkdir",
    "os.rename",
    "os.symlink",
    "os.remove",
    "os.rmdir",
    "os.chmod",
    "os.listdir",
    "fcntl.flock",
)


def in_child(work: Callable[[], object], *, at: int | None = None, send: int = signal.SIGKILL) -> int:
    """Run `work` in a forked process that sends itself a signal before its step number `at`; its process id.

    A step is a call that touches the file system, every fsync included.
    """
    child = os.fork()
    if child:
        return child
    status = 3
    try:
        count = 0

        def step(event: str, _arguments: object = None) -> None:
            nonlocal count
            if event in STEPS or event == "fsync":
                if count == at:
                    os.kill(os.getpid(), send)
                count += 1

        sync = os.fsync

        def counted_sync(descriptor: int) -> None:
            step("fsync")
            sync(descriptor)

        os.fsync = counted_sync
        sys.addaudithook(step)
        work()
        status = 0
    finally:
        os._exit(status)


def wait(child: int) -> int:
    """Its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def package(tmp_path, slm) -> tuple[Path, str]:
    return tmp_path / "tiny.slm", slm.pack(tmp_path / "tiny.slm")


@pytest.fixture
def other(tmp_path, slm) -> tuple[Path, str]:
    return tmp_path / "other.slm", slm.pack(tmp_path / "other.slm", version="2.0.0")


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "models"


# --- installing ---------------------------------------------------------------------------------------------


def test_installs_under_the_digest_of_the_file(root, package, slm):
    store = ModelStore(root)
    installed = store.install(package[0])
    assert installed.sha256 == package[1]
    assert installed.directory == root / f"sha256-{package[1]}"
    assert installed.file("tiny.tflite").read_bytes() == slm.graph
    assert store.get(package[1]) == installed
    assert store.list() == (installed,)
    assert store.contains(package[1])
    store.verify(installed)


def test_installing_again_changes_nothing(root, package, tree):
    store = ModelStore(root)
    first = store.install(package[0])
    before = tree(root)
    stamp = first.file("tiny.tflite").stat().st_ino
    assert store.install(package[0]) == first
    assert tree(root) == before
    assert first.file("tiny.tflite").stat().st_ino == stamp


def test_what_is_known_to_be_there_is_not_read_again(root, package):
    store = ModelStore(root)
    first = store.install(package[0])
    package[0].unlink()
    assert store.install(package[0], expected_sha256=package[1]) == first


def test_refuses_a_file_other_than_expected(root, package, other, tree):
    store = ModelStore(root)
    before = tree(root)
    with pytest.raises(PackageHashError) as caught:
        store.install(package[0], expected_sha256=other[1])
    assert (caught.value.expected, caught.value.actual) == (other[1], package[1])
    assert tree(root) == before


def test_a_damaged_package_is_replaced_by_installing_again(root, package):
    store = ModelStore(root)
    installed = store.install(package[0])
    installed.file("tiny.tflite").unlink()
    with pytest.raises(PackageContentError, match="Install the package again"):
        store.get(package[1])
    store.verify(store.install(package[0]))
    assert not list(root.glob(".partial-*"))


def test_refuses_a_package_larger_than_the_free_space(root, package, tree, monkeypatch):
    store = ModelStore(root)
    before = tree(root)
    usage = store_module.shutil.disk_usage(root)
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    with pytest.raises(
        StoreError, match=r"no room for tiny 1\.0\.0: it needs 17 MiB, 1 MiB are free"
    ) as caught:
        store.install(package[0])
    assert caught.value.path == str(root)
    assert caught.value.free_bytes == 2**20
    assert caught.value.needed_bytes is not None
    assert caught.value.needed_bytes > 16 * 2**20
    assert tree(root) == before


def test_a_root_that_cannot_be_made_is_a_store_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        ModelStore(tmp_path / "file" / "models")


# --- reading ------------------------------------------------------------------------------------------------


def test_what_is_not_installed_is_an_error(root, package):
    store = ModelStore(root)
    assert store.list() == ()
    assert not store.contains(package[1])
    with pytest.raises(StoreError, match="no package"):
        store.get(package[1])


@pytest.mark.parametrize("digest", ["", "../../etc", "0" * 63, "G" * 64, "0" * 64 + "\n"])
def test_a_digest_never_becomes_another_path(root, digest):
    store = ModelStore(root)
    for call in (store.get, store.contains, store.remove):
        with pytest.raises(StoreError, match="no sha256"):
            call(digest)


@pytest.mark.parametrize("name", ["", "..", "../x", "A", "a/b", "a\n"])
def test_a_name_never_becomes_another_path(root, package, name):
    store = ModelStore(root)
    store.install(package[0])
    with pytest.raises(StoreError, match="cannot be the name"):
        store.set_current(name, package[1])
    with pytest.raises(StoreError, match="cannot be the name"):
        store.current(name)


@pytest.mark.parametrize(
    ("member", "data", "error"),
    [
        ("manifest.json", b"{", PackageFormatError),
        ("manifest.json", b'{"format": 9}', PackageFormatError),
        ("manifest.json", b"x" * (2**20 + 1), PackageSizeError),
        ("manifest.json", None, PackageContentError),
        ("tiny.tflite", None, PackageContentError),
        ("tiny.tflite", b"short", PackageSizeError),
        ("more", b"", PackageContentError),
    ],
)
def test_damage_is_an_error_and_never_silence(root, package, member, data, error):
    store = ModelStore(root)
    path = store.install(package[0]).file(member)
    path.unlink(missing_ok=True)
    if data is not None:
        path.write_bytes(data)
    for call in (lambda: store.get(package[1]), store.list):
        with pytest.raises(error) as caught:
            call()
        assert caught.value.path == str(root / f"sha256-{package[1]}")
        assert caught.value.member == member
    assert store.remove(package[1])
    assert store.list() == ()


def test_a_link_in_place_of_a_member_is_an_error(root, package, tmp_path):
    store = ModelStore(root)
    path = store.install(package[0]).file("tiny.tflite")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PackageContentError, match="is not a file"):
        store.get(package[1])


@pytest.mark.parametrize("member", ["manifest.json", "tiny.tflite", "LICENSE.txt"])
def test_verify_finds_one_changed_byte(root, package, member):
    store = ModelStore(root)
    installed = store.install(package[0])
    path = installed.file(member)
    data = (
        path.read_bytes()
        .replace(b"for tests", b"for tasts")
        .replace(b"Licence", b"Licance")
        .replace(b"\xfe", b"!")
    )
    path.unlink()
    path.write_bytes(data)
    store.get(package[1])
    with pytest.raises(PackageHashError) as caught:
        store.verify(installed)
    assert caught.value.member == member


def test_a_package_under_the_name_of_another_is_found(root, package, other):
    store = ModelStore(root)
    first, second = store.install(package[0]), store.install(other[0])
    store.remove(package[1])
    second.directory.rename(first.directory)
    with pytest.raises(PackageHashError, match="another package than its directory says"):
        store.verify(store.get(package[1]))


def test_a_store_without_write_access_can_be_read(root, package, monkeypatch):
    ModelStore(root).install(package[0])
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (root / ".lock").unlink()
    store = ModelStore(root)
    store.verify(store.list()[0])
    assert not (root / ".lock").exists()


# --- current and previous -----------------------------------------------------------------------------------


def test_a_new_current_keeps_the_one_before(root, package, other):
    store = ModelStore(root)
    first, second = store.install(package[0]), store.install(other[0])
    assert store.current("tiny") is None
    assert store.previous("tiny") is None
    assert store.set_current("tiny", first.sha256) == first
    assert (store.current("tiny"), store.previous("tiny")) == (first, None)
    store.set_current("tiny", second.sha256)
    store.set_current("tiny", second.sha256)
    assert (store.current("tiny"), store.previous("tiny")) == (second, first)
    assert (root / "current" / "tiny" / "manifest.json").is_file()
    assert ModelStore(root).current("tiny") == second


def test_only_an_installed_package_of_that_name_becomes_current(root, package):
    store = ModelStore(root)
    with pytest.raises(StoreError, match="no package"):
        store.set_current("tiny", package[1])
    store.install(package[0])
    with pytest.raises(StoreError, match="is tiny, not large"):
        store.set_current("large", package[1])
    assert store.current("tiny") is None
    assert store.current("large") is None


def test_packages_in_use_are_not_removed(root, package, other):
    store = ModelStore(root)
    for path, sha256 in (package, other):
        store.install(path)
        store.set_current("tiny", sha256)
    with pytest.raises(StoreError, match="previous for tiny"):
        store.remove(package[1])
    with pytest.raises(StoreError, match="current for tiny"):
        store.remove(other[1])
    store.drop_previous("tiny")
    store.drop_previous("tiny")
    assert store.previous("tiny") is None
    assert store.remove(package[1])
    assert not store.remove(package[1])
    assert [installed.sha256 for installed in store.list()] == [other[1]]
    assert not list(root.glob(".partial-*"))


@pytest.mark.parametrize("target", ["../sha256-" + "0" * 64, "/etc", "../../sha256-" + "0" * 64, "sha256-"])
def test_a_broken_link_is_an_error(root, target):
    store = ModelStore(root)
    (root / "current" / "tiny").symlink_to(target)
    with pytest.raises(StoreError):
        store.current("tiny")


def test_a_file_in_place_of_a_link_is_an_error(root):
    store = ModelStore(root)
    (root / "current" / "tiny").write_text("")
    with pytest.raises(StoreError, match="is no symbolic link"):
        store.current("tiny")


# --- crashes, full disks, other processes -------------------------------------------------------------------


def assert_whole(root: Path, package: tuple[Path, str]) -> None:
    """After reopening there is nothing, or a whole package; and no rubbish."""
    store = ModelStore(root)
    assert {path.name for path in root.iterdir()} <= {
        "current",
        "previous",
        ".lock",
        f"sha256-{package[1]}",
        *(path.name for path in root.glob("sha256-*")),
    }
    for installed in store.list():
        store.verify(installed)


def test_an_install_killed_at_any_step_leaves_nothing_or_a_whole_package(root, package):
    outcomes = set()
    for step in range(500):
        ended = wait(in_child(lambda: ModelStore(root).install(package[0]), at=step))
        assert_whole(root, package)
        store = ModelStore(root)
        outcomes.add(bool(store.list()))
        store.install(package[0])
        store.remove(package[1])
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    else:
        pytest.fail("the install never ended")
    assert step > 30
    assert outcomes == {True, False}


@pytest.mark.slow
def test_a_repair_killed_at_any_step_can_be_repeated(root, package):
    store = ModelStore(root)
    for step in range(500):
        store.install(package[0]).file("tiny.tflite").unlink()
        ended = wait(in_child(lambda: ModelStore(root).install(package[0]), at=step))
        store = ModelStore(root)
        assert not list(root.glob(".partial-*"))
        store.verify(store.install(package[0]))
        if ended == 0:
            return
        assert ended == -signal.SIGKILL
    pytest.fail("the install never ended")


def test_a_switch_killed_at_any_step_leaves_the_old_or_the_new(root, package, other):
    store = ModelStore(root)
    first, second = store.install(package[0]), store.install(other[0])
    seen = set()
    for step in range(200):
        store.set_current("tiny", first.sha256)
        store.drop_previous("tiny")
        ended = wait(in_child(lambda: ModelStore(root).set_current("tiny", second.sha256), at=step))
        store = ModelStore(root)
        now, before = store.current("tiny"), store.previous("tiny")
        assert now in (first, second)
        assert before in (None, first)
        assert before == first or now == first
        assert not list(root.glob(".partial-*"))
        seen.add(now.sha256)
        if ended == 0:
            break
    assert seen == {first.sha256, second.sha256}


def test_a_removal_killed_at_any_step_leaves_nothing_or_a_whole_package(root, package):
    for step in range(200):
        ModelStore(root).install(package[0])
        ended = wait(in_child(lambda: ModelStore(root).remove(package[1]), at=step))
        assert_whole(root, package)
        if ended == 0:
            break
    assert ModelStore(root).list() == ()


@pytest.mark.parametrize("name", ["fsync", "replace", "mkdir", "open"])
def test_a_disk_that_refuses_any_call_leaves_nothing_or_a_whole_package(
    root, package, tree, monkeypatch, name
):
    store = ModelStore(root)
    real, before, failed = getattr(os, name), tree(root), 0
    for at in range(100):
        count = -1

        def refuse(*arguments, **options):
            nonlocal count
            count += 1
            if count == at:  # noqa: B023 - called within this turn only
                raise OSError(28, "No space left on device")
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            try:
                store.install(package[0])
            except (StoreError, PackageError):
                failed += 1
        if store.contains(package[1]):
            store.verify(store.get(package[1]))
            store.remove(package[1])
        ModelStore(root)  # what clearing up could not remove, the next opening does
        assert tree(root) == before
        if count < at:
            break
    assert failed


def test_bytes_and_names_are_on_the_disk_before_a_package_gets_its_name(root, package, slm, monkeypatch):
    store = ModelStore(root)
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor):
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    def renamed(source, target):
        done.append(f"-> {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    store.install(package[0])
    members = ["manifest.json", *sorted(slm.members())]
    assert done == [*members, "package", f"-> sha256-{package[1]}", "models"]
    done.clear()
    store.set_current("tiny", package[1])
    assert done == ["-> tiny", "current"]


def test_processes_that_install_the_same_package_at_once_agree(root, package):
    children = [in_child(lambda: ModelStore(root).install(package[0])) for _ in range(6)]
    assert [wait(child) for child in children] == [0] * 6
    assert_whole(root, package)
    assert len(ModelStore(root).list()) == 1


def test_opening_the_store_leaves_a_living_install_alone(root, package):
    ModelStore(root)
    for at in range(12, 60, 6):
        child = in_child(lambda: ModelStore(root).install(package[0]), at=at, send=signal.SIGSTOP)
        if os.WIFEXITED(os.waitpid(child, os.WUNTRACED)[1]):
            break  # it has fewer steps
        # Where the child stands while it holds the lock, opening waits for it; so it is woken from aside.
        waker = in_child(lambda child=child: (time.sleep(0.05), os.kill(child, signal.SIGCONT)))
        store = ModelStore(root)
        assert wait(child) == 0
        wait(waker)
        store.verify(store.get(package[1]))
        store.remove(package[1])


def test_opening_the_store_clears_what_the_dead_left(root, package):
    ModelStore(root)
    (root / ".partial-dead" / "package").mkdir(parents=True)
    (root / ".partial-dead" / "package" / "tiny.tflite").write_bytes(b"half")
    (root / ".partial-link").symlink_to("nowhere")
    (root / "lost+found").mkdir()
    assert ModelStore(root).list() == ()
    assert sorted(path.name for path in root.iterdir()) == [".lock", "current", "lost+found", "previous"]
