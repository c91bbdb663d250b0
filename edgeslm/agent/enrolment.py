"""Joining a fleet: the device's side of first contact.

What always holds: the key exists, synced, before anything is sent; whatever is cut off where, the same claim is
answered again for the same key; the claim is forgotten only when the broker has taken a report under the new
certificate, so that the fleet knows that it works.

A claim that was typed brings the beginning of a digest instead of the authority's certificate. The broker sends that
certificate behind its own at every TLS handshake; the one that the digest fits is the fleet's, whoever sent it, and
everything after that is checked by it.

Left to others: keys and certificates on the disk (:mod:`edgeslm.trust.identity`), and which link is used.
"""

from __future__ import annotations

import base64
import binascii
import queue
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeslm import codec, topics
from edgeslm.agent.ports import Link, Message
from edgeslm.errors import (
    CertificateError,
    ClaimError,
    CodecError,
    EnrolmentRefusedError,
    LinkError,
    NoAnswerError,
)
from edgeslm.files import replace_file
from edgeslm.schema.config import BrokerConfig
from edgeslm.schema.enrol import Claim, EnrolReply, EnrolRequest, IdentityReport, Machine
from edgeslm.trust.claim import Token, authority_pin, broker_password, proof_key, seal, unseal
from edgeslm.trust.identity import AUTHORITY, Applicant, Identity, IdentityStore

FIRST_RETRY_S = 2.0
LONGEST_RETRY_S = 30.0
PROOF_TIMEOUT_S = 20.0
_TLS_TIMEOUT_S = 10.0

OpenLink = Callable[[BrokerConfig, str], Link]
"""Makes a link to a broker under a client id, not started yet."""
OnState = Callable[[str], None]
"""Told in a sentence what is being waited for, whenever that changes."""


@dataclass(frozen=True)
class _Connected:
    """The broker accepted us."""


@dataclass(frozen=True)
class _Lost:
    reason: str


@dataclass(frozen=True)
class _Published:
    token: int


