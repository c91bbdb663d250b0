"""What the names of wheels say, and where a release of the agent lies."""

from __future__ import annotations

import pytest

from edgeslm.schema.agent_release import (
    AgentInfo,
    AgentRequirements,
    requirements_of,
    semantic_version,
    wheel_version,
)


@pytest.mark.parametrize(
    ("python", "ours"),
    [("1.2.0", "1.2.0"), ("1.2.0rc1", "1.2.0-rc1"), ("1.2.0.dev3", "1.2.0-dev3"), ("0.1.0a2", "0.1.0-a2")],
)
def test_a_version_of_python_has_our_form(python: str, ours: str):
    assert semantic_version(python) == ours


@pytest.mark.parametrize("python", ["1.2", "1!1.2.0", "1.2.0.post1", "1.2.0+local", "x"])
def test_a_version_that_has_no_such_form_is_refused(python: str):
    with pytest.raises(ValueError, match="no version of the form"):
        semantic_version(python)


@pytest.mark.parametrize(
    ("names", "pythons", "machine", "glibc"),
    [
        (["a-1-py3-none-any.whl"], range(11, 20), "any", None),
        (["a-1-py2.py3-none-any.whl"], range(11, 20), "any", None),
        (["a-1-cp312-none-any.whl"], [12], "any", None),
        (["a-1-1-cp311-cp311-linux_aarch64.whl"], [11], "aarch64", None),
        (["a-1-cp39-abi3-manylinux2014_aarch64.whl"], range(11, 20), "aarch64", "2.17"),
        (["a-1-cp313-abi3-manylinux_2_34_x86_64.whl"], range(13, 20), "x86_64", "2.34"),
        (["a-1-cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64.whl"], [11], "aarch64", "2.17"),
        (["a-1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl"], [11], "x86_64", "2.27"),
        (
            ["a-1-cp311-cp311-manylinux_2_17_x86_64.whl", "b-1-py3-none-manylinux_2_35_x86_64.whl"],
            [11],
            "x86_64",
            "2.35",
        ),
    ],
)
def test_wheels_say_what_they_run_on(
    names: list[str], pythons: range | list[int], machine: str, glibc: str | None
):
    expected = AgentRequirements(
        pythons=tuple(f"3.{minor}" for minor in pythons), machine=machine, glibc=glibc
    )
    assert requirements_of(names) == expected


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a.whl"], "not the name of a wheel"),
        (["a-1-cp310-cp310-any.whl"], "no Python runs it"),
        (["a-1-cp311-cp311-any.whl", "b-1-cp312-cp312-any.whl"], "no Python runs it"),
        (["a-1-cp311-cp311-musllinux_1_2_aarch64.whl"], "not for one machine with Linux and glibc"),
        (["a-1-cp311-cp311-win_amd64.whl"], "not for one machine with Linux and glibc"),
        (["a-1-cp311-cp311-macosx_11_0_arm64.whl"], "not for one machine with Linux and glibc"),
    ],
)
def test_wheels_that_run_nowhere_are_refused(names: list[str], reason: str):
    with pytest.raises(ValueError, match=reason):
        requirements_of(names)


def test_the_version_is_that_of_the_one_wheel_of_edgeslm():
    assert (
        wheel_version(["edgeslm-1.2.0rc1-py3-none-any.whl", "edgeslm_extra-9-py3-none-any.whl"])
        == "1.2.0-rc1"
    )


def test_its_files_lie_under_version_and_digest():
    info = AgentInfo(
        version="1.2.0",
        sha256="a" * 64,
        size_bytes=1,
        installed_bytes=1,
        requires=AgentRequirements(pythons=("3.11",)),
        chunks_sha256="b" * 64,
    )
    assert info.paths == (
        f"targets/agents/1.2.0/{'a' * 64}.edgeslm-agent.tar",
        f"targets/agents/1.2.0/{'b' * 64}.edgeslm-agent.tar.chunks",
    )
