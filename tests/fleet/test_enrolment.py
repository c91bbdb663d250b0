from __future__ import annotations

import base64
import itertools
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from edgeslm import codec, topics
from edgeslm.errors import DeviceStateError, UnknownDeviceError
from edgeslm.fleet import enrolment, registry
from edgeslm.fleet.ca import CertificateAuthority
from edgeslm.fleet.certificates import Issuer, Outcome, carry_on_renaming, take_presence, take_report
from edgeslm.fleet.claims import NewClaim, issue_claim, list_claims, revoke_claim, usable_claims
from edgeslm.fleet.enrolment import Candidate, decide
from edgeslm.fleet.service import ask_hook
from edgeslm.fleet.store.database import Store, sqlite_url
from edgeslm.fleet.store.models import EventRow
from edgeslm.fleet.store.rollouts import DesiredRow
from edgeslm.schema.enrol import CertificateReply, Claim, EnrolReply, EnrolRequest, IdentityReport, Machine
from edgeslm.schema.fleet import Approval, DeviceDetail, FleetBroker, FleetConfig
from edgeslm.trust.claim import proof_key, seal, unseal
from edgeslm.trust.identity import Applicant, Identity, IdentityStore

START = datetime(2026, 11, 24, 12, tzinfo=UTC)
HAND, LISTED = Approval(mode="hand"), Approval(serials=("s1",))
AUTHORITY = CertificateAuthority.create("green", START)
DAY = timedelta(days=1)
_boots = itertools.count()


class Desk:
    """The fleet's side without a broker, at a time of its own."""

    def __init__(self, directory: Path, approval: Approval | None = None) -> None:
        self.directory = directory
        self.now = START
        self.store = Store(sqlite_url(directory / "fleet.db"))
        config = FleetConfig(
            name="green", broker=FleetBroker(host="broker.local"), approval=approval or Approval()
        )
        self.issuer = Issuer(config, AUTHORITY, lambda: b"root")

    def claim(self, device: str | None = None, *, replaces: bool = False) -> NewClaim:
        with self.store.write() as session:
            return issue_claim(
                session,
                self.issuer.config,
                AUTHORITY.certificate_pem,
                device=device,
                profile=None,
                replaces=replaces,
                life=DAY,
                actor="anna",
                now=self.now,
            )

    def request(self, claim: str, payload: bytes) -> Outcome:
        with self.store.write() as session:
            return enrolment.take_request(session, self.issuer, claim, payload, self.now)

    def report(self, name: str, payload: bytes, *, is_retained: bool = False) -> Outcome:
        with self.store.write() as session:
            return take_report(session, self.issuer, name, payload, self.now, is_retained=is_retained)

    def carry_on(self) -> list[Outcome]:
        with self.store.write() as session:
            return [
                *enrolment.carry_on(session, self.issuer, self.now),
                *carry_on_renaming(session, self.issuer, self.now),
            ]

    def approve(self, which: str, *, name: str | None = None, replaces: bool = False) -> None:
        with self.store.write() as session:
            enrolment.approve(
                session, self.issuer.config, which, name=name, replaces=replaces, actor="anna", now=self.now
            )

    def reject(self, which: str) -> None:
        with self.store.write() as session:
            enrolment.reject(session, which, reason="not ours", actor="anna", now=self.now)

    def show(self, name: str) -> DeviceDetail:
        with self.store.read() as session:
            return registry.show_device(session, name)

    def names(self) -> list[str]:
        with self.store.read() as session:
            return [one.name for one in registry.list_devices(session)]

    def claim_state(self, new: NewClaim) -> str:
        with self.store.read() as session:
            return next(one.state for one in list_claims(session, self.now) if one.claim == new.claim.claim)

    def pending(self) -> list[tuple[str | None, str | None]]:
        with self.store.read() as session:
            return [(one.device, one.reason) for one in enrolment.list_pending(session)]

    def board(self, new: NewClaim, **settings: object) -> Board:
        return Board(self, new.claim, **settings)  # type: ignore[arg-type]

    def join(self, name: str, **settings: object) -> Board:
        board = self.board(self.claim(name), **settings)
        board.join()
        board.report()
        return board


