"""``edgeslm cache serve``: files of releases for the devices of a local network, fetched once."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from edgeslm.cli.output import CommandGroup, reporting_errors, stopped_by_signals

_WATCH_S = 0.5


@click.group(cls=CommandGroup)
def cache() -> None:
    """Keep files of releases near the devices that want them."""


@cache.command()
@click.option(
    "--from",
    "upstream",
    required=True,
    metavar="URL",
    help="Address of edgeslm fleet serve, or of another cache.",
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Holds the files; it is made when missing.",
)
@click.option("--host", default="0.0.0.0", show_default=True, help="Address to listen on.")  # noqa: S104
@click.option("--port", type=click.IntRange(0, 65_535), default=8081, show_default=True, help="0: any.")
@click.option(
    "--max-mb",
    type=click.IntRange(1, 10_000_000),
    default=2048,
    show_default=True,
    help="Room for files, MiB.",
)
@click.option(
    "--max-kb-per-s",
    type=click.IntRange(1),
    help="Most KiB a second that each file is fetched with; default: no limit.",
)
@reporting_errors
def serve(
    upstream: str, directory: Path, host: str, port: int, max_mb: int, max_kb_per_s: int | None
) -> None:
    """Give devices files of releases until SIGTERM or Ctrl-C; what is not here comes from --from, once.

    Devices name its address in updates.sources of their settings. They check every byte: whoever runs a cache need not
    be trusted.
    """
    from edgeslm.delivery.cache import ReadThrough  # noqa: PLC0415
    from edgeslm.delivery.http_server import PackageServer, by_sha256  # noqa: PLC0415
    from edgeslm.schema.delivery import DeliveryPolicy  # noqa: PLC0415

    logging.getLogger("edgeslm.delivery.cache").setLevel(logging.INFO)
    cap = None if max_kb_per_s is None else max_kb_per_s * 1024
    policy = DeliveryPolicy(deadline_s=3600.0, max_bytes_per_s=cap)
    files = ReadThrough(upstream, directory, max_bytes=max_mb * 2**20, policy=policy)
    with (
        stopped_by_signals() as stop,
        PackageServer(by_sha256(files.find), host=host, port=port, max_connections=64) as server,
    ):
        try:
            click.echo(
                f"cache of {upstream} at {server.url}, {files.size_bytes()} bytes are in {directory}",
                err=True,
            )
            while not stop.wait(_WATCH_S):
                pass
        finally:
            files.stop()
