"""The documentation agrees with itself and with the command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click
import pytest
from pydantic import BaseModel

from edgeslm.cli.main import cli
from edgeslm.errors import WireCode
from edgeslm.schema.config import (
    AgentConfig,
    BrokerConfig,
    HomeAssistantConfig,
    LimitsConfig,
    MetricsConfig,
    PrefixesConfig,
    SessionsConfig,
    UpdatesConfig,
)
from edgeslm.schema.delivery import DeliveryPolicy
from edgeslm.schema.message import Options, Receipt
from edgeslm.schema.metrics import (
    Event,
    EventType,
    InferenceMetrics,
    ModelMetrics,
    PowerMetrics,
    SystemMetrics,
    WindowState,
)
from edgeslm.schema.package import Manifest
from edgeslm.schema.power import MetersConfig

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
SHELL = {"", "sh", "bash", "shell", "console"}

SECTIONS = {
    "broker": BrokerConfig,
    "limits": LimitsConfig,
    "power": MetersConfig,
    "prefixes": PrefixesConfig,
    "sessions": SessionsConfig,
    "metrics": MetricsConfig,
    "updates": UpdatesConfig,
    "homeassistant": HomeAssistantConfig,
    "updates.delivery": DeliveryPolicy,
}
REPORTS = (PowerMetrics, InferenceMetrics, SystemMetrics, ModelMetrics, WindowState, Event)

_FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)^\1\s*$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_SEPARATORS = re.compile(r"[|&;<>()]+")


def _prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text("utf-8"))


def _anchors(page: Path) -> set[str]:
    """The anchors that the headings of `page` get."""
    titles = re.findall(r"^#+ +(.+?)\s*$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _broken_links(page: Path) -> Iterator[str]:
    for target in _LINK.findall(_prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        if not linked.exists() or (anchor and anchor not in _anchors(linked)):
            yield target


def _commands(page: Path) -> Iterator[list[str]]:
    """The `edgeslm` command lines in the shell blocks of `page`, each as its arguments."""
    for _, language, body in _FENCE.findall(page.read_text("utf-8")):
        if language.strip() not in SHELL:
            continue
        for line in body.replace("\\\n", " ").splitlines():
            yield from _commands_of(line)


def _commands_of(line: str) -> Iterator[list[str]]:
    if "edgeslm" not in line:
        return
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.commenters = "#"
    words: list[str] = []
    for token in [*lexer, ";"]:
        if not _SEPARATORS.fullmatch(token):
            words.append(token)
            continue
        # `$ sudo NAME=value .venv/bin/edgeslm ...`: what stands before the program is not ours.
        for at, word in enumerate(words):
            if word == "edgeslm" or word.endswith("/bin/edgeslm"):
                yield words[at + 1 :]
                break
            if word not in {"$", "sudo", "time"} and "=" not in word:
                break
        words = []


def _check(arguments: list[str]) -> None:
    """Raise a click error where `arguments` call what the command line does not have. Nothing runs."""
    command: click.Command = cli
    context = click.Context(cli, info_name="edgeslm")
    rest = list(arguments)
    while True:
        given, rest, _ = command.make_parser(context).parse_args(rest)
        for parameter in command.get_params(context):
            value = given.get(parameter.name or "")
            if isinstance(parameter.type, click.Choice) and isinstance(value, str):
                parameter.type.convert(value, parameter, context)
        if not isinstance(command, click.Group):
            if rest:
                raise click.UsageError(f"too many arguments: {rest}")
            return
        if not rest:
            return
        child = command.get_command(context, rest[0])
        if child is None:
            raise click.UsageError(f"no command {rest[0]}")
        context = click.Context(child, parent=context, info_name=rest[0])
        command, rest = child, rest[1:]


def _identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_identify)
def test_relative_links_lead_somewhere(page):
    assert list(_broken_links(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=_identify)
def test_shown_commands_exist_with_their_options(page):
    for arguments in _commands(page):
        try:
            _check(arguments)
        except click.UsageError as error:
            pytest.fail(f"{page.name}: edgeslm {shlex.join(arguments)}: {error.format_message()}")


def test_the_pages_show_commands_at_all():
    shown = {tuple(arguments[:2]) for page in PAGES for arguments in _commands(page)}
    assert len(shown) > 10


@pytest.mark.parametrize(
    "arguments",
    ["nonsense", "agent run --hots x", "demo --broker hivemq", "model info a b", "prompt --timeout"],
)
def test_a_wrong_command_is_found(arguments):
    with pytest.raises(click.UsageError):
        _check(arguments.split())


def test_every_page_can_be_reached_from_the_index():
    linked = {
        (DOCS / target.partition("#")[0]).resolve() for target in _LINK.findall(_prose(DOCS / "index.md"))
    }
    assert {page for page in DOCS.rglob("*.md") if page.name != "index.md"} - linked == set()


def _table_names(page: str) -> set[str]:
    return set(re.findall(r"^\| `([^`]+)`", (DOCS / page).read_text("utf-8"), re.MULTILINE))


def test_every_setting_of_the_agent_is_documented():
    names = set(AgentConfig.model_fields) - set(SECTIONS)
    names |= {f"{section}.{name}" for section, model in SECTIONS.items() for name in model.model_fields}
    assert names - _table_names("agent.md") == set()


def _shown(default: object) -> str:
    if isinstance(default, tuple):
        return " ".join(map(str, default)) or "none"
    if isinstance(default, BaseModel):
        return "see below"
    return "none" if default is None else str(default)


def test_the_documented_defaults_are_the_defaults():
    text = (DOCS / "agent.md").read_text("utf-8")
    for section, model in SECTIONS.items():
        for name, field in model.model_fields.items():
            row = next(line for line in text.splitlines() if line.startswith(f"| `{section}.{name}` |"))
            shown = row.split("|")[2].strip().strip("`").replace(",", "")
            assert shown == _shown(field.default), row


def test_every_option_receipt_field_and_error_code_is_documented():
    names = set(Options.model_fields) | set(Receipt.model_fields) | set(WireCode.__args__)
    assert names - _table_names("prompting.md") == set()


def test_every_metric_and_event_is_documented():
    names = {name for report in REPORTS for name in report.model_fields} | set(get_args(EventType))
    assert names - _table_names("metrics.md") == set()


def test_every_manifest_field_is_documented():
    assert set(Manifest.model_fields) - _table_names("models.md") == set()
