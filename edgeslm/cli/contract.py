"""``edgeslm contract``: the wire as documents, and messages held against it.

``python -m edgeslm.cli.contract`` renews docs/contract. A test compares what it writes with what stands there, so the
documents cannot drift from the code.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from edgeslm.cli.output import json_option, print_json, printable, reporting_errors
from edgeslm.errors import UsageError

ASYNCAPI_FILE = "asyncapi.yaml"
SCHEMA_DIRECTORY = "schemas"
_DIRECTORY = click.Path(path_type=Path, file_okay=False)
_PAGES = Path("docs") / "contract"

out_option = click.option("--out", type=_DIRECTORY, help="Directory to write to; default: print.")


@click.group()
def contract() -> None:
    """Write down what devices hear and say, for programs to read."""


@contract.command()
@out_option
@json_option
@reporting_errors
def asyncapi(out: Path | None, as_json: bool) -> None:
    """The topics, and the messages on them, as an AsyncAPI 3 document."""
    if out is not None:
        _tell([write(out, ASYNCAPI_FILE, asyncapi_text())], as_json)
    elif as_json:
        from edgeslm.cli.contract_asyncapi import document  # noqa: PLC0415

        print_json(document())
    else:
        click.echo(asyncapi_text(), nl=False)


@contract.command()
@out_option
@json_option
@reporting_errors
def schemas(out: Path | None, as_json: bool) -> None:
    """The JSON Schema of every message."""
    from edgeslm.cli.contract_schemas import schema_files  # noqa: PLC0415

    files = schema_files()
    if out is not None:
        _tell([write(out, name, json_text(schema)) for name, schema in files.items()], as_json)
    elif as_json:
        print_json(files)
    else:
        click.echo(json_text(files), nl=False)


@contract.command()
@click.argument("log", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@json_option
@reporting_errors
def check(log: Path, as_json: bool) -> None:
    """Look whether the messages in LOG, which edgeslm record wrote, are as devices and fleets take them.

    Exit code 4 if any is not. What is not on a topic of edgeslm is passed over.
    """
    from edgeslm.agent.rules.replay import payload_of, read_log  # noqa: PLC0415
    from edgeslm.cli.contract_check import Fault, Findings, fault_of, is_ours  # noqa: PLC0415

    messages = checked = 0
    faults = []
    for message in read_log(log):
        messages += 1
        if not is_ours(message.topic):
            continue
        checked += 1
        found = fault_of(message.topic, payload_of(message), retain=message.retain)
        if found is not None:
            faults.append(Fault(number=messages, topic=message.topic, fault=found))
    if as_json:
        print_json(Findings(messages=messages, checked=checked, faults=tuple(faults)))
    else:
        for fault in faults:
            click.echo(f"{fault.number}: {printable(fault.topic)}: {printable(fault.fault)}")
        click.echo(f"{checked} of {messages} messages are of edgeslm; {len(faults)} with a fault", err=True)
    if faults:
        sys.exit(4)


def contract_files() -> dict[str, str]:
    """All documents: their text by their path in docs/contract."""
    from edgeslm.cli.contract_schemas import schema_files  # noqa: PLC0415

    made = {f"{SCHEMA_DIRECTORY}/{name}": json_text(schema) for name, schema in schema_files().items()}
    return {ASYNCAPI_FILE: asyncapi_text(), **made}


def asyncapi_text() -> str:
    """The AsyncAPI document as YAML."""
    import yaml  # noqa: PLC0415

    from edgeslm.cli.contract_asyncapi import document  # noqa: PLC0415

    # By way of JSON: what is the same object twice would become an anchor, which not every reader of YAML knows.
    plain = json.loads(json.dumps(document()))
    head = "# Written by `make docs-contract`; docs/contract.md says what it is for.\n"
    return head + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=110)


def json_text(value: dict[str, Any]) -> str:
    """A document in JSON, for people too."""
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def write(directory: Path, name: str, text: str) -> Path:
    """Write one document.

    Raises:
        UsageError: it cannot be written there.
    """
    path = directory / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    return path


def _tell(paths: list[Path], as_json: bool) -> None:
    if as_json:
        print_json({"written": [str(path) for path in paths]})
        return
    for path in paths:
        click.echo(str(path))


if __name__ == "__main__":
    made = contract_files()
    for former in sorted(_PAGES.rglob("*.schema.json")):
        if str(former.relative_to(_PAGES)) not in made:
            former.unlink()
    _tell([write(_PAGES, name, text) for name, text in made.items()], as_json=False)
