from __future__ import annotations

import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_trust_rig import hostile_web
from edgeslm.errors import (
    MetadataFetchError,
    MetadataMissingError,
    MetadataSizeError,
    SlowRetrievalError,
    UsageError,
)
from edgeslm.trust.fetch import DirectoryFetch, Fetch, HttpFetch, check_path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "timestamp.json").write_bytes(b"x" * 1000)
    (tmp_path / "secret").symlink_to("/etc/passwd")
    return tmp_path


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for this machine that nobody knows, with its key."""
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "here")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2020, 1, 1))
        .not_valid_after(datetime(2090, 1, 1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(pem + made.public_bytes(Encoding.PEM))
    return path


@contextmanager
def _served(root: Path, certificate: Path | None = None) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root)))
    server.handle_error = lambda *args: None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.02))
    thread.start()
    try:
        yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(params=["directory", "http", "http-below-a-path", "https"])
def fetch(request: pytest.FixtureRequest, directory: Path, certificate: Path) -> Iterator[Fetch]:
    """The contract below holds for every adapter."""
    if request.param == "directory":
        yield DirectoryFetch(directory)
    elif request.param == "https":
        with _served(directory, certificate) as address:
            yield HttpFetch(address, tls=ssl.create_default_context(cafile=str(certificate)))
    elif request.param == "http":
        with _served(directory) as address:
            yield HttpFetch(address)
    else:
        with _served(directory.parent) as address:
            yield HttpFetch(f"{address}/{directory.name}/")


def test_gives_the_whole_file(fetch: Fetch):
    assert fetch("metadata/timestamp.json", 1000) == b"x" * 1000


def test_gives_nothing_of_a_file_that_is_longer_than_asked_for(fetch: Fetch):
    with pytest.raises(MetadataSizeError):
        fetch("metadata/timestamp.json", 999)


def test_says_that_there_is_no_such_file(fetch: Fetch):
    with pytest.raises(MetadataMissingError):
        fetch("metadata/2.root.json", 1000)


@pytest.mark.parametrize(
    "path", ["../up", "a/../../b", "/etc/passwd", "", "a//b", ".hidden", "a b", "a\r\nb", "a?b"]
)
def test_refuses_a_path_that_is_none(fetch: Fetch, path: str):
    with pytest.raises(MetadataFetchError):
        fetch(path, 1000)


def test_does_not_follow_a_link_out_of_a_directory(directory: Path):
    with pytest.raises(MetadataFetchError):
        DirectoryFetch(directory)("secret", 100_000)


def test_a_directory_that_is_not_there_is_no_missing_file(tmp_path: Path):
    # A missing root would read as the end of the chain of roots.
    with pytest.raises(MetadataFetchError) as caught:
        DirectoryFetch(tmp_path / "unmounted")("metadata/2.root.json", 1000)
    assert not isinstance(caught.value, MetadataMissingError)


def test_a_server_with_a_certificate_that_nobody_knows_is_told(directory: Path, certificate: Path):
    with _served(directory, certificate) as address, pytest.raises(MetadataFetchError, match="CERTIFICATE"):
        HttpFetch(address)("metadata/timestamp.json", 1000)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", b"HTTP/1.1 500 No\r\n\r\n", b"\xff" * 99]
)
def test_an_answer_that_is_no_file_is_no_missing_file_either(answer: bytes):
    with hostile_web(lambda connection: connection.sendall(answer)) as address:
        with pytest.raises(MetadataFetchError) as caught:
            HttpFetch(address)("metadata/2.root.json", 1000)
        assert not isinstance(caught.value, MetadataMissingError)


def test_the_deadline_holds_however_long_silence_is_borne():
    began_s = time.monotonic()
    with hostile_web(lambda connection: connection.recv(1)) as address:
        with pytest.raises(SlowRetrievalError):
            HttpFetch(address, timeout_s=5, deadline_s=0.2)("metadata/timestamp.json", 1000)
        assert time.monotonic() - began_s < 2


def test_a_server_that_is_not_there_is_told():
    with pytest.raises(MetadataFetchError):
        HttpFetch("http://127.0.0.1:1", timeout_s=1)("metadata/timestamp.json", 1000)


@pytest.mark.parametrize(
    "address",
    [
        "ftp://host/",
        "host/path",
        "http://",
        "http://host/?query",
        "file:///etc",
        "http://h:99999",
        "http://[::",
    ],
)
def test_refuses_an_address_that_is_none(address: str):
    with pytest.raises(UsageError):
        HttpFetch(address)


@given(st.lists(st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}", fullmatch=True), min_size=1, max_size=8))
def test_takes_every_path_that_a_repository_has(parts: list[str]):
    check_path("/".join(parts))
