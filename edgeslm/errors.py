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


class LedgerError(EdgeslmError):
    """The energy ledger cannot be read or written."""


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


class JournalError(EdgeslmError):
    """The device's own database cannot be read or written."""