class Board:
    """A device's side."""

    def __init__(
        self, desk: Desk, claim: Claim, *, device: str | None = None, machine: Machine | None = None
    ) -> None:
        self.desk = desk
        self.claim = claim
        self.device = device
        self.number = next(_boots)
        self.machine = machine or Machine(boot_id=f"boot-{self.number}", boots=1)
        self.identities = IdentityStore(desk.directory / f"board-{self.number}")
        self.applicant: Applicant = self.identities.apply(claim)
        self.identity: Identity | None = None

    def payload(self, *, csr: str | None = None, key: bytes | None = None) -> bytes:
        request = EnrolRequest(
            device=self.device, csr=csr or self.applicant.request_pem, machine=self.machine, agent="0.1.0"
        )
        return seal(key or proof_key(self.claim.secret), "request", request)

    def ask(self) -> EnrolReply:
        return self.read(self.desk.request(self.claim.claim, self.payload()))

    def read(self, outcome: Outcome) -> EnrolReply:
        assert outcome.reply is not None
        assert outcome.topic == topics.enrol_topic("green", self.claim.claim, "reply")
        reply = unseal(proof_key(self.claim.secret), "reply", EnrolReply, outcome.reply)
        assert reply.key_sha256 == self.applicant.key_sha256
        return reply

    def adopt(self, reply: EnrolReply) -> Identity:
        assert reply.state == "issued", reply
        assert reply.certificate is not None
        self.identity = self.identities.adopt(
            self.applicant, reply.certificate, host="broker.local", port=8883, trust_root=None
        )
        return self.identity

    def join(self) -> Identity:
        return self.adopt(self.ask())

    def report(
        self, *, renew: bool = False, machine: Machine | None = None, is_retained: bool = False
    ) -> Outcome:
        assert self.identity is not None
        report = IdentityReport(
            serial=self.identity.facts.serial, machine=machine or self.machine, agent="0.2.0", renew=renew
        )
        name = self.identity.facts.device
        return self.desk.report(name, codec.encode(report), is_retained=is_retained)

    def take(self, outcome: Outcome) -> Identity:
        """Use the certificate that came."""
        assert self.identity is not None
        assert outcome.reply is not None
        assert outcome.topic == topics.device_topic("green", self.identity.facts.device, "certificate")
        reply = codec.decode(CertificateReply, outcome.reply)
        candidate = self.identities.stage(self.identity, reply.certificate)
        assert candidate is not None
        self.identities.promote(candidate)
        self.identity = candidate
        return candidate


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.store.close()


# --- rules --------------------------------------------------------------------------------------------------

candidates = st.builds(
    Candidate,
    device=st.sampled_from([None, "kitchen"]),
    is_bound=st.booleans(),
    is_replacing=st.booleans(),
    name_problem=st.sampled_from([None, "too long"]),
    holder=st.sampled_from([None, "active", "revoked", "retired"]),
    key_holder=st.sampled_from([None, "cellar"]),
    serial=st.sampled_from([None, "s1", "s2"]),
)
approvals = st.sampled_from([HAND, Approval(), LISTED, Approval(mode="hook", hook=("true",))])


@given(approvals, candidates)
def test_nobody_gets_the_name_of_a_device_in_use_without_an_operator_s_word(
    approval: Approval, who: Candidate
) -> None:
    if who.holder == "active" and not who.is_replacing:
        assert decide(approval, who).verdict == "wait"


@given(approvals, candidates)
def test_nobody_joins_by_itself_where_something_is_odd(approval: Approval, who: Candidate) -> None:
    if who.device is None or who.name_problem is not None or who.key_holder is not None:
        assert decide(approval, who).verdict == "wait"


@given(candidates)
def test_by_hand_everybody_waits(who: Candidate) -> None:
    assert decide(HAND, who).verdict == "wait"


@given(candidates)
def test_an_allow_list_lets_in_who_is_named_or_whose_hardware_is_listed(who: Candidate) -> None:
    verdict = decide(LISTED, who).verdict
    assert verdict in {"approve", "wait"}
    if verdict == "approve":
        assert who.is_bound or who.serial == "s1"


@given(approvals, candidates)
def test_every_decision_says_why(approval: Approval, who: Candidate) -> None:
    assert decide(approval, who).reason


