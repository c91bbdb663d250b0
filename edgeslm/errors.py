"""The whole error tree.

Every error that edgeslm raises on purpose is an :class:`EdgeslmError`. Each carries fields beside its text,
so that callers branch on type and fields and never on words. ``code`` is what goes over the wire;
``exit_code`` is what the command line returns (1 failed, 2 usage or configuration, 4 verification failed).
"""

from __future__ import annotations

from typing import ClassVar, Literal

WireCode = Literal[
    "bad_request", "unknown_model", "too_large", "busy", "deadline", "cancelled", "budget", "internal"
]


class EdgeslmError(Exception):
    """Root of the tree.

    Attributes:
        code: error code on the wire.
        exit_code: exit status of the command line.
        hint: what to do next, where there is something to do.
    """

    code: ClassVar[WireCode] = "internal"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else self.message


class UsageError(EdgeslmError):
    """A command was called in a way that cannot work."""

    code = "bad_request"
    exit_code = 2


class ConfigError(EdgeslmError):
    """A configuration file, board file or environment setting is wrong.

    Attributes:
        path: the file, or ``None`` for a setting from elsewhere.
        key: dotted key within it, or ``None``.
    """

    exit_code = 2

    def __init__(
        self, message: str, *, path: str | None = None, key: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.path = path
        self.key = key


class YamlFileError(ConfigError):
    """A file in YAML is wrong, at a place that is known.

    Attributes:
        line: counted from 1, or ``None`` where the whole file is to blame.
        nearest: the valid name that was probably meant.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        line: int | None = None,
        key: str | None = None,
        nearest: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, path=path, key=key, hint=hint)
        self.line = line
        self.nearest = nearest


# --- requests ----------------------------------------------------------------------------------------------


class RequestError(EdgeslmError):
    """A prompt cannot be served. The reason travels to the requester.

    Attributes:
        retry_after_s: seconds after which trying again makes sense, or ``None``.
    """

    code: ClassVar[WireCode] = "bad_request"

    def __init__(self, message: str, *, retry_after_s: float | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class BadRequestError(RequestError):
    """The request is not of the form that the wire asks for."""


class UnsupportedOptionError(BadRequestError):
    """An option means something, and what computes this model cannot do it.

    Attributes:
        option: its name on the wire.
    """

    def __init__(self, message: str, *, option: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.option = option


class ConstraintError(BadRequestError):
    """The form that the answer shall have cannot be followed: it is wrong, too complex, or nothing has it.

    Attributes:
        kind: the option that states it: ``json_schema``, ``regex``, ``choices`` or ``grammar``.
    """

    def __init__(self, message: str, *, kind: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class ConstraintMissingError(ConstraintError):
    """This device cannot hold answers to a form: what does that is not installed here."""


class UnknownModelError(RequestError):
    """The request names a model that this device does not serve."""

    code = "unknown_model"


class TooLargeError(RequestError):
    """A body, prompt or answer does not fit. ``actual`` and ``limit`` are in ``unit``."""

    code = "too_large"

    def __init__(self, message: str, *, actual: int, limit: int, unit: str) -> None:
        super().__init__(message)
        self.actual = actual
        self.limit = limit
        self.unit = unit


class ContextOverflowError(TooLargeError):
    """A prompt, with the turns that it comes after, is longer than the model takes.

    Attributes:
        turns: earlier turns of its conversation that are part of it.
    """

    def __init__(self, message: str, *, actual: int, limit: int, unit: str, turns: int, hint: str) -> None:
        super().__init__(message, actual=actual, limit=limit, unit=unit)
        self.turns = turns
        self.hint = hint


class BusyError(RequestError):
    """The queue is full."""

    code = "busy"


class BudgetError(RequestError):
    """The energy that the prompt would take is not left, now or before its deadline."""

    code = "budget"


class DeadlineError(RequestError):
    """The deadline passed while the prompt waited in the queue."""

    code = "deadline"


class CancelledError(RequestError):
    """The requester took the prompt back before it ran."""

    code = "cancelled"


# --- model packages ----------------------------------------------------------------------------------------


class PackageError(EdgeslmError):
    """A model package is unusable.

    Attributes:
        path: the package file or directory.
        member: file inside it, where one is to blame.
        expected: what should have been there.
        actual: what was there.
    """

    exit_code = 4

    def __init__(
        self,
        message: str,
        *,
        path: str,
        member: str | None = None,
        expected: str | None = None,
        actual: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.path = path
        self.member = member
        self.expected = expected
        self.actual = actual


class PackageFormatError(PackageError):
    """Not a package, or one of a format version that this release does not know."""


class PackageTruncatedError(PackageFormatError):
    """The file ends before its contents do."""


class PackagePathError(PackageError):
    """A member's name would leave the package directory or is not a plain file."""


class PackageSizeError(PackageError):
    """A member, or the whole, is larger than what is allowed or declared."""


class PackageHashError(PackageError):
    """A member's sha256 is not the one that the manifest names."""


class PackageContentError(PackageError):
    """A member is not what it is declared to be, such as a graph that is no TFLite flatbuffer."""


class StoreError(EdgeslmError):
    """The model store on the device cannot be read or written.

    Attributes:
        path: the file or directory to blame.
        needed_bytes: room that is needed, where room is what is lacking.
        free_bytes: room that there is.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        needed_bytes: int | None = None,
        free_bytes: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.path = path
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


# --- delivery ----------------------------------------------------------------------------------------------


class DeliveryError(EdgeslmError):
    """A file could not be brought here. What has arrived of it stays for the next attempt.

    Attributes:
        sha256: of the file that was wanted, where one was.
        retry_after_s: seconds after which trying again makes sense, where that is known.
    """

    def __init__(
        self,
        message: str,
        *,
        sha256: str | None = None,
        retry_after_s: float | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.sha256 = sha256
        self.retry_after_s = retry_after_s


class DeliveryCancelledError(DeliveryError):
    """The caller no longer wants the file."""


class DeliveryDeadlineError(DeliveryError):
    """The time for it is over."""


class DeliveryPolicyError(DeliveryError):
    """The policy does not allow it now: a metered link, or outside of the hours."""


class DeliveryBusyError(DeliveryError):
    """Somebody else is fetching into the same directory."""


class DeliveryDiskError(DeliveryError):
    """The disk refuses to be read or written.

    Attributes:
        path: the file or directory to blame.
    """

    def __init__(
        self, message: str, *, path: str, sha256: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, sha256=sha256, hint=hint)
        self.path = path


class DeliveryRoomError(DeliveryDiskError):
    """There is no room.

    Attributes:
        needed_bytes: room that is needed.
        free_bytes: room that there is.
    """

    def __init__(
        self, message: str, *, path: str, needed_bytes: int, free_bytes: int, sha256: str | None = None
    ) -> None:
        super().__init__(message, path=path, sha256=sha256, hint="Remove a package that is no longer needed")
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class ChunkMapError(DeliveryError):
    """Bytes are no chunk map, or the map of another file."""

    exit_code = 4


class DeltaError(DeliveryError):
    """A delta cannot be applied: damaged, hostile, or made for something else. The whole file is the way out.

    Attributes:
        path: the delta.
    """

    exit_code = 4

    def __init__(
        self, message: str, *, path: str, sha256: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, sha256=sha256, hint=hint)
        self.path = path


class NoSourceError(DeliveryError):
    """No source is left that could give the file.

    Attributes:
        missing: all that were asked say that they do not have it.
    """

    def __init__(self, message: str, *, sha256: str, missing: bool) -> None:
        super().__init__(message, sha256=sha256)
        self.missing = missing


class SourceError(DeliveryError):
    """A source could not go on; trying it again later makes sense.

    Attributes:
        source: its name.
    """

    def __init__(
        self,
        message: str,
        *,
        source: str,
        sha256: str | None = None,
        retry_after_s: float | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, sha256=sha256, retry_after_s=retry_after_s, hint=hint)
        self.source = source


class SlowSourceError(SourceError):
    """It gives less than the least rate."""


class SourceMissingError(SourceError):
    """It does not have the file, or does not give it to us. Trying again is futile for now."""


class LyingSourceError(SourceError):
    """It says or sends what cannot be: other bytes, another size, another range than asked for."""


# --- updates on the device ---------------------------------------------------------------------------------

UpdateCause = Literal[
    "not_trusted",
    "unsafe_version",
    "incompatible",
    "no_room",
    "no_memory",
    "unreachable",
    "corrupt",
    "bad_package",
    "load_failed",
    "crashed",
    "hung",
    "out_of_memory",
    "under_voltage",
    "gate_failed",
    "inconclusive",
    "swap_failed",
    "unhealthy",
    "crash_loop",
    "damaged",
    "deadline",
    "aborted",
    "superseded",
    "internal",
]
"""Why a change did not go on, as the device reports it; docs/updates.md says what each one means."""


class UpdateError(EdgeslmError):
    """A step of an update failed.

    Attributes:
        cause: why, for the state machine and for the wire.
        retry_after_s: seconds after which trying again makes sense, where that is known.
    """

    def __init__(
        self,
        message: str,
        *,
        cause: UpdateCause,
        retry_after_s: float | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.cause = cause
        self.retry_after_s = retry_after_s


class TrialError(UpdateError):
    """A package that was being tried did not load, crashed, hung, or took too much memory."""


class UpdateInterruptedError(UpdateError):
    """The step was given up because something more important came: a newer wish, an abort, or the end."""

    def __init__(self) -> None:
        super().__init__("interrupted", cause="superseded")


# --- runtime -----------------------------------------------------------------------------------------------


class ModelLoadError(EdgeslmError):
    """A graph cannot be opened or lacks what its task needs.

    Attributes:
        path: the graph file.
    """

    exit_code = 4

    def __init__(self, message: str, *, path: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.path = path


class ProofError(ModelLoadError):
    """A graph loads but computes other values than its package promises."""


class ChatTemplateError(ModelLoadError):
    """A package's chat template is none, does what it may not, fails, or does not come to an end."""


class PreflightError(ModelLoadError):
    """A graph would not do on this machine: shown before a load, or by a process that tried it in our stead."""


class ProcessorError(PreflightError):
    """The processor cannot do what a graph or its runtime asks of it.

    Attributes:
        missing: its features that are wanted, in the kernel's words; empty where nobody knows which.
    """

    def __init__(
        self, message: str, *, path: str, missing: tuple[str, ...] = (), hint: str | None = None
    ) -> None:
        super().__init__(message, path=path, hint=hint)
        self.missing = missing


class SystemLibraryError(PreflightError):
    """The C library of this system is older than the one that the runtime was built for.

    Attributes:
        expected, actual: versions.
    """

    def __init__(
        self, message: str, *, path: str, expected: str, actual: str, hint: str | None = None
    ) -> None:
        super().__init__(message, path=path, hint=hint)
        self.expected = expected
        self.actual = actual


class MemoryShortError(PreflightError):
    """A model does not fit into the memory that is free.

    Attributes:
        needed_bytes: as predicted; ``None`` where the load ran out of memory all the same.
        free_bytes: what there was.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str,
        needed_bytes: int | None,
        free_bytes: int | None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, path=path, hint=hint)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class ModelsMemoryError(MemoryShortError):
    """A model does not fit into the memory that the settings leave to models, beside those that are in use."""


class OperationMissingError(PreflightError):
    """A graph needs operations that the runtime does not have.

    Attributes:
        operations: their names.
    """

    def __init__(
        self, message: str, *, path: str, operations: tuple[str, ...], hint: str | None = None
    ) -> None:
        super().__init__(message, path=path, hint=hint)
        self.operations = operations


class GraphCrashError(PreflightError):
    """The process that tried a graph died of it.

    Attributes:
        signal: what it died of, such as ``SIGSEGV``; ``None`` where it ended by itself, without a word.
    """

    def __init__(self, message: str, *, path: str, signal: str | None, hint: str | None = None) -> None:
        super().__init__(message, path=path, hint=hint)
        self.signal = signal


class GraphHangError(PreflightError):
    """The process that tried a graph came to no end.

    Attributes:
        waited_s: seconds that it was given.
    """

    def __init__(self, message: str, *, path: str, waited_s: float, hint: str | None = None) -> None:
        super().__init__(message, path=path, hint=hint)
        self.waited_s = waited_s


class RuntimeMissingError(EdgeslmError):
    """No TFLite runtime that can run this model is installed."""

    exit_code = 2


class InferenceError(EdgeslmError):
    """The runtime failed while computing."""


# --- power -------------------------------------------------------------------------------------------------


class MeterError(EdgeslmError):
    """A power meter is gone, or says what cannot be.

    Attributes:
        meter: its name.
        fault: what is wrong, one word of ``power.port.Fault``.
    """

    def __init__(self, message: str, *, meter: str, fault: str = "rubbish", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.meter = meter
        self.fault = fault


class BudgetConfigError(ConfigError):
    """A power budget that this board cannot keep, whatever it does.

    Attributes:
        window: name of the window that the idle board alone exceeds.
        limit_w: mean watts that it allows.
        idle_w: watts of the idle board.
    """

    def __init__(self, message: str, *, window: str, limit_w: float, idle_w: float, hint: str) -> None:
        super().__init__(message, key=f"budget.windows.{window}", hint=hint)
        self.window = window
        self.limit_w = limit_w
        self.idle_w = idle_w


class LedgerError(EdgeslmError):
    """The energy ledger cannot be read or written."""


class CalibrationError(EdgeslmError):
    """The recorded pairs are not enough to fit anything.

    Attributes:
        reason: what they lack.
        found: how much of it there was, in `unit`.
        needed: how much of it there must be.
        unit: of both.
    """

    def __init__(self, reason: str, *, found: float, needed: float, unit: str) -> None:
        super().__init__(
            f"no calibration: {reason} ({found:.2f} {unit}, {needed:g} are needed)",
            hint="Nothing was changed. Let the board otherwise rest, and see that both meters see its whole draw",
        )
        self.reason = reason
        self.found = found
        self.needed = needed
        self.unit = unit


# --- trust in releases -------------------------------------------------------------------------------------


class TrustError(EdgeslmError):
    """Something from outside is not to be trusted. What was trusted before stays as it was.

    Attributes:
        role: TUF role, or what else is to blame.
        expected: what should have been there.
        actual: what was there.
    """

    exit_code = 4

    def __init__(
        self,
        message: str,
        *,
        role: str | None = None,
        expected: str | None = None,
        actual: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.role = role
        self.expected = expected
        self.actual = actual


class MetadataError(TrustError):
    """Metadata of a release repository is not acceptable."""


class MetadataFormatError(MetadataError):
    """Not metadata, ambiguous, only partly signed, or of a specification that this release does not know."""


class MetadataSizeError(MetadataError):
    """A file is longer than it may be, or does not end."""


class MetadataSignatureError(MetadataError):
    """Fewer of the right keys signed than have to."""


class MetadataVersionError(MetadataError):
    """Older than what was trusted before, or another version than the metadata above it names."""


class MetadataHashError(MetadataError):
    """Other bytes than the metadata above names: files of different states were mixed."""


class MetadataExpiredError(MetadataError):
    """Its time is over: it may be an old state that somebody holds us at."""


class MetadataLimitError(MetadataError):
    """More roots or delegations than are followed at a time."""


class NoMetadataError(MetadataError):
    """No repository state was ever accepted here, so nothing can be decided yet."""


class ReleaseNotFoundError(TrustError):
    """No trusted role vouches for that release."""


class ReleaseBytesError(TrustError):
    """A file is not the one that the trusted metadata names."""


class SecurityFloorError(TrustError):
    """The release is older than the oldest that is still safe."""


class DowngradeError(TrustError):
    """The release is older than what runs, and nobody said that this is meant."""


class AssignmentError(TrustError):
    """An assignment is not one that this device may follow."""


class AssignmentFormatError(AssignmentError):
    """Not an assignment, or not in the one byte form that an assignment has."""


class AssignmentSignatureError(AssignmentError):
    """Not signed by the keys to which assignments for this device are delegated."""


class ForeignAssignmentError(AssignmentError):
    """Made for another fleet, device or device key."""


class ReplayedAssignmentError(AssignmentError):
    """Older than one that was followed before."""


class ExpiredAssignmentError(AssignmentError):
    """Its time is over; the device goes on with what it has."""


class RemoteConfigError(TrustError):
    """A configuration from the fleet is not one that this device may take up."""


class TrustStateError(EdgeslmError):
    """What the device trusts cannot be read or written.

    Attributes:
        path: the file or directory to blame.
    """

    def __init__(self, message: str, *, path: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.path = path


class MetadataFetchError(EdgeslmError):
    """A file of the repository could not be had: offline, refused, or broken off.

    Attributes:
        path: the file, relative to the repository.
    """

    def __init__(self, message: str, *, path: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.path = path


class MetadataMissingError(MetadataFetchError):
    """The repository answers, and says that there is no such file."""


class SlowRetrievalError(MetadataFetchError):
    """The file comes so slowly that it may never end."""


class ReleaseRepositoryError(EdgeslmError):
    """The release repository cannot be changed that way.

    Attributes:
        role: the TUF role to blame, where there is one.
        path: the file or directory to blame, where there is one.
    """

    def __init__(
        self, message: str, *, role: str | None = None, path: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.role = role
        self.path = path


class SigningKeyError(EdgeslmError):
    """A signing key cannot be used: no passphrase, a wrong one, or not the key that is needed.

    Attributes:
        path: the key file, where there is one.
    """

    exit_code = 2

    def __init__(self, message: str, *, path: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.path = path


# --- identity and fleet ------------------------------------------------------------------------------------


class CertificateError(TrustError):
    """A certificate or a request for one is not acceptable: wrong issuer, key, name, or form."""


class IdentityError(EdgeslmError):
    """The device's own key and certificate cannot be read or written, or there are none.

    Attributes:
        path: the file or directory to blame.
    """

    def __init__(self, message: str, *, path: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.path = path


class ClaimError(EdgeslmError):
    """Not a claim, a claim of another fleet, or one with a typing mistake."""

    exit_code = 2


class EnrolmentRefusedError(EdgeslmError):
    """The fleet does not take this device.

    Attributes:
        reason: what the fleet said.
    """

    def __init__(self, message: str, *, reason: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class FleetError(EdgeslmError):
    """The files, the store or the broker of a fleet cannot do what was asked.

    Attributes:
        path: the file or directory to blame, where there is one.
    """

    def __init__(self, message: str, *, path: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.path = path


class FleetSetupError(FleetError):
    """There is no such fleet here, or another one."""

    exit_code = 2


class FleetVersionError(FleetError):
    """The store was written by a newer release.

    Attributes:
        found: revision of the store.
        known: newest revision that this release knows.
    """

    exit_code = 2

    def __init__(self, message: str, *, found: str, known: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.found = found
        self.known = known


class UnknownDeviceError(FleetError):
    """The fleet has no such device, claim or request.

    Attributes:
        name: what was asked for.
        nearest: what there is that resembles it.
    """

    exit_code = 2

    def __init__(self, message: str, *, name: str, nearest: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=f"Did you mean {' or '.join(nearest)}?" if nearest else None)
        self.name = name
        self.nearest = nearest


class DeviceStateError(FleetError):
    """A device, claim or request is not in a state for that.

    Attributes:
        name: which.
        state: the state that it is in.
    """

    def __init__(self, message: str, *, name: str, state: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.name = name
        self.state = state


# --- link --------------------------------------------------------------------------------------------------


class LinkError(EdgeslmError):
    """The broker cannot be reached, refused us, or the connection broke."""


class NoAnswerError(LinkError):
    """A broker or device did not answer in time.

    Attributes:
        waited_s: seconds that were given to it.
    """

    def __init__(self, message: str, *, waited_s: float, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.waited_s = waited_s


class TopicError(EdgeslmError):
    """A topic is not part of the tree."""

    code = "bad_request"


class CodecError(EdgeslmError):
    """Bytes are not the message they should be."""

    code = "bad_request"


class BodySizeError(CodecError):
    """A body is longer than what is taken."""


class JournalError(EdgeslmError):
    """The device's own database cannot be read or written."""


# --- remote operations --------------------------------------------------------------------------------------


class OperationError(EdgeslmError):
    """A remote operation was not done.

    Attributes:
        reason: ``refused`` before anything was done; ``failed``, with everything as it was before; ``rolled_back``,
            after a change that did not hold; ``expired`` or ``cancelled`` meanwhile.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: Literal["refused", "failed", "rolled_back", "expired", "cancelled"],
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


# --- update of the agent itself -----------------------------------------------------------------------------


class AgentArchiveError(EdgeslmError):
    """An archive of the agent is unusable: not one, not whole, or not for boards of this kind.

    Attributes:
        path: the archive.
        member: file inside it, where one is to blame.
        expected: what should have been there.
        actual: what was there.
    """

    exit_code = 4

    def __init__(
        self,
        message: str,
        *,
        path: str,
        member: str | None = None,
        expected: str | None = None,
        actual: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.path = path
        self.member = member
        self.expected = expected
        self.actual = actual


class InstallationError(EdgeslmError):
    """The agent's own installation cannot be read or changed.

    Attributes:
        path: the file or directory to blame.
    """

    def __init__(self, message: str, *, path: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.path = path


class InstallationCancelledError(InstallationError):
    """Nobody wants it any more; what was begun of it is gone."""


# --- groups and rollouts ------------------------------------------------------------------------------------


class SelectionError(FleetError):
    """What names devices is no query, or names none.

    Attributes:
        expression: as it was written.
        position: of the fault in it, counted from 0; ``None`` where it has none.
        nearest: what there is that resembles it.
    """

    exit_code = 2

    def __init__(
        self, message: str, *, expression: str, position: int | None = None, nearest: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message, hint=f"Did you mean {' or '.join(nearest)}?" if nearest else None)
        self.expression = expression
        self.position = position
        self.nearest = nearest


class InventoryError(FleetError):
    """A file with tags, notes and groups cannot be read, or does not fit the fleet."""

    exit_code = 2


class RolloutError(FleetError):
    """A rollout cannot be begun, or is in no state for that.

    Attributes:
        rollout: which one, if there is one.
    """

    def __init__(self, message: str, *, rollout: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.rollout = rollout


# --- rules on the device ------------------------------------------------------------------------------------


class RuleFileError(YamlFileError):
    """A file of rules is wrong; the rules that ran before go on."""


class RuleFaultError(EdgeslmError):
    """A rule cannot go on with what it was given; it has done nothing, and takes the next message as ever."""


class PayloadError(RuleFaultError):
    """A message's body is not what the input that reads it is for."""


class NoReadingError(RuleFaultError):
    """A value is asked for that never came, or is too old."""


class AnswerRefusedError(RuleFaultError):
    """An answer, or what would be made of it, is not of the form that the rule allows."""


# --- the device in a home -----------------------------------------------------------------------------------


class HomeOrderError(EdgeslmError):
    """An order means nothing in this home, or nobody there can be told to do it; nothing was done."""


class AssistError(EdgeslmError):
    """The port for sentences cannot be opened, or who came to it speaks no Wyoming."""


# --- boards, profiles and flashing ----------------------------------------------------------------------------


class FlashError(EdgeslmError):
    """A board cannot be made ready."""


class TreeError(FlashError):
    """A file of an image or a machine cannot be read, written or removed.

    Attributes:
        path: the path within it.
    """

    def __init__(self, message: str, *, path: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.path = path


class TreeFullError(TreeError):
    """What is to be put there does not fit.

    Attributes:
        needed_bytes: what it takes.
        free_bytes: what is left.
    """

    def __init__(
        self, message: str, *, path: str, needed_bytes: int, free_bytes: int, hint: str | None = None
    ) -> None:
        super().__init__(message, path=path, hint=hint)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class ToolMissingError(FlashError):
    """A program of the system that is needed is not installed.

    Attributes:
        tool: its name.
        package: the Debian package that holds it.
    """

    exit_code = 2

    def __init__(self, tool: str, *, package: str) -> None:
        super().__init__(f"{tool} is not installed", hint=f"Install it: sudo apt install {package}")
        self.tool = tool
        self.package = package


class ToolFailedError(FlashError):
    """A program of the system ended badly, or did not end.

    Attributes:
        tool: its name.
        exit_status: what it ended with; ``None`` where it had to be ended.
        output: the end of what it said.
    """

    def __init__(self, message: str, *, tool: str, exit_status: int | None, output: str) -> None:
        super().__init__(message)
        self.tool = tool
        self.exit_status = exit_status
        self.output = output


class ImageError(FlashError):
    """An image of a disk cannot be read or changed.

    Attributes:
        path: the image.
    """

    def __init__(self, message: str, *, path: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.path = path


class ImageSourceError(ImageError):
    """An image cannot be unpacked: cut short, damaged, too large, or no form that is known; nothing is left of it."""

    exit_code = 4


class ImageDigestError(ImageSourceError):
    """An image is not the one that was asked for.

    Attributes:
        expected: the SHA-256 that it was to have.
        actual: the one that it has.
    """

    def __init__(
        self, message: str, *, path: str, expected: str, actual: str, hint: str | None = None
    ) -> None:
        super().__init__(message, path=path, hint=hint)
        self.expected = expected
        self.actual = actual


class PartitionError(ImageError):
    """The partition table of an image is damaged, or of a kind that is not known."""


class FileSystemError(ImageError):
    """A file system within an image is damaged, or uses what is not known."""


class BlockMapError(ImageError):
    """A block map is damaged, or does not fit its image."""


# --- cards and disks ------------------------------------------------------------------------------------------


class DiskError(FlashError):
    """A card or disk cannot be told, opened, read or written.

    Attributes:
        device: its path, or empty where none is meant.
        offset: byte at which it happened, or ``None``.
    """

    def __init__(
        self, message: str, *, device: str, offset: int | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.device = device
        self.offset = offset


class DiskRefusedError(DiskError):
    """A disk is none that edgeslm writes; nothing was written.

    Attributes:
        reasons: codes of what speaks against it, see :mod:`edgeslm.flash.disks.selection`.
    """

    exit_code = 2

    def __init__(
        self, message: str, *, device: str, reasons: tuple[str, ...] = (), hint: str | None = None
    ) -> None:
        super().__init__(message, device=device, hint=hint)
        self.reasons = reasons


class DiskBusyError(DiskError):
    """Something on this machine holds the disk."""


class DiskGoneError(DiskError):
    """The card was taken out, or its reader unplugged, while it was in use."""


class DiskFullError(DiskError):
    """The card ends before the image does."""


class DiskFaultError(DiskError):
    """The card or its reader reports that it cannot read or write."""


class FakeCapacityError(DiskError):
    """The card holds less than it says."""

    exit_code = 4


class CardContentError(DiskError):
    """The card does not hold what was to be on it: it must not be used."""

    exit_code = 4


class ImageContentError(ImageError):
    """An image is not what its block map, its size or its digest says."""

    exit_code = 4


class BatchError(FlashError):
    """Cards cannot be written one after the other as asked.

    Attributes:
        path: the file that says how far they are.
    """

    exit_code = 2

    def __init__(self, message: str, *, path: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.path = path


class ProfileError(YamlFileError):
    """A profile, or one that it extends, is not what a profile has to be."""


class ProfileSecretError(ConfigError):
    """A secret that a profile names cannot be read from where it says."""


class FirstBootError(FlashError):
    """What was asked for an image's first boot cannot be done with that image."""

    exit_code = 2


class FirstBootUnknownError(FirstBootError):
    """An image has no way of being customised that is known here.

    Attributes:
        looked_for: the telling signs that it does not have.
    """

    def __init__(self, message: str, *, looked_for: tuple[str, ...], hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.looked_for = looked_for


class FirstBootOptionError(FirstBootError):
    """An image's way of being customised cannot carry an option; nothing of it was done.

    Attributes:
        method: that way.
        option: the option, as the command line names it.
    """

    def __init__(self, message: str, *, method: str, option: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.method = method
        self.option = option


class BaseImageError(FlashError):
    """A base image cannot be made; nothing is left of it."""


class FetchPackagesError(BaseImageError):
    """Packages cannot be had from their mirror, or are not what its index says."""


class PackageFileError(BaseImageError):
    """A file is no package of Debian, or a damaged one.

    Attributes:
        path: the file.
    """

    def __init__(self, message: str, *, path: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.path = path


class EmulationError(EdgeslmError):
    """An image cannot be booted on this machine, or the emulated board did not do what was waited for."""


class PrepareError(FlashError):
    """An image cannot be prepared, or not for this board and profile; nothing was left at the name of the output.

    Attributes:
        what: is to blame: ``image``, ``agent``, ``models``, ``room``, ``board``, ``fit``, ``output`` or the key of a
            profile.
        expected: what should have been there.
        actual: what was there.
    """

    def __init__(
        self,
        message: str,
        *,
        what: str,
        expected: str | None = None,
        actual: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.what = what
        self.expected = expected
        self.actual = actual


class BootSettingsError(FlashError):
    """A setting of a profile cannot be carried out on an image.

    Attributes:
        key: of the profile.
    """

    def __init__(self, message: str, *, key: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.key = key


class FitError(FlashError):
    """A profile does not fit a board, an image or its models.

    Attributes:
        board, profile: their names.
    """

    def __init__(self, message: str, *, board: str, profile: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.board = board
        self.profile = profile


class InstallHereError(FlashError):
    """edgeslm cannot be put on this machine, or taken away from it."""


class WrongMachineError(InstallHereError):
    """What would be installed is for another machine, or nobody here may install it."""

    exit_code = 2


class DamagedInstallError(InstallHereError):
    """What would be installed is not what it was when it was made."""

    exit_code = 4
