"""What the guide shows is run, in its order."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.update_trust_rig import Rig
from edgeslm.fleet.releases import ReleaseRepository
from edgeslm.trust.fetch import DirectoryFetch
from edgeslm.trust.releases import TrustedReleases, enrol
from edgeslm.trust.storage import TrustStorage

GUIDE = Path(__file__).parents[2] / "docs" / "releases.md"


def test_the_guide_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copy(
        Rig(tmp_path / "rig").directory / "greenhouse-advisor-1.0.0.slm", tmp_path / "greenhouse-advisor.slm"
    )
    (tmp_path / "passphrase").write_text("words of the operator\n")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 6
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    repository = ReleaseRepository(tmp_path / "releases")
    assert [item.info.name for item in repository.releases()] == ["greenhouse-advisor"]
    storage = TrustStorage(tmp_path / "device")
    enrol(storage, repository.root_bytes())
    device = TrustedReleases(storage, DirectoryFetch(repository.public))
    assert device.refresh().root == 2
    assert device.find("greenhouse-advisor", "1.0.0")
    assert {item.role: item.missing for item in repository.pending()} == {"growers": 1, "targets": 2}