# --- joining ------------------------------------------------------------------------------------------------


def test_a_device_whose_claim_names_it_joins_at_once(desk: Desk) -> None:
    new = desk.claim("kitchen")
    board = desk.board(new)
    reply = board.ask()
    assert (reply.device, reply.host, reply.port) == ("kitchen", "broker.local", 8883)
    assert base64.b64decode(reply.trust_root or "") == b"root"
    identity = board.adopt(reply)
    assert identity.facts.device == "kitchen"
    assert desk.claim_state(new) == "bound"
    outcome = board.report()
    assert outcome.broker_changed
    assert desk.claim_state(new) == "used"
    detail = desk.show("kitchen").device
    assert (detail.standing, detail.first_seen_at, detail.agent) == ("active", START, "0.2.0")


def test_the_same_claim_is_answered_with_the_same_certificate_until_it_was_seen_in_use(desk: Desk) -> None:
    new = desk.claim("kitchen")
    board = desk.board(new)
    first = board.ask()
    desk.now += 40 * DAY  # the claim's own time is over by then
    assert board.ask() == first
    with desk.store.read() as session:
        assert [row.claim for row in usable_claims(session, desk.now)] == [new.claim.claim]
    desk.now = START
    board.adopt(first)
    board.report()
    with desk.store.read() as session:
        assert usable_claims(session, desk.now) == []


def test_a_claim_s_name_wins_over_the_one_that_is_proposed(desk: Desk) -> None:
    assert desk.board(desk.claim("kitchen"), device="throne-room").ask().device == "kitchen"


def test_another_key_gets_nothing_under_a_claim_that_was_used(desk: Desk) -> None:
    new = desk.claim("kitchen")
    desk.board(new).join()
    thief = desk.board(new)
    reply = thief.ask()
    assert reply.state == "rejected"
    assert reply.certificate is None
    assert "another key" in (reply.reason or "")
    with desk.store.read() as session:
        events = registry.show_device(session, "kitchen").events
        assert {event.kind for event in events} == {"joined"}
    assert desk.show("kitchen").device.key_sha256 != thief.applicant.key_sha256


def test_who_does_not_hold_the_claim_is_not_even_answered(desk: Desk) -> None:
    new = desk.claim("kitchen")
    board = desk.board(new)
    assert desk.request(new.claim.claim, board.payload(key=b"a guess")) == Outcome()
    assert desk.request(new.claim.claim, b"rubbish") == Outcome()
    assert desk.request("000000", board.payload()) == Outcome()
    assert desk.claim_state(new) == "open"


def test_a_request_that_is_none_does_not_use_the_claim_up(desk: Desk) -> None:
    new = desk.claim("kitchen")
    board = desk.board(new)
    assert desk.request(new.claim.claim, board.payload(csr="rubbish")) == Outcome()
    assert desk.claim_state(new) == "open"
    assert board.ask().state == "issued"


def test_an_expired_and_a_revoked_claim_are_refused_with_the_reason(desk: Desk) -> None:
    expired, revoked = desk.claim("kitchen"), desk.claim("cellar")
    with desk.store.write() as session:
        revoke_claim(session, revoked.claim.claim, actor="anna", now=desk.now)
    assert desk.board(revoked).ask().reason == "the claim is revoked"
    desk.now += DAY
    reply = desk.board(expired).ask()
    assert (reply.state, reply.reason) == ("rejected", "the claim is expired")
    assert desk.names() == []


def test_a_device_that_was_revoked_before_it_had_its_certificate_is_told_so(desk: Desk) -> None:
    board = desk.board(desk.claim("kitchen"))
    board.ask()
    with desk.store.write() as session:
        registry.revoke_device(session, "kitchen", reason="lost", actor="anna", now=desk.now)
    reply = board.ask()
    assert (reply.state, reply.certificate) == ("rejected", None)
    assert "lost" in (reply.reason or "")


def test_a_device_that_asked_in_time_may_be_approved_later(desk: Desk) -> None:
    board = desk.board(desk.claim(), device="kitchen")
    assert board.ask().state == "pending"
    desk.now += 7 * DAY
    desk.approve("kitchen")
    (outcome,) = desk.carry_on()
    assert board.adopt(board.read(outcome)).facts.device == "kitchen"


