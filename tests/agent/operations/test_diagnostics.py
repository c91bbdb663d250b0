from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Mapping
from typing import Any

import pytest

from edgeslm.agent.operations.diagnostics import LOG, Diagnostics, pack
from edgeslm.agent.operations.ports import Command, Done
from edgeslm.agent.operations.redaction import REMOVED, Redactor
from edgeslm.errors import LedgerError, OperationError
from edgeslm.schema.message import MAX_BODY_BYTES
from edgeslm.schema.operation import OperationEvent
from edgeslm.schema.operation_results import MAX_BUNDLE_BYTES, Bundle

COMMAND = Command("a", "diagnostics", {})
SECRET = "planted-5ecret"


class Quiet:
    def tell(self, text: str, share: float | None = None) -> None: ...

    def is_cancelled(self) -> bool:
        return False


def opened(result: Mapping[str, Any]) -> tuple[Bundle, dict[str, str]]:
    bundle = Bundle.model_validate(dict(result))
    data = base64.b64decode(bundle.data)
    assert (len(data), hashlib.sha256(data).hexdigest()) == (bundle.size_bytes, bundle.sha256)
    files = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive.getmembers():
            content = archive.extractfile(member)
            assert content is not None
            files[member.name] = content.read().decode()
    return bundle, files


def noise(size: int) -> str:
    return "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789\n ", k=size))


def test_each_part_is_a_file_and_none_holds_a_secret() -> None:
    parts = {
        "config.json": lambda: {"broker": {"password": SECRET}, "url": f"http://u:{SECRET}@h/"},
        "log.txt": lambda: f"one {SECRET}\ntwo",
        "list.json": lambda: [1, {"two": SECRET}],
    }
    done = Diagnostics(parts, lambda: Redactor([SECRET])).begin(COMMAND, Quiet())
    assert isinstance(done, Done)
    bundle, files = opened(done.result)
    assert set(files) == set(parts) == set(bundle.files)
    assert bundle.cut == ()
    assert SECRET not in json.dumps(files)
    assert json.loads(files["config.json"]) == {
        "broker": {"password": REMOVED},
        "url": f"http://{REMOVED}@h/",
    }
    assert files["log.txt"] == f"one {REMOVED}\ntwo"


@pytest.mark.parametrize(
    "error", [LedgerError(f"x {SECRET}"), OSError(5, "io"), KeyError("k"), TypeError("t")]
)
def test_a_part_that_cannot_be_had_says_so_and_keeps_none_out(error: Exception) -> None:
    def broken() -> object:
        raise error

    done = Diagnostics({"a.json": broken, "b.json": lambda: {"x": 1}}, lambda: Redactor([SECRET])).begin(
        COMMAND, Quiet()
    )
    assert isinstance(done, Done)
    _, files = opened(done.result)
    assert files["a.json"].startswith(f"this part cannot be had: {type(error).__name__}")
    assert SECRET not in files["a.json"]
    assert json.loads(files["b.json"]) == {"x": 1}


def test_the_log_is_cut_first_and_its_latest_lines_stay() -> None:
    log = noise(600_000) + "\nthe latest line"
    data, cut = pack({"a.json": "{}", LOG: log, "b.json": noise(20_000)})
    assert len(data) <= MAX_BUNDLE_BYTES
    assert cut == (LOG,)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        kept = archive.extractfile(LOG)
        assert kept is not None
        text = kept.read().decode()
    assert text.endswith("the latest line")
    assert len(text) > 50_000


def test_whatever_is_put_in_it_fits_into_one_event() -> None:
    data, cut = pack({name: noise(500_000) for name in ("a.json", "b.json", LOG)})
    assert len(data) <= MAX_BUNDLE_BYTES
    assert set(cut) == {"a.json", "b.json", LOG}
    done = Diagnostics({LOG: lambda: noise(1_000_000)}, Redactor).begin(COMMAND, Quiet())
    assert isinstance(done, Done)
    event = OperationEvent(
        device="d" * 64,
        id="i" * 128,
        op="o" * 64,
        state="done",
        at="x" * 32,
        text="t" * 500,
        result=dict(done.result),
    )
    assert len(event.model_dump_json()) < MAX_BODY_BYTES


def test_it_takes_no_arguments_and_is_not_done_twice() -> None:
    diagnostics = Diagnostics({}, Redactor)
    with pytest.raises(OperationError) as refused:
        diagnostics.begin(Command("a", "diagnostics", {"path": "/etc/shadow"}), Quiet())
    assert refused.value.reason == "refused"
    with pytest.raises(OperationError) as failed:
        diagnostics.resume(COMMAND, None, Quiet())
    assert failed.value.reason == "failed"
