"""What integrations of Home Assistant need besides Home Assistant itself, as ``pip`` takes it, one requirement a line.

Home Assistant installs this by itself when an integration is set up; here it may install nothing. Run by the Python of
its environment: ``python home_assistant_needs.py mqtt wyoming``.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path


def needs(names: list[str]) -> list[str]:
    """Requirements of the integrations of these `names`, and of those that they depend on."""
    spec = find_spec("homeassistant")
    if spec is None or spec.origin is None:
        raise SystemExit("this Python has no homeassistant")
    components = Path(spec.origin).parent / "components"
    found: set[str] = set()
    left, done = list(names), set[str]()
    while left:
        name = left.pop()
        if name in done:
            continue
        done.add(name)
        manifest = json.loads((components / name / "manifest.json").read_text("utf-8"))
        found.update(manifest.get("requirements", ()))
        left += manifest.get("dependencies", ())
    return sorted(found)


if __name__ == "__main__":
    print("\n".join(needs(sys.argv[1:])))