def test_by_hand_a_device_waits_until_an_operator_decides(tmp_path: Path) -> None:
    desk = Desk(tmp_path, HAND)
    good, bad = desk.board(desk.claim("kitchen")), desk.board(desk.claim("cellar"))
    assert (good.ask().state, bad.ask().state, good.ask().state) == ("pending", "pending", "pending")
    assert [device for device, _ in desk.pending()] == ["kitchen", "cellar"]
    desk.approve("kitchen")
    desk.reject("cellar")
    answers = desk.carry_on()
    assert good.read(answers[0]).state == "issued"
    assert (bad.read(answers[1]).state, bad.read(answers[1]).reason) == ("rejected", "not ours")
    assert desk.carry_on() == []
    assert (good.ask().state, bad.ask().state) == ("issued", "rejected")
    assert desk.pending() == []
    assert desk.names() == ["kitchen"]


def test_an_approval_is_answered_at_once_when_the_device_asks_again_first(tmp_path: Path) -> None:
    desk = Desk(tmp_path, HAND)
    board = desk.board(desk.claim("kitchen"))
    board.ask()
    desk.approve("kitchen")
    assert board.ask().state == "issued"
    assert desk.carry_on() == []


def test_listed_hardware_joins_under_the_name_that_it_proposes(tmp_path: Path) -> None:
    desk = Desk(tmp_path, LISTED)
    known = desk.board(desk.claim(), device="kitchen", machine=Machine(serial="s1"))
    unknown = desk.board(desk.claim(), device="cellar", machine=Machine(serial="s9"))
    assert (known.ask().state, unknown.ask().state) == ("issued", "pending")


def test_a_device_without_a_name_waits_and_gets_one(desk: Desk) -> None:
    new = desk.claim()
    board = desk.board(new)
    assert board.ask().state == "pending"
    with pytest.raises(DeviceStateError, match="--as"):
        desk.approve(new.claim.claim)
    desk.approve(new.claim.claim, name="kitchen")
    assert board.ask().device == "kitchen"


@pytest.mark.parametrize("name", ["pool", "enrol", "d" * 60])
def test_an_impossible_name_waits_for_another(desk: Desk, name: str) -> None:
    board = desk.board(desk.claim(), device=name)
    assert board.ask().state == "pending"
    with pytest.raises(DeviceStateError):
        desk.approve(name)
    desk.approve(name, name="kitchen")
    assert board.ask().device == "kitchen"


def test_what_does_not_wait_cannot_be_approved_or_rejected(desk: Desk) -> None:
    desk.board(desk.claim("kitchen")).join()
    desk.board(desk.claim(), device="cellar").ask()
    for act in (desk.approve, desk.reject):
        with pytest.raises(UnknownDeviceError) as caught:
            act("celar")
        assert caught.value.nearest == ("cellar",)
        with pytest.raises(UnknownDeviceError):
            act("kitchen")


def test_of_two_that_wait_under_one_name_one_has_to_be_named_by_its_claim(desk: Desk) -> None:
    first, second = desk.claim(), desk.claim()
    boards = [desk.board(new, device="kitchen") for new in (first, second)]
    assert {board.ask().state for board in boards} == {"pending"}
    with pytest.raises(DeviceStateError, match=first.claim.claim):
        desk.approve("kitchen")
    desk.approve(second.claim.claim)
    assert [board.ask().state for board in boards] == ["pending", "issued"]


# --- duplicate identities, joining anew ---------------------------------------------------------------------


def test_a_second_board_of_the_same_name_is_named_and_waits(desk: Desk) -> None:
    first = desk.join("kitchen")
    second = desk.board(desk.claim(), device="kitchen")
    assert second.ask().state == "pending"
    detail = desk.show("kitchen")
    assert "duplicate-identity" in [event.kind for event in detail.events]
    assert detail.device.key_sha256 == first.applicant.key_sha256
    with pytest.raises(DeviceStateError, match="--replace"):
        desk.approve("kitchen")
    desk.approve("kitchen", name="kitchen-2")
    assert second.ask().device == "kitchen-2"
    assert desk.names() == ["kitchen", "kitchen-2"]


