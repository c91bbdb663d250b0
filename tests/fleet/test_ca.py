from __future__ import annotations

import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from edgeslm.errors import CertificateError, FleetSetupError, SigningKeyError, TopicError
from edgeslm.fleet import ca
from edgeslm.fleet.ca import CertificateAuthority, CertificateRequest, Revoked, read_request

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
MONTH = timedelta(days=30)


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return CertificateAuthority.create("green", NOW)


def request_of(key: object, *, alter: bool = False) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "green/somebody-else")])
    )
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    der = bytearray(builder.sign(key, algorithm).public_bytes(Encoding.DER))  # type: ignore[arg-type]
    if alter:
        der[-10] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()


def request() -> CertificateRequest:
    return read_request(request_of(ca.new_key()))


def parsed(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def test_the_name_is_the_fleet_s_word_not_the_request_s(authority: CertificateAuthority) -> None:
    issued = authority.issue_device(request(), "green", "kitchen", NOW, MONTH)
    names = parsed(issued.pem).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert [name.value for name in names] == ["green/kitchen"]


@pytest.mark.parametrize(
    "pem",
    [
        "",
        "rubbish",
        "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        "x" * 100_000,
        "\x00\ud800",
    ],
)
def test_what_is_no_request_is_refused(pem: str) -> None:
    with pytest.raises(CertificateError):
        read_request(pem)


@pytest.mark.parametrize(
    "key",
    [
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["ed25519", "p-384", "rsa"],
)
def test_a_request_for_another_kind_of_key_is_refused(key: object) -> None:
    with pytest.raises(CertificateError):
        read_request(request_of(key))


def test_a_request_that_its_key_did_not_sign_is_refused() -> None:
    with pytest.raises(CertificateError):
        read_request(request_of(ca.new_key(), alter=True))


@pytest.mark.parametrize("device", ["pool", "enrol", "Kitchen", "a/b", "+", "#", "", "a b"])
def test_no_certificate_bears_a_name_that_is_none(authority: CertificateAuthority, device: str) -> None:
    with pytest.raises(TopicError):
        authority.issue_device(request(), "green", device, NOW, MONTH)


def test_a_name_that_is_too_long_for_a_certificate_is_refused_with_the_room_there_is(
    authority: CertificateAuthority,
) -> None:
    authority.issue_device(request(), "green", "d" * 58, NOW, MONTH)
    with pytest.raises(FleetSetupError, match="58"):
        authority.issue_device(request(), "green", "d" * 59, NOW, MONTH)


def test_a_device_s_certificate_is_for_clients_alone(authority: CertificateAuthority) -> None:
    usage = parsed(authority.issue_device(request(), "green", "kitchen", NOW, MONTH).pem).extensions
    purposes = usage.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]
    assert usage.get_extension_for_class(x509.BasicConstraints).value.ca is False


def test_a_short_life_is_not_over_before_it_begins(authority: CertificateAuthority) -> None:
    issued = authority.issue_device(request(), "green", "kitchen", NOW, timedelta(minutes=10))
    assert NOW - timedelta(minutes=1) < issued.not_before <= NOW
    assert issued.not_after == NOW + timedelta(minutes=10)


def test_no_certificate_outlives_the_authority(authority: CertificateAuthority) -> None:
    issued = authority.issue_device(request(), "green", "kitchen", NOW, timedelta(days=365 * 50))
    assert issued.not_after == authority.not_after


# --- as TLS sees it -----------------------------------------------------------------------------------------


class Files:
    """Certificates in files, as OpenSSL wants them."""

    def __init__(self, directory: Path, authority: CertificateAuthority) -> None:
        self.directory = directory
        self.authority = authority
        (directory / "ca.crt").write_text(authority.certificate_pem)

    def put(self, name: str, key: ec.EllipticCurvePrivateKey, pem: str) -> Path:
        path = self.directory / name
        path.write_bytes(ca.key_pem(key) + pem.encode())
        return path

    def handshake(self, server_file: Path, host: str) -> None:
        """A client that is as strict as Python 3.13 is; raises what it objects to."""
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(server_file)
        client = ssl.create_default_context(cafile=str(self.directory / "ca.crt"))
        client.verify_flags |= ssl.VERIFY_X509_STRICT
        one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = (
            client.wrap_bio(one, other, server_hostname=host),
            server.wrap_bio(other, one, server_side=True),
        )
        for _ in range(4):
            for end in ends:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue


@pytest.fixture
def files(tmp_path: Path, authority: CertificateAuthority) -> Files:
    return Files(tmp_path, authority)


@pytest.mark.parametrize("host", ["broker.local", "192.168.1.7", "::1", "localhost"])
def test_a_strict_client_accepts_the_broker_under_its_name_or_address(files: Files, host: str) -> None:
    key = ca.new_key()
    issued = files.authority.issue_broker(key.public_key(), ["127.0.0.1", host], datetime.now(UTC))
    server = files.put("server.pem", key, issued.pem)
    files.handshake(server, host)
    with pytest.raises(ssl.SSLCertVerificationError):
        files.handshake(server, "elsewhere.local")


def test_a_device_cannot_stand_in_for_the_broker(files: Files) -> None:
    key = ca.new_key()
    request = CertificateRequest(key.public_key(), ca.key_digest(key.public_key()))
    issued = files.authority.issue_device(request, "green", "broker", datetime.now(UTC), MONTH)
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        files.handshake(files.put("device.pem", key, issued.pem), "broker")


def test_a_board_whose_clock_says_1970_accepts_the_broker(files: Files) -> None:
    key = ca.new_key()
    issued = files.authority.issue_broker(key.public_key(), ["broker.local"], NOW)
    (files.directory / "broker.crt").write_text(issued.pem)
    verdict = subprocess.run(
        ["openssl", "verify", "-attime", "0", "-purpose", "sslserver", "-CAfile", "ca.crt", "broker.crt"],
        cwd=files.directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert verdict.stdout == "broker.crt: OK\n", verdict.stderr


# --- the broker's certificate -------------------------------------------------------------------------------


def test_the_door_s_certificate_names_no_host_and_is_for_a_client(authority: CertificateAuthority) -> None:
    key = ca.new_key()
    issued = authority.issue_client(key.public_key(), "door", NOW)
    assert ca.is_current(issued.pem.encode(), ca.key_pem(key), [], NOW)
    assert not ca.is_current(issued.pem.encode(), ca.key_pem(key), ["broker.local"], NOW)
    purposes = parsed(issued.pem).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_broker_s_certificate_is_made_anew_in_time_and_for_another_host_or_key(
    authority: CertificateAuthority,
) -> None:
    key = ca.new_key()
    pem, key_file = (
        authority.issue_broker(key.public_key(), ["broker.local"], NOW).pem.encode(),
        ca.key_pem(key),
    )
    assert ca.is_current(pem, key_file, ["broker.local"], NOW)
    assert ca.is_current(pem, key_file, ["broker.local"], NOW + ca.BROKER_LIFE * 0.6)
    assert not ca.is_current(pem, key_file, ["broker.local"], NOW + ca.BROKER_LIFE * 0.7)
    assert not ca.is_current(pem, key_file, ["broker.local", "192.168.1.7"], NOW)
    assert not ca.is_current(pem, ca.key_pem(ca.new_key()), ["broker.local"], NOW)
    assert not ca.is_current(b"rubbish", key_file, ["broker.local"], NOW)


# --- revocation ---------------------------------------------------------------------------------------------


def revocation(pem: str) -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl(pem.encode())


def test_a_revocation_list_names_what_is_revoked_and_does_not_run_out(
    authority: CertificateAuthority,
) -> None:
    issued = authority.issue_device(request(), "green", "kitchen", NOW, MONTH)
    pem, _ = authority.revocation_list([Revoked(issued.serial, NOW)], previous=None, now=NOW)
    found = revocation(pem)
    assert [entry.serial_number for entry in found] == [int(issued.serial, 16)]
    assert found.next_update_utc == authority.not_after


def test_each_revocation_list_is_newer_than_the_one_before_even_within_one_second(
    authority: CertificateAuthority,
) -> None:
    previous = None
    for _ in range(100):
        _, at = authority.revocation_list([], previous=previous, now=NOW)
        assert previous is None or at >= previous + timedelta(seconds=1)
        assert at <= NOW  # one from the future would lock everybody out
        previous = at


@pytest.mark.parametrize("fleet", ["green", "a", "f" * 47, "three-word-name"])
def test_a_revocation_list_has_the_name_under_which_openssl_looks_for_it(tmp_path: Path, fleet: str) -> None:
    pem = CertificateAuthority.create(fleet, NOW).certificate_pem
    (tmp_path / "ca.crt").write_text(pem)
    command = ["openssl", "x509", "-in", str(tmp_path / "ca.crt"), "-noout", "-subject_hash"]
    expected = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert ca.name_hash(pem.encode()) == expected


# --- keys ---------------------------------------------------------------------------------------------------


def test_a_key_reads_back_with_its_passphrase_only() -> None:
    key = ca.new_key()
    pem = ca.key_pem(key, b"four words of mine")
    assert ca.is_encrypted(pem)
    assert not ca.is_encrypted(ca.key_pem(key))
    assert ca.read_key(pem, b"four words of mine", "ca.key").public_key() == key.public_key()
    for wrong in (None, b"four words of yours"):
        with pytest.raises(SigningKeyError):
            ca.read_key(pem, wrong, "ca.key")
    with pytest.raises(SigningKeyError):
        ca.read_key(ca.key_pem(key), b"a passphrase", "ca.key")
    with pytest.raises(SigningKeyError):
        ca.read_key(b"rubbish", None, "ca.key")


def test_an_authority_needs_its_own_certificate(authority: CertificateAuthority) -> None:
    with pytest.raises(CertificateError):
        CertificateAuthority.load(ca.new_key(), authority.certificate_pem.encode())
    with pytest.raises(CertificateError):
        CertificateAuthority.load(authority.key, b"rubbish")
