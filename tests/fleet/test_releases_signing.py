"""Keys on the operator's disk, and the first repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_trust_rig import fast_directory
from edgeslm.errors import EdgeslmError, MetadataError, SigningKeyError
from edgeslm.fleet.release_setup import assignment_signer, online_signers, set_up
from edgeslm.fleet.signing import (
    PASSPHRASE_VARIABLE,
    create_key,
    load_public_key,
    load_signer,
    passphrase_source,
    sign_file,
)
from edgeslm.trust.fetch import DirectoryFetch
from edgeslm.trust.releases import TrustedReleases, enrol
from edgeslm.trust.storage import TrustStorage

WORDS = b"correct horse battery staple"


def _words(path: Path) -> bytes:
    return WORDS


def test_a_key_signs_after_it_was_written_and_opened_again(tmp_path: Path):
    public = create_key(tmp_path / "root.pem", WORDS)
    signer = load_signer(tmp_path / "root.pem", _words)
    signature = signer.sign(b"data")
    public.verify_signature(signature, b"data")
    assert load_public_key(tmp_path / "root.pub") == public == signer.public_key


def test_a_key_is_for_its_owner_alone_and_not_in_the_clear(tmp_path: Path):
    create_key(tmp_path / "keys" / "root.pem", WORDS)
    assert (tmp_path / "keys" / "root.pem").stat().st_mode & 0o077 == 0
    assert (tmp_path / "keys").stat().st_mode & 0o077 == 0
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in (tmp_path / "keys" / "root.pem").read_bytes()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_opens_an_encrypted_key(tmp_path: Path):
    create_key(tmp_path / "root.pem", WORDS)
    command = ["openssl", "pkey", "-in", str(tmp_path / "root.pem"), "-passin", "env:WORDS", "-pubout"]
    done = subprocess.run(
        command, env={**os.environ, "WORDS": WORDS.decode()}, capture_output=True, check=False
    )
    assert done.stdout == (tmp_path / "root.pub").read_bytes(), done.stderr


@pytest.mark.parametrize("given_words", [b"", b"wrong horse battery staple", WORDS + b"\n"])
def test_another_passphrase_does_not_open_it(tmp_path: Path, given_words: bytes):
    create_key(tmp_path / "root.pem", WORDS)
    with pytest.raises(SigningKeyError):
        load_signer(tmp_path / "root.pem", lambda path: given_words)


def test_a_short_passphrase_is_not_taken(tmp_path: Path):
    with pytest.raises(SigningKeyError):
        create_key(tmp_path / "root.pem", b"short")
    assert list(tmp_path.iterdir()) == []


def test_a_key_is_never_overwritten(tmp_path: Path):
    create_key(tmp_path / "root.pem", None)
    before = (tmp_path / "root.pem").read_bytes()
    with pytest.raises(SigningKeyError):
        create_key(tmp_path / "root.pem", None)
    assert (tmp_path / "root.pem").read_bytes() == before


def test_keys_of_another_kind_are_told(tmp_path: Path):
    private = generate_private_key(SECP256R1())
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "p256.pem").write_bytes(pem)
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "p256.pub").write_bytes(public)
    with pytest.raises(SigningKeyError):
        load_signer(tmp_path / "p256.pem")
    with pytest.raises(SigningKeyError):
        load_public_key(tmp_path / "p256.pub")


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_rubbish_is_no_key(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    path = tmp_path_factory.getbasetemp() / "rubbish.pem"
    path.write_bytes(data)
    for read in (lambda: load_signer(path, _words), lambda: load_public_key(path)):
        with pytest.raises(SigningKeyError):
            read()


def test_a_passphrase_comes_from_a_file_then_the_environment_then_a_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "words").write_text("from a file\nsecond line\n")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "from the environment")
    key = tmp_path / "root.pem"
    assert passphrase_source(file=tmp_path / "words", prompt=lambda text: "asked")(key) == b"from a file"
    assert passphrase_source(prompt=lambda text: "asked")(key) == b"from the environment"
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    assert (
        passphrase_source(prompt=lambda text: f"asked for {text}")(key)
        == b"asked for Passphrase of root.pem: "
    )
    with pytest.raises(SigningKeyError):
        passphrase_source()(key)


def test_only_metadata_is_signed(tmp_path: Path):
    create_key(tmp_path / "a.pem", None)
    for name, data in (
        ("root.json", b"{}"),
        ("targets.json", b"\xff"),
        ("x.json", b'{"signed":{},"signatures":[]}'),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(MetadataError):
            sign_file(tmp_path / name, load_signer(tmp_path / "a.pem"))
        assert (tmp_path / name).read_bytes() == data
    with pytest.raises(EdgeslmError):
        sign_file(tmp_path / "missing.json", load_signer(tmp_path / "a.pem"))


# --- the first repository ---


def test_a_first_repository_is_one_that_devices_trust(tmp_path: Path):
    repository = set_up(tmp_path / "releases", tmp_path / "keys", "home", _words)
    storage = TrustStorage(tmp_path / "device")
    enrol(storage, repository.root_bytes())
    state = TrustedReleases(storage, DirectoryFetch(repository.public)).refresh()
    assert (state.root, state.targets) == (1, 1)
    assert [
        b"ENCRYPTED" in (tmp_path / "keys" / f"{role}.pem").read_bytes() for role in ("root", "targets")
    ] == [True] * 2
    assert len(online_signers(tmp_path / "keys")) == 2
    assert assignment_signer(tmp_path / "keys")


@pytest.fixture
def fast() -> Iterator[Path]:
    with fast_directory() as directory:
        yield directory


@pytest.fixture
def _quick_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretching passphrases takes most of the time of a set-up, and is tested by itself."""
    monkeypatch.setattr("edgeslm.fleet.signing._SCRYPT_P", 1)
    monkeypatch.setattr("edgeslm.fleet.signing._SCRYPT_N", 2)


@pytest.mark.usefixtures("_quick_keys")
def test_setting_up_again_changes_nothing(tmp_path: Path):
    set_up(tmp_path / "releases", tmp_path / "keys", "home", _words)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    set_up(tmp_path / "releases", tmp_path / "keys", "home", _words)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("_quick_keys")
def test_setting_up_can_be_cut_off_anywhere(fast: Path, monkeypatch: pytest.MonkeyPatch):
    real, limit = os.replace, 0

    class CutOff(BaseException):
        pass

    def replace(*args: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise CutOff
        real(*args)

    monkeypatch.setattr(os, "replace", replace)
    while True:
        left = limit
        try:
            set_up(fast / str(limit) / "releases", fast / str(limit) / "keys", "home", _words)
            break
        except CutOff:
            left = 10_000
        repository = set_up(fast / str(limit) / "releases", fast / str(limit) / "keys", "home", _words)
        assert repository.pending() == ()
        assert repository.root_bytes()
        limit += 1
    assert limit > 15
