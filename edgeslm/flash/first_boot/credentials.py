"""Passwords and passphrases, turned into what an image may hold.

What always holds: neither ever stands in an argument of a program, in a file that we make, or in a message.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess

from edgeslm.errors import FirstBootError, ToolMissingError

MAX_PASSWORD_BYTES = 200
"""crypt(3) of glibc and the tools around it take more; some truncate at 256."""
_HASH = re.compile(r"\$(5|6|y)\$[./A-Za-z0-9$=]{8,200}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TIMEOUT_S = 60.0


def hash_password(password: str) -> str:
    """`password` as sha512crypt, which every image knows; what is such a hash already stays as it is.

    Raises:
        FirstBootError: it is empty, too long, or has control characters.
        ToolMissingError: openssl is not installed.
    """
    if _HASH.fullmatch(password):
        return password
    if not password:
        raise FirstBootError("the password is empty")
    if _CONTROL.search(password):
        raise FirstBootError("the password has control characters, which no keyboard can type at a log-in")
    if len(password.encode()) > MAX_PASSWORD_BYTES:
        raise FirstBootError(f"the password is longer than {MAX_PASSWORD_BYTES} bytes")
    openssl = shutil.which("openssl")
    if openssl is None:
        raise ToolMissingError("openssl", package="openssl")
    try:
        done = subprocess.run(
            [openssl, "passwd", "-6", "-stdin"],
            input=password.encode() + b"\n",
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FirstBootError("openssl could not hash the password") from error
    hashed = done.stdout.decode(errors="replace").strip()
    if done.returncode != 0 or not _HASH.fullmatch(hashed):
        raise FirstBootError("openssl could not hash the password", hint="See: openssl passwd -help")
    return hashed


def wifi_key(ssid: str, passphrase: str) -> str:
    """The key of a network (IEEE 802.11-2020, J.4.1); 64 hexadecimal digits are one already.

    Raises:
        FirstBootError: `passphrase` cannot be one of WPA: 8 to 63 characters of ASCII.
    """
    if re.fullmatch(r"[0-9A-Fa-f]{64}", passphrase):
        return passphrase.lower()
    if not 8 <= len(passphrase) <= 63:
        raise FirstBootError(
            f"the passphrase of the wireless network has {len(passphrase)} characters, not 8 to 63"
        )
    if not all(" " <= char <= "~" for char in passphrase):
        raise FirstBootError(
            "the passphrase of the wireless network has characters beyond ASCII, which not every access point "
            "understands alike",
            hint="Give the 64 digits that wpa_passphrase prints instead.",
        )
    return hashlib.pbkdf2_hmac("sha1", passphrase.encode(), ssid.encode(), 4096, 32).hex()
