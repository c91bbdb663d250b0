"""Takes out of a text what nobody else may know: what diagnostics hold goes through here. Pure.

Three nets, each for what the others miss: names of settings that hold secrets; forms in which secrets are written
(addresses with users, headers, private keys); and the secrets of this device themselves, word for word.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

REMOVED = "(removed)"

_SECRET_NAME = re.compile(
    r"passw(or)?d|passphrase|secret|token|credential|api_?key|private|key_file|authorization|cookie",
    re.IGNORECASE,
)
_USER_INFO = re.compile(r"\b([a-z][a-z0-9+.-]{0,31}://)[^\s/?#@\"']{1,1024}@", re.IGNORECASE)
_QUERY = re.compile(r"\b([a-z][a-z0-9+.-]{0,31}://[^\s?#\"']{1,1024})[?#][^\s\"']{0,4096}", re.IGNORECASE)
_HEADER = re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE)
_NAME = (
    r"((?:passw(?:or)?d|passphrase|secret|token|credential|api[_-]?key|authorization|cookie)[\"']?\s*[:=]\s*)"
)
_QUOTED = re.compile(_NAME + r"""(?:"[^"\n]{1,4096}"|'[^'\n]{1,4096}')""", re.IGNORECASE)
_NAMED = re.compile(_NAME + r"(?!'\(removed\)')[\"']?[^\s,;\"'})]{1,4096}", re.IGNORECASE)
_PEM = re.compile(
    r"-----BEGIN [A-Z ]{0,40}(?:PRIVATE KEY)-----.*?(?:-----END [A-Z ]{0,60}-----|\Z)", re.DOTALL
)
_LEAST_CHARS = 4
"""A known secret that is shorter would take out half of the text."""


class Redactor:
    """Knows what may not be told."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """Take what is known to be secret, such as the content of the password file."""
        found: set[str] = set()
        for secret in secrets:
            for part in (secret, *secret.split("\n")):
                word = part.strip()
                if len(word) >= _LEAST_CHARS and not word.startswith("-----"):
                    found |= {word, base64.b64encode(word.encode()).decode().rstrip("=")}
        # The longest first: a secret may be part of another one.
        self._secrets = sorted(found, key=len, reverse=True)

    def text(self, text: str) -> str:
        """`text` without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, REMOVED)
        text = _PEM.sub(REMOVED, text)
        text = _USER_INFO.sub(rf"\1{REMOVED}@", text)
        text = _QUERY.sub(rf"\1?{REMOVED}", text)
        text = _HEADER.sub(rf"\1 {REMOVED}", text)
        text = _QUOTED.sub(rf"\1'{REMOVED}'", text)
        return _NAMED.sub(rf"\1{REMOVED}", text)

    def value(self, value: Any) -> Any:
        """JSON without secrets: what their names give away, and :meth:`text` of all that is left."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {
                str(name): REMOVED if _SECRET_NAME.search(str(name)) and _holds(item) else self.value(item)
                for name, item in value.items()
            }
        if isinstance(value, Sequence):
            return [self.value(item) for item in value]
        return value


def _holds(value: Any) -> bool:
    """Whether a value can be a secret: numbers are counts, as of tokens, and nothing is nothing."""
    return not (value is None or isinstance(value, bool | int | float))
