"""Asking systemd of the running board."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from .manifest import OnboardError

Tell = Callable[[str], None]
_SYSTEMD_RUNS = "/run/systemd/system"
_ASKED_S = 60
_SAID_LINES = 5


def is_live(root: Path) -> bool:
    """Whether `root` is this running machine, with systemd."""
    return root == Path("/") and Path(_SYSTEMD_RUNS).is_dir()


def is_active(service: str) -> bool:
    """Whether the service runs, or is about to."""
    return _ask("systemctl", "show", "--property=ActiveState", "--value", service) in {"active", "activating"}


def start_service(service: str, tell: Tell) -> None:
    """Let systemd run the service, in place of one that runs.

    Raises:
        OnboardError: it does not start; what it said itself stands in the message.
    """
    systemctl("daemon-reload")
    tell(f"starting {service}")
    try:
        systemctl("restart", service)
    except OnboardError as error:
        said = _ask("journalctl", "-u", service, "-n", str(_SAID_LINES), "--no-pager", "-o", "cat")
        lines = [line for line in said.splitlines() if line.startswith("edgeslm")] or said.splitlines()
        raise OnboardError(
            f"{service} does not start: {lines[-1][-500:] if lines else error.message}",
            f"All of it is on the board, and is tried again. journalctl -u {service} says more",
        ) from error


def stop_service(service: str, tell: Tell) -> None:
    """Stop the service, where it is known.

    Raises:
        OnboardError: systemd refuses.
    """
    tell(f"stopping {service}")
    if _ask("systemctl", "show", "--property=LoadState", "--value", service) == "loaded":
        systemctl("stop", service)


def forget_service(service: str) -> None:
    """Let systemd see that the unit is gone.

    Raises:
        OnboardError: it refuses.
    """
    systemctl("daemon-reload")
    _ask("systemctl", "reset-failed", service)


def systemctl(*words: str) -> None:
    """Ask systemd for something.

    Raises:
        OnboardError: it refuses; its own words are shown.
    """
    command = ["systemctl", *words]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise OnboardError(f"systemctl cannot be run: {error.strerror}") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-500:]
        raise OnboardError(f"{' '.join(command)} failed: {said or f'exit status {done.returncode}'}")


def _ask(*command: str) -> str:
    """What a program says; nothing where it cannot be asked."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
            timeout=_ASKED_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
