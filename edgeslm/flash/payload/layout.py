"""Where things lie on a board that runs edgeslm as a service. Paths only, and those of both sides alike.

``/opt/edgeslm`` belongs to root, and the agent only reads it. ``/var/lib/edgeslm`` is the service's own (systemd's
``StateDirectory=``); the agent updates itself there, in the layout of its launcher. What the launcher calls its files
is written down in :mod:`edgeslm.agent.launcher`, which imports nothing of ours; the tests hold the two together.
"""

from __future__ import annotations

OPT = "/opt/edgeslm"
LAUNCHER = f"{OPT}/launch.py"
MODELS = f"{OPT}/models"
MANIFEST = f"{OPT}/installed.json"
PERSONAL = f"{OPT}/personal.json"
"""What a prepared image was told of its user, for the next card that is made of it; root's alone."""

STATE = "/var/lib/edgeslm"
AGENT_ROOT = f"{STATE}/agent"
VERSIONS = f"{AGENT_ROOT}/versions"
CURRENT = f"{AGENT_ROOT}/current"

ETC = "/etc/edgeslm"
SETTINGS = f"{ETC}/agent.yaml"
CLAIM = f"{ETC}/claim.json"
RULES = f"{ETC}/rules"
BROKER_PASSWORD = f"{ETC}/broker.password"
BROKER_CA = f"{ETC}/broker-ca.pem"

UNIT_NAME = "edgeslm-agent.service"
UNIT = f"/etc/systemd/system/{UNIT_NAME}"
UNIT_LINK = f"/etc/systemd/system/multi-user.target.wants/{UNIT_NAME}"
UNIT_LINK_TARGET = f"../{UNIT_NAME}"