class _Inbox:
    """Link events in a queue."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Message | _Connected | _Lost | _Published] = queue.SimpleQueue()

    def on_message(self, message: Message) -> None:
        message.acknowledge()
        self.events.put(message)

    def on_connected(self, *, session_present: bool) -> None:
        del session_present
        self.events.put(_Connected())

    def on_disconnected(self, reason: str) -> None:
        self.events.put(_Lost(reason))

    def on_published(self, token: int) -> None:
        self.events.put(_Published(token))

    def next(self, timeout_s: float) -> Message | _Connected | _Lost | _Published | None:
        try:
            return self.events.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None


def join_fleet(
    store: IdentityStore,
    claim: Claim,
    open_link: OpenLink,
    *,
    device: str | None,
    machine: Machine,
    agent: str,
    timeout_s: float,
    on_state: OnState = lambda text: None,
) -> Identity:
    """Join a fleet with `claim`, and return who this device is from now on. It goes on where it was cut off.

    Args:
        store: where keys and certificates lie.
        claim: from the fleet.
        open_link: how to get a link.
        device: name to propose, where the claim has none.
        machine: what this machine is.
        agent: version of edgeslm.
        timeout_s: seconds to wait for an answer, approval included.
        on_state: hears what is waited for.

    Raises:
        EnrolmentRefusedError: the fleet rejects this device.
        NoAnswerError: no broker, or no certificate, in time; calling again goes on.
        CertificateError: the certificate is not what it should be.
        IdentityError: the disk refuses.
    """
    applicant = store.apply(claim)
    identity = store.current()
    if identity is None or identity.directory != applicant.directory:
        request = EnrolRequest(device=device, csr=applicant.request_pem, machine=machine, agent=agent)
        identity = _adopt(store, applicant, _ask(applicant, request, open_link, timeout_s, on_state))
    on_state(f"certified as {identity.facts.fleet}/{identity.facts.device}, trying the certificate")
    prove(identity, identity.broker_config(), open_link, report(identity, machine, agent))
    store.settle(identity)
    return identity


def report(identity: Identity, machine: Machine, agent: str, *, renew: bool = False) -> Message:
    """What the fleet is to know of an identity in use."""
    body = IdentityReport(
        serial=identity.facts.serial,
        machine=machine,
        agent=agent,
        renew=renew,
        has_root=identity.trust_root.is_file(),
    )
    topic = topics.device_topic(identity.facts.fleet, identity.facts.device, "identity")
    return Message(topic, codec.encode(body), retain=True)


def prove(
    identity: Identity,
    config: BrokerConfig,
    open_link: OpenLink,
    message: Message,
    timeout_s: float = PROOF_TIMEOUT_S,
) -> None:
    """Make sure that the broker takes a certificate, by publishing `message` with it.

    A session of this device that is open is taken over and goes on at its next connection.

    Args:
        identity: that the certificate is of.
        config: how to reach the broker with it.

    Raises:
        NoAnswerError: it does not within `timeout_s`; the text says why the last attempt failed.
    """
    inbox, deadline_s = _Inbox(), time.monotonic() + timeout_s
    link = open_link(config, f"edgeslm-{identity.facts.fleet}-{identity.facts.device}")
    reason, token = "no answer", None
    link.start(inbox, [])
    try:
        while time.monotonic() < deadline_s:
            match inbox.next(deadline_s - time.monotonic()):
                case _Connected():
                    token = link.publish(message)
                case _Published(confirmed) if confirmed == token:
                    return
                case _Lost(why):
                    reason = why
    finally:
        link.stop()
    raise NoAnswerError(
        f"the broker at {config.host}:{config.port} does not take the certificate: {reason}",
        waited_s=timeout_s,
    )


def fetch_claim(token: Token, *, fleet: str, host: str, port: int) -> Claim:
    """The claim that a person typed, completed with the authority's certificate from the broker.

    Raises:
        LinkError: the broker cannot be reached.
        ClaimError: none of its certificates is the one that the token names: another fleet's broker, or an
            impostor.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it is told by the digest instead, and everything after it by that
    try:
        with (
            socket.create_connection((host, port), timeout=_TLS_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            chain = _chain(secured)
    except OSError as error:
        raise LinkError(
            f"no TLS broker at {host}:{port}: {error}", hint="Is it running, and is the port right?"
        ) from error
    for certificate in chain:
        if authority_pin(certificate) == token.pin:
            return Claim(
                fleet=fleet,
                claim=token.claim,
                secret=token.secret,
                host=host,
                port=port,
                ca=ssl.DER_cert_to_PEM_cert(certificate),
            )
    raise ClaimError(
        f"the broker at {host}:{port} is not the one of this claim's fleet",
        hint="Compare the host with what `edgeslm fleet claim` printed",
    )


# --- inside -------------------------------------------------------------------------------------------------


def _chain(secured: ssl.SSLSocket) -> Sequence[bytes]:
    """The certificates that the other side sent, in DER."""
    public = getattr(secured, "get_unverified_chain", None)
    if public is not None:  # Python 3.13
        return list(public())
    from _ssl import ENCODING_DER  # noqa: PLC0415

    private = getattr(secured, "_sslobj")  # noqa: B009 - not in the type's public face before 3.13
    return [certificate.public_bytes(ENCODING_DER) for certificate in private.get_unverified_chain()]


def _ask(
    applicant: Applicant, request: EnrolRequest, open_link: OpenLink, timeout_s: float, on_state: OnState
) -> EnrolReply:
    """Ask until there is a certificate."""
    claim, key = applicant.claim, proof_key(applicant.claim.secret)
    password_file = _password_file(applicant)
    config = BrokerConfig(
        host=claim.host,
        port=claim.port,
        session_expiry_s=0,
        username=topics.claim_user(claim.fleet, claim.claim),
        password_file=password_file,
        ca_file=applicant.directory / AUTHORITY,
    )
    inbox, link = _Inbox(), open_link(config, f"edgeslm-enrol-{claim.claim}")
    body = seal(key, "request", request)
    message = Message(topics.enrol_topic(claim.fleet, claim.claim, "request"), body)
    deadline_s = time.monotonic() + timeout_s
    due_s, retry_s, is_connected, told = 0.0, FIRST_RETRY_S, False, ""
    link.start(inbox, [(topics.enrol_topic(claim.fleet, claim.claim, "reply"), 1)])
    try:
        while (now_s := time.monotonic()) < deadline_s:
            if is_connected and now_s >= due_s:
                link.publish(message)
                due_s, retry_s = now_s + retry_s, min(2 * retry_s, LONGEST_RETRY_S)
            event = inbox.next(min(deadline_s, due_s if is_connected else deadline_s) - now_s)
            state = told
            match event:
                case _Connected():
                    is_connected, due_s, state = True, 0.0, "connected, waiting for the fleet's answer"
                case _Lost(reason):
                    is_connected, state = False, f"not connected: {reason}"
                case Message():
                    reply = _read_reply(key, event, applicant)
                    if reply is not None and reply.state == "issued":
                        return reply
                    if reply is not None:
                        state = f"waiting for approval: {reply.reason}"
            if state != told:
                told = state
                on_state(state)
    finally:
        link.stop()
        password_file.unlink(missing_ok=True)
    raise NoAnswerError(
        f"no certificate within {timeout_s:g} s: {told or 'no broker'}",
        waited_s=timeout_s,
        hint="Run the same command again: it goes on with the same key",
    )


def _adopt(store: IdentityStore, applicant: Applicant, reply: EnrolReply) -> Identity:
    if reply.certificate is None or reply.host is None or reply.port is None:
        raise CertificateError("the fleet's answer lacks a certificate", role="certificate")
    try:
        root = None if reply.trust_root is None else base64.b64decode(reply.trust_root, validate=True)
    except binascii.Error as error:
        raise CertificateError("the fleet's answer holds a damaged trust root", role="root") from error
    return store.adopt(applicant, reply.certificate, host=reply.host, port=reply.port, trust_root=root)


def _read_reply(key: bytes, message: Message, applicant: Applicant) -> EnrolReply | None:
    """The fleet's answer to our key; ``None`` for what is none.

    Raises:
        EnrolmentRefusedError: it is a rejection.
    """
    try:
        reply = unseal(key, "reply", EnrolReply, message.payload)
    except (ClaimError, CodecError):
        return None
    if reply.key_sha256 != applicant.key_sha256:
        return None
    if reply.state == "rejected":
        reason = reply.reason or "no reason given"
        raise EnrolmentRefusedError(
            f"the fleet rejects this device: {reason}", reason=reason, hint="Ask the operator for a new claim"
        )
    return reply


def _password_file(applicant: Applicant) -> Path:
    """The broker password of the claim, where the link reads it."""
    path = applicant.directory / "claim.password"
    replace_file(path, broker_password(applicant.claim.secret).encode(), mode=0o600)
    return path