def test_a_board_that_takes_another_s_place_ends_its_certificates_and_its_session(desk: Desk) -> None:
    former = desk.join("kitchen")
    board = desk.board(
        desk.claim("kitchen", replaces=True), machine=Machine(serial="new", boot_id="x", boots=1)
    )
    outcome = desk.request(board.claim.claim, board.payload())
    assert outcome.disconnect == "kitchen"
    assert outcome.broker_changed
    board.adopt(board.read(outcome))
    board.report()
    detail = desk.show("kitchen")
    assert detail.device.key_sha256 == board.applicant.key_sha256
    assert [one.revoked_at is None for one in detail.certificates] == [True, False]
    assert detail.device.finding is None, "the new board is no clone of the old one"
    assert former.report().disconnect == "kitchen"


@pytest.mark.parametrize("how", ["revoke", "retire"])
def test_a_device_that_was_sent_away_comes_back_with_a_claim_for_its_name_only(desk: Desk, how: str) -> None:
    desk.join("kitchen")
    with desk.store.write() as session:
        if how == "revoke":
            registry.revoke_device(session, "kitchen", reason="lost", actor="anna", now=desk.now)
        else:
            registry.retire_device(session, "kitchen", actor="anna", now=desk.now)
    assert desk.board(desk.claim(), device="kitchen").ask().state == "pending"
    board = desk.board(desk.claim("kitchen"))
    board.join()
    assert desk.show("kitchen").device.standing == "active"
    assert board.report().disconnect is None


def test_a_revoked_device_that_still_reports_is_put_off_again(desk: Desk) -> None:
    board = desk.join("kitchen")
    with desk.store.write() as session:
        registry.revoke_device(session, "kitchen", reason="lost", actor="anna", now=desk.now)
    outcome = board.report(renew=True)
    assert (outcome.disconnect, outcome.reply) == ("kitchen", None)
    assert board.report(is_retained=True) == Outcome(), "what it said before is no sign that it is here"


def test_a_copy_of_a_card_is_seen_by_what_it_reports(desk: Desk) -> None:
    board = desk.join("kitchen", machine=Machine(serial="s1", boot_id="a", boots=3))
    copy = Machine(serial="s2", boot_id="b", boots=4)
    for minute, machine in enumerate([copy, board.machine, copy]):
        desk.now += timedelta(minutes=minute + 1)
        board.report(machine=machine)
    detail = desk.show("kitchen").device
    assert detail.finding == "cloned"
    assert "s1" in (detail.finding_text or "")


# --- renewal ------------------------------------------------------------------------------------------------


def test_a_certificate_is_renewed_for_the_same_key_when_it_is_due(desk: Desk) -> None:
    board = desk.join("kitchen")
    assert board.identity is not None
    former = board.identity.facts
    desk.now += 21 * DAY
    assert board.report().reply is None, "nobody asked"
    renewed = board.take(board.report(renew=True))
    assert renewed.facts.not_after_s == pytest.approx(former.not_after_s + 21 * 86_400, abs=1)
    assert board.report(renew=True).reply is None, "the new one is not due"


def test_a_device_that_asks_too_early_gets_nothing_new(desk: Desk) -> None:
    board = desk.join("kitchen")
    desk.now += 14 * DAY
    assert board.report(renew=True).reply is None
    assert len(desk.show("kitchen").certificates) == 1


def test_a_renewal_whose_answer_was_lost_is_answered_with_the_same_certificate(desk: Desk) -> None:
    board = desk.join("kitchen")
    desk.now += 21 * DAY
    first = board.report(renew=True)
    assert board.report(renew=True) == first
    assert len(desk.show("kitchen").certificates) == 2
    board.take(first)


def test_a_device_that_the_store_lost_sight_of_is_noted_and_renewed_by_its_key(desk: Desk) -> None:
    board = desk.join("kitchen")
    desk.now += 21 * DAY
    strange = IdentityReport(serial="abc123", machine=board.machine, agent="0.1.0", renew=True)
    outcome = desk.report("kitchen", codec.encode(strange))
    assert "unknown-certificate" in [event.kind for event in desk.show("kitchen").events]
    board.take(outcome)
    assert desk.report("stranger", codec.encode(strange)) == Outcome()


