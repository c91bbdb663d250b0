"""How the meters tell what went wrong: every foreign error becomes one :class:`MeterError` with its fault named."""

from __future__ import annotations

from edgeslm.errors import MeterError


def failed(meter: str, error: OSError | ValueError) -> MeterError:
    """The error to raise where reading `meter` ended in `error`: gone if it did not answer, else rubbish."""
    if isinstance(error, OSError):
        return MeterError(f"{meter} does not answer: {error.strerror or error}", meter=meter, fault="gone")
    return MeterError(f"{meter} says what cannot be: {str(error)[:80]}", meter=meter, fault="rubbish")
