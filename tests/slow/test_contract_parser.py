"""The AsyncAPI document is one, by the AsyncAPI project's own parser.

`make test-contract` installs the parser and names its directory in EDGESLM_ASYNCAPI.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from edgeslm.cli.contract_channels import channels

ROOT = Path(__file__).parents[2]
CHECK = Path(__file__).parent / "peers" / "asyncapi_check.mjs"
PARSER = os.environ.get("EDGESLM_ASYNCAPI")
ERROR = 0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(PARSER is None, reason="run by `make test-contract`"),
]


def _parse(path: Path) -> dict:
    done = subprocess.run(
        ["node", str(CHECK), str(path)], cwd=PARSER, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def parsed() -> dict:
    return _parse(ROOT / "docs" / "contract" / "asyncapi.yaml")


def test_the_parser_finds_no_fault(parsed):
    allowed = {"asyncapi-latest-version"}  # 3.0 is what tools know; a newer version exists
    assert [one for one in parsed["found"] if one["code"] not in allowed] == []


def test_the_parser_reads_every_channel_with_its_direction(parsed):
    read = {(one["channels"][0], one["action"]) for one in parsed["operations"]}
    assert read == {(channel.address, channel.action) for channel in channels()}


def test_a_document_with_a_fault_is_found(tmp_path):
    text = (ROOT / "docs" / "contract" / "asyncapi.yaml").read_text("utf-8")
    broken = tmp_path / "asyncapi.yaml"
    broken.write_text(text.replace("#/components/messages/cancel'", "#/components/messages/nothing'"))
    assert any(one["severity"] == ERROR for one in _parse(broken)["found"])
