"""Writes docs/cli.md from ``--help``: ``python -m edgeslm.cli.reference > docs/cli.md``. A test compares them."""

from __future__ import annotations

from collections.abc import Iterator

import click

from edgeslm.cli.main import cli

_WIDTH = 110


def reference() -> str:
    """The whole command line as Markdown."""
    head = "# Command line\n\nGenerated from `--help` with `make docs-cli`.\n"
    return head + "".join(_section(path, command) for path, command in _walk("edgeslm", cli))


def _walk(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None:
                yield from _walk(f"{path} {name}", child)


def _section(path: str, command: click.Command) -> str:
    context = click.Context(command, info_name=path, max_content_width=_WIDTH, terminal_width=_WIDTH)
    level = "#" * (path.count(" ") + 2)
    return f"\n{level} {path}\n\n```text\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    click.echo(reference(), nl=False)
