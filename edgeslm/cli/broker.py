"""``edgeslm broker``: configuration for the MQTT broker that a production set-up needs."""

from __future__ import annotations

from pathlib import Path

import click

from edgeslm.cli.output import reporting_errors
from edgeslm.errors import ConfigError, UsageError

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def broker() -> None:
    """Set up the MQTT broker."""


@broker.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Default: 8883 with TLS, 1883 without.")
@click.option("--bind", "bind_address", help="Address to listen on; default is all.")
@click.option(
    "--password-file", type=_FILE, help="Log in by password; the file is made with mosquitto_passwd."
)
@click.option("--ca", "ca_file", type=_FILE, help="Certificate authority: switches TLS on.")
@click.option("--cert", "cert_file", type=_FILE, help="The broker's certificate.")
@click.option("--key", "key_file", type=_FILE, help="The broker's private key.")
@click.option(
    "--client-certificates/--no-client-certificates", default=True, help="Whether each client needs one."
)
@click.option("--acl-file", type=_FILE, help="Access list.")
@click.option(
    "--anonymous", is_flag=True, help="Let clients in without credentials: for a closed network only."
)
@click.option(
    "--persistence-dir",
    type=click.Path(path_type=Path),
    default="/var/lib/mosquitto",
    show_default=True,
    help="Where sessions and queued messages survive a restart.",
)
@click.option(
    "--drop-in", is_flag=True, help="For Debian's conf.d: leave out what its mosquitto.conf sets itself."
)
@click.option(
    "--bridge",
    "bridge_host",
    help="Broker that this one, on a board, passes its device's messages to and from.",
)
@click.option("--bridge-port", type=click.IntRange(1, 65535), help="Default: 8883 with TLS, 1883 without.")
@click.option("--fleet", default="home", show_default=True, help="Fleet of the device behind the bridge.")
@click.option("--device", help="The device behind the bridge; needed with --bridge.")
@click.option("--bridge-username", help="User name at the other broker.")
@click.option("--bridge-password-file", type=_FILE, help="File that holds the password there.")
@click.option(
    "--bridge-ca", "bridge_ca_file", type=_FILE, help="Certificate authority there: switches TLS on."
)
@click.option("--bridge-cert", "bridge_cert_file", type=_FILE, help="Client certificate there.")
@click.option("--bridge-key", "bridge_key_file", type=_FILE, help="Its private key.")
@click.option("--out", "-o", type=_FILE, help="Write here instead of to stdout; an existing file is refused.")
@reporting_errors
def config(
    *,
    port: int | None,
    bind_address: str | None,
    password_file: Path | None,
    ca_file: Path | None,
    cert_file: Path | None,
    key_file: Path | None,
    client_certificates: bool,
    acl_file: Path | None,
    anonymous: bool,
    persistence_dir: Path,
    drop_in: bool,
    out: Path | None,
    bridge_host: str | None,
    bridge_port: int | None,
    fleet: str,
    device: str | None,
    bridge_username: str | None,
    bridge_password_file: Path | None,
    bridge_ca_file: Path | None,
    bridge_cert_file: Path | None,
    bridge_key_file: Path | None,
) -> None:
    """Print a mosquitto.conf that fits edgeslm, each line explained.

    For example, on Debian and Raspberry Pi OS: edgeslm broker config --drop-in
    --password-file /etc/mosquitto/passwd -o /etc/mosquitto/conf.d/edgeslm.conf
    """
    from edgeslm.link.broker_bridge import Bridge  # noqa: PLC0415
    from edgeslm.link.broker_config import TlsFiles, mosquitto_config  # noqa: PLC0415

    tls = None
    if ca_file is not None and cert_file is not None and key_file is not None:
        tls = TlsFiles(ca_file, cert_file, key_file, client_certificates)
    elif ca_file is not None or cert_file is not None or key_file is not None:
        raise UsageError("TLS needs --ca, --cert and --key together")
    bridge = None
    if bridge_host is not None:
        if device is None:
            raise UsageError("--bridge needs --device: which device is behind it")
        if (bridge_cert_file is None) != (bridge_key_file is None):
            raise UsageError("--bridge-cert and --bridge-key come together")
        bridge = Bridge(
            host=bridge_host,
            port=bridge_port or (1883 if bridge_ca_file is None else 8883),
            fleet=fleet,
            device=device,
            username=bridge_username,
            password=None if bridge_password_file is None else _password(bridge_password_file),
            ca_file=bridge_ca_file,
            cert_file=bridge_cert_file,
            key_file=bridge_key_file,
        )
    text = mosquitto_config(
        port=port or (8883 if tls is not None else 1883),
        bind_address=bind_address,
        tls=tls,
        password_file=password_file,
        acl_file=acl_file,
        allow_anonymous=anonymous,
        persistence_dir=persistence_dir,
        drop_in=drop_in,
        bridge=bridge,
    )
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        with out.open("x", encoding="utf-8") as file:
            if bridge is not None and bridge.password is not None:
                out.chmod(0o640)  # it holds the password
            file.write(text)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}", path=str(out)) from error
    click.echo(f"wrote {out}", err=True)


def _password(path: Path) -> str:
    try:
        return path.read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"password file {path} cannot be read: {error}", path=str(path)) from error