def test_a_report_under_another_device_s_name_changes_nothing_of_either(desk: Desk) -> None:
    kitchen, cellar = desk.join("kitchen"), desk.join("cellar")
    assert kitchen.identity is not None
    lie = IdentityReport(serial=kitchen.identity.facts.serial, machine=cellar.machine, agent="9.9.9")
    desk.now += DAY
    desk.report("cellar", codec.encode(lie))
    assert desk.show("kitchen").device.last_seen_at == START
    assert {desk.show(name).device.agent for name in ("kitchen", "cellar")} == {"0.2.0"}


@given(st.binary(max_size=200))
def test_rubbish_in_place_of_a_report_is_noted_and_dropped(
    tmp_path_factory: pytest.TempPathFactory, body: bytes
) -> None:
    desk = _shared_desk(tmp_path_factory)
    assert desk.report("kitchen", body) == Outcome()


_SHARED: list[Desk] = []


def _shared_desk(factory: pytest.TempPathFactory) -> Desk:
    if not _SHARED:
        _SHARED.append(Desk(factory.mktemp("desk")))
    return _SHARED[0]


def test_a_retained_report_does_not_mean_that_the_device_was_here_just_now(desk: Desk) -> None:
    board = desk.join("kitchen")
    desk.now += DAY
    board.report(is_retained=True)
    assert desk.show("kitchen").device.last_seen_at == START
    board.report()
    assert desk.show("kitchen").device.last_seen_at == START + DAY


def test_presence_is_of_devices_in_use_only(desk: Desk) -> None:
    desk.join("kitchen")
    desk.now += DAY
    with desk.store.write() as session:
        take_presence(session, "kitchen", "online", desk.now, is_retained=False)
        take_presence(session, "stranger", "online", desk.now, is_retained=False)
    assert (desk.show("kitchen").device.presence, desk.show("kitchen").device.last_seen_at) == (
        "online",
        desk.now,
    )
    with desk.store.write() as session:
        registry.revoke_device(session, "kitchen", reason="lost", actor="anna", now=desk.now)
        take_presence(session, "kitchen", "online", desk.now, is_retained=False)
    assert desk.show("kitchen").device.presence is None


# --- renaming -----------------------------------------------------------------------------------------------


def rename(desk: Desk, name: str, to: str) -> None:
    with desk.store.write() as session:
        registry.rename_device(session, "green", name, to, actor="anna", now=desk.now)


def test_a_device_takes_its_new_name_with_its_next_certificate(desk: Desk) -> None:
    board = desk.join("kitchen")
    rename(desk, "kitchen", "galley")
    (outcome,) = desk.carry_on()
    assert desk.carry_on() == []
    assert desk.show("kitchen").device.rename_to == "galley"
    assert board.take(outcome).facts.device == "galley"
    finished = board.report()
    assert finished.broker_changed
    assert topics.device_topic("green", "kitchen", "availability") in finished.forget
    detail = desk.show("galley")
    assert detail.device.rename_to is None
    assert [(one.name, one.revoked_at is None) for one in detail.certificates] == [
        ("galley", True),
        ("kitchen", False),
    ]
    assert desk.names() == ["galley"]


def test_what_is_assigned_under_the_former_name_is_due_to_be_assigned_anew(desk: Desk) -> None:
    board = desk.join("kitchen")
    with desk.store.write() as session:
        row = registry.need_device(session, "kitchen")
        session.add(
            DesiredRow(
                device_id=row.id,
                device=row.name,
                key_sha256=row.key_sha256,
                seq=5,
                body=b"{}",
                issued_at=desk.now,
                expires_at=desk.now + 7 * DAY,
                renews=True,
            )
        )
    rename(desk, "kitchen", "galley")
    (outcome,) = desk.carry_on()
    board.take(outcome)
    board.report()
    with desk.store.read() as session:
        (kept,) = session.scalars(select(DesiredRow)).all()
        assert kept.expires_at == desk.now


def test_a_device_that_missed_its_new_name_gets_it_when_it_reports(desk: Desk) -> None:
    board = desk.join("kitchen")
    rename(desk, "kitchen", "galley")
    desk.carry_on()
    desk.now += DAY
    assert board.take(board.report()).facts.device == "galley"
    board.report()
    assert desk.names() == ["galley"]


