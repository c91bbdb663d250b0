"""Settings that a fleet gives to a device: the signed document, and what may stand in it.

The settings are an overlay: what they name goes before the device's own file, everything else stays as that file says.
They travel as JSON in a text, since canonical JSON knows no fractions. Only keys of :data:`SETTABLE` may be set from
afar; every other one names a thing that a wrong value could not be taken back from, or that is not a matter of
settings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from edgeslm.errors import ConfigError
from edgeslm.schema.assignment import DEFAULT_LIFETIME, MAX_LIFETIME, UtcSeconds
from edgeslm.schema.base import Identifier, Sha256, WireModel

DEFAULT_CONFIG_LIFETIME: timedelta = DEFAULT_LIFETIME
DEFAULT_CONFIRM_S: Final = 120
MIN_CONFIRM_S: Final = 10
MAX_CONFIRM_S: Final = 900
MAX_SETTINGS_CHARS: Final = 16_384
MAX_REMOTE_CONFIG_BYTES: Final = 49_152
MAX_NESTING: Final = 8

SETTABLE: Final[dict[str, frozenset[str] | None]] = {
    "limits": None,
    "metrics": None,
    "budget": None,
    "prefixes": None,
    "sessions": None,
    "threads": None,
    "models_memory_mb": None,
    "pool": None,
    "power": frozenset({"sample_hz", "hwmon", "plug", "disabled"}),
    "updates": frozenset({"sources", "is_metered", "delivery", "policy"}),
    "homeassistant": frozenset({"enabled", "prefix"}),
    "broker": frozenset({"host", "port", "protocol", "keepalive_s", "session_expiry_s"}),
}
"""What may be set from afar; of some sections only these keys."""

_REASONS: Final = {
    "fleet": "a device is told its fleet when it joins",
    "device": "a device is told its name when it joins; see edgeslm fleet rename",
    "state_dir": "it would leave its journal and its identity behind",
    "board": "the board is what the device is",
    "models": "models are assigned; see edgeslm fleet assign",
    "runtime": "the runtime is what is installed on the board",
    "rules": "it names places on the device",
    "power.vcgencmd": "it names a program that the device runs",
    "power.root": "it names a place on the device",
    "power.calibration_file": "it names a place on the device",
    "updates.releases": "from there comes what the device trusts, changes of its settings included",
    "homeassistant.home": "it names a place on the device",
    "homeassistant.wyoming_port": "whoever reaches that port is heard",
    "homeassistant.wyoming_host": "whoever reaches that port is heard",
    "broker.username": "how the device logs in comes with its identity",
    "broker.password_file": "how the device logs in comes with its identity",
    "broker.ca_file": "how the device logs in comes with its identity",
    "broker.cert_file": "how the device logs in comes with its identity",
    "broker.key_file": "how the device logs in comes with its identity",
}

SettingsText = Annotated[str, StringConstraints(pattern=r"^[ -~]*$", max_length=MAX_SETTINGS_CHARS)]
"""JSON in ASCII; canonical JSON leaves control characters as they are, which no parser would read back."""
ConfigVersion = Annotated[int, Field(ge=1, lt=2**53)]
ConfirmSeconds = Annotated[int, Field(ge=MIN_CONFIRM_S, le=MAX_CONFIRM_S)]


class RemoteConfig(WireModel):
    """What one device should run with, on top of its own file.

    Attributes:
        device_key_sha256: digest of the device's public key (DER, SubjectPublicKeyInfo).
        version: rises with every configuration of this device.
        expires_at: until then it may be taken up; once it is in force it stays so.
        confirm_s: seconds within which the device has to be at the broker with it; else it goes back by itself.
        settings: JSON of the overlay; ``{}`` takes everything back that was set from afar.
    """

    v: Literal[1] = 1
    type: Literal["configuration"] = "configuration"
    fleet: Identifier
    device: Identifier
    device_key_sha256: Sha256
    version: ConfigVersion
    issued_at: UtcSeconds
    expires_at: UtcSeconds
    confirm_s: ConfirmSeconds = DEFAULT_CONFIRM_S
    settings: SettingsText

    @model_validator(mode="after")
    def _short_lived(self) -> Self:
        if not timedelta(0) < self.expires_at - self.issued_at <= MAX_LIFETIME:
            raise ValueError(f"has to expire after it was issued, and within {MAX_LIFETIME.days} days")
        return self


def settings_text(settings: Mapping[str, Any]) -> str:
    """`settings` as they travel.

    Raises:
        ConfigError: they hold what JSON has no form for, such as a date, or are too long.
    """
    try:
        text = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the settings cannot be sent: {str(error)[:200]}") from error
    if len(text) > MAX_SETTINGS_CHARS:
        raise ConfigError(
            f"the settings are {len(text)} characters long, at most {MAX_SETTINGS_CHARS} are sent"
        )
    return text


def parse_settings(text: str) -> dict[str, Any]:
    """The overlay in `text`, all of whose keys may be set from afar.

    Raises:
        ConfigError: it is none, or holds a key that may not be.
    """
    try:
        settings = json.loads(text, object_pairs_hook=_each_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the settings are not plain JSON: {str(error)[:200]}") from error
    if not isinstance(settings, dict):
        raise ConfigError("the settings are no mapping of settings")
    check_settings(settings)
    return settings


def check_settings(settings: Mapping[str, Any]) -> None:
    """Make sure that `settings` hold nothing that may not be set from afar.

    Raises:
        ConfigError: they do; it names the key and says why.
    """
    for name, value in settings.items():
        keys = SETTABLE.get(name, frozenset())
        if name not in SETTABLE:
            raise _refused(name, " ".join(sorted(SETTABLE)))
        if keys is None:
            continue
        if not isinstance(value, dict):
            raise ConfigError(f"{name}: a mapping of settings is expected", key=name)
        for key in value:
            if key not in keys:
                raise _refused(f"{name}.{key}", " ".join(f"{name}.{one}" for one in sorted(keys)))
    if _is_deeper(settings, MAX_NESTING):
        raise ConfigError(f"the settings are nested more than {MAX_NESTING} levels deep")


def merged(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `overlay` on top: mappings key by key, all else as a whole.

    A budget is one thing, and replaced as one; its parts make no sense beside those of another.
    """
    return _merged(base, overlay, whole=frozenset({"budget"}))


def flattened(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by dotted key."""
    return dict(_leaves(settings))


def _merged(base: Mapping[str, Any], overlay: Mapping[str, Any], whole: frozenset[str]) -> dict[str, Any]:
    out = dict(base)
    for key, value in overlay.items():
        before = out.get(key)
        if key not in whole and isinstance(before, dict) and isinstance(value, dict):
            out[key] = _merged(before, value, frozenset())
        else:
            out[key] = value
    return out


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_deeper(value: object, levels: int) -> bool:
    """Whether `value` holds more than so many levels of mappings and lists."""
    layer: list[object] = [value]
    for _ in range(levels):
        layer = [
            inner
            for one in layer
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return any(isinstance(one, dict | list) for one in layer)


def _refused(key: str, settable: str) -> ConfigError:
    reason = _REASONS.get(key, "there is no such setting")
    return ConfigError(
        f"{ascii(key)[1:-1][:80]} cannot be set from afar: {reason}", key=key, hint=f"What can be: {settable}"
    )


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")
