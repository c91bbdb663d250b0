"""What a device says about itself."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

from edgeslm import codec
from edgeslm.agent.description import AgentIdentity, AgentLimits, describe
from edgeslm.cli.doctor import check_forms
from edgeslm.procfs import cpu_flags, memory_kib
from edgeslm.schema.message import MAX_BODY_BYTES, MAX_CPU_FEATURES, Info


def test_memory_and_processor_are_the_kernel_s_word_and_fit_into_a_message() -> None:
    info = describe(
        AgentIdentity("green", "kitchen", "host"), AgentLimits(), [], "estimated", datetime.now(UTC)
    )
    assert info.ram_mb == (memory_kib("MemTotal") or 0) // 1024
    assert set(info.cpu_features or ()) == set(sorted(cpu_flags() or ())[:MAX_CPU_FEATURES])
    body = codec.encode(info)
    assert len(body) < MAX_BODY_BYTES / 4
    assert codec.decode(Info, body) == info


def test_it_says_what_answers_can_be_held_to_or_that_the_library_for_it_is_missing(monkeypatch) -> None:
    def told() -> Info:
        identity = AgentIdentity("green", "kitchen", "host")
        return codec.decode(
            Info, codec.encode(describe(identity, AgentLimits(), [], "estimated", datetime.now(UTC)))
        )

    assert told().forms == ("json_schema", "regex", "choices", "grammar")
    assert check_forms().status == "ok"
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert told().forms == ()
    found = check_forms()
    assert (found.status, "llguidance" in (found.advice or "")) == ("warning", True)


def test_the_words_of_an_older_device_that_tells_neither_are_understood() -> None:
    info = describe(
        AgentIdentity("green", "kitchen", "host"), AgentLimits(), [], "estimated", datetime.now(UTC)
    )
    older = codec.encode(info.model_copy(update={"ram_mb": None, "cpu_features": None}))
    assert b"ram_mb" not in older
    assert codec.decode(Info, older).ram_mb is None