def test_a_name_that_a_device_is_about_to_get_is_not_free(desk: Desk) -> None:
    desk.join("kitchen")
    rename(desk, "kitchen", "galley")
    board = desk.board(desk.claim(), device="galley")
    assert "about to be called" in (board.ask().reason or "")
    with pytest.raises(DeviceStateError):
        desk.approve("galley")


# --- hooks --------------------------------------------------------------------------------------------------


def hook(code: str, timeout_s: float = 10.0) -> Approval:
    return Approval(mode="hook", hook=(sys.executable, "-c", code), hook_timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("pass", "approve"),
        ("import sys; sys.exit(1)", "reject"),
        ("import sys; sys.exit(2)", "wait"),
        ("import os; os.kill(os.getpid(), 9)", "wait"),
        ("import sys, json; sys.exit(json.load(sys.stdin)['device'] != 'kitchen')", "approve"),
    ],
)
def test_a_hook_decides_by_its_exit_code(code: str, verdict: str) -> None:
    assert ask_hook(hook(code), {"device": "kitchen"}).verdict == verdict


def test_a_hook_that_does_not_answer_or_is_not_there_decides_nothing() -> None:
    slow = ask_hook(hook("import time; time.sleep(60)", timeout_s=0.2), {})
    assert (slow.verdict, "0.2 s" in slow.reason) == ("wait", True)
    assert ask_hook(Approval(mode="hook", hook=("/no/such/program",)), {}).verdict == "wait"


def test_what_a_hook_says_when_it_rejects_is_what_the_device_is_told() -> None:
    said = ask_hook(hook("print('unpaid'); raise SystemExit(1)"), {})
    assert (said.verdict, said.reason) == ("reject", "unpaid")


def test_a_hook_is_asked_once_with_what_is_known_and_its_word_is_carried_out(tmp_path: Path) -> None:
    desk = Desk(tmp_path, hook("pass"))
    board = desk.board(desk.claim("kitchen"), machine=Machine(serial="s1", board="pi-4b"))
    outcome = desk.request(board.claim.claim, board.payload())
    assert outcome.reply is None
    assert outcome.hook_input is not None
    assert json.loads(json.dumps(outcome.hook_input))["machine"] == {
        "board": "pi-4b",
        "serial": "s1",
        "boots": 0,
    }
    with desk.store.write() as session:
        decision = ask_hook(desk.issuer.config.approval, outcome.hook_input)
        settled = enrolment.settle(session, desk.issuer, board.claim.claim, decision, desk.now)
    assert board.read(settled).state == "issued"


def test_a_hook_that_leaves_it_open_is_not_asked_again_but_one_whose_answer_was_lost_is(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path, hook("pass"))
    board = desk.board(desk.claim("kitchen"))
    first = desk.request(board.claim.claim, board.payload())
    assert desk.request(board.claim.claim, board.payload()) == first
    with desk.store.write() as session:
        open_ = enrolment.Decision("wait", "somebody has to look")
        enrolment.settle(session, desk.issuer, board.claim.claim, open_, desk.now)
    reply = board.ask()
    assert (reply.state, reply.reason) == ("pending", "somebody has to look")


def test_a_device_that_waits_joins_once_its_hardware_is_listed(desk: Desk) -> None:
    board = desk.board(desk.claim(), device="kitchen", machine=Machine(serial="s1"))
    assert {board.ask().state for _ in range(3)} == {"pending"}
    with desk.store.read() as session:
        assert len(session.query(EventRow).all()) == 1, "asking again is no news"
    desk.issuer = Issuer(desk.issuer.config.model_copy(update={"approval": LISTED}), AUTHORITY)
    assert board.ask().state == "issued"


def test_an_operator_s_word_stands_over_a_hook_that_comes_late(tmp_path: Path) -> None:
    desk = Desk(tmp_path, hook("pass"))
    board = desk.board(desk.claim("kitchen"))
    desk.request(board.claim.claim, board.payload())
    desk.reject("kitchen")
    with desk.store.write() as session:
        late = enrolment.settle(
            session, desk.issuer, board.claim.claim, enrolment.Decision("approve", "late"), desk.now
        )
    assert board.read(late).state == "rejected"
    assert desk.names() == []
