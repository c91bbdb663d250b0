"""The agent's configuration file (``agent.yaml``)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from edgeslm.schema.base import FileModel, Identifier
from edgeslm.schema.budget import Budget
from edgeslm.schema.delivery import DeliveryPolicy
from edgeslm.schema.message import MAX_BODY_BYTES
from edgeslm.schema.power import MetersConfig
from edgeslm.schema.update import UpdatePolicy

BROKER_RELEASES = "mqtt:"
NO_RELEASES = "none"
RuntimeChoice = Literal["auto", "ai-edge-litert", "tflite-runtime"]

_MODEL_REFERENCE = re.compile(r"^(builtin:[a-z0-9-]{1,64}|[^\x00]{1,4096})$")


class BrokerConfig(FileModel):
    """How the broker is reached. The password is read from a file, never written here.

    Attributes:
        keepalive_s: seconds after which a silent connection counts as lost.
        session_expiry_s: seconds for which the broker keeps messages for an absent device.
        ca_file: certificate authority; its presence switches TLS on.
    """

    host: Annotated[str, StringConstraints(min_length=1, max_length=255)] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 1883
    protocol: Literal["5", "3.1.1"] = "5"
    keepalive_s: Annotated[int, Field(ge=5, le=3600)] = 30
    session_expiry_s: Annotated[int, Field(ge=0, le=30 * 86400)] = 86_400
    username: Annotated[str, StringConstraints(max_length=255)] | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @model_validator(mode="after")
    def _whole_identity(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        if self.password_file is not None and self.username is None:
            raise ValueError("password_file needs a username")
        if self.cert_file is not None and self.ca_file is None:
            raise ValueError("a client certificate needs ca_file as well")
        return self


class LimitsConfig(FileModel):
    """What the agent accepts.

    Attributes:
        max_queue: prompts waiting at once; beyond it a prompt is answered `busy`.
        max_body_bytes: largest message body that is looked at.
        answered_window_s: seconds for which an answered id is remembered and answered from store.
        max_answered: answered ids remembered at most; the oldest go first, those still on their way never.
    """

    max_queue: Annotated[int, Field(ge=1, le=100_000)] = 256
    max_body_bytes: Annotated[int, Field(ge=1024, le=16 * 2**20)] = MAX_BODY_BYTES
    answered_window_s: Annotated[int, Field(ge=60, le=30 * 86400)] = 86_400
    max_answered: Annotated[int, Field(ge=16, le=1_000_000)] = 10_000


class PrefixesConfig(FileModel):
    """What is kept of prompts that begin alike, so that it need not be computed again.

    Attributes:
        memory_mb: most memory for it, all models together; 0 keeps nothing but the last prompt, ``None`` takes a
            sixteenth of the board's memory, but at most 64.
        on_disk: keep it in the state directory as well, so that it survives a restart. Whoever reads the disk then
            reads what many prompts begin with.
        disk_mb: most room for it there.
    """

    memory_mb: Annotated[int, Field(ge=0, le=65_536)] | None = None
    on_disk: bool = False
    disk_mb: Annotated[int, Field(ge=1, le=65_536)] = 256


class SessionsConfig(FileModel):
    """What is remembered of conversations, in memory.

    Attributes:
        max_sessions: conversations at once; the one used least recently goes first.
        max_kb: most memory for what was said in all of them, without the KV states, which count as prefixes.
        idle_s: seconds after which one that nobody goes on with is forgotten.
    """

    max_sessions: Annotated[int, Field(ge=1, le=10_000)] = 32
    max_kb: Annotated[int, Field(ge=16, le=1_048_576)] = 1024
    idle_s: Annotated[float, Field(ge=1, le=30 * 86400)] = 1800.0


class MetricsConfig(FileModel):
    """What the device tells about itself.

    Attributes:
        interval_s: seconds between reports over MQTT.
        encoding: ``gzip`` compresses reports and events; every reader of edgeslm takes them, Home Assistant does not.
        prometheus_port: port on which Prometheus may ask for the same figures; ``None`` opens none.
        prometheus_host: address of that port; the default can only be reached from the device itself.
    """

    interval_s: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    encoding: Literal["identity", "gzip"] = "identity"
    prometheus_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    prometheus_host: Annotated[str, StringConstraints(min_length=1, max_length=255)] = "127.0.0.1"


class UpdatesConfig(FileModel):
    """How a device of a fleet follows its assignments.

    Attributes:
        releases: the release repository: an ``http://`` or ``https://`` address, a directory, ``mqtt:`` for the
            fleet's own over the broker, or ``none`` to be left as it is. By default a device that belongs to a fleet
            takes ``mqtt:``.
        sources: who is asked for files before the repository: addresses of caches in the local network, or
            directories.
        is_metered: the way to the repository costs by the byte.
        delivery: how files may be fetched.
        policy: how much worse a release may be, and how long what may take.
    """

    releases: Annotated[str, StringConstraints(min_length=1, max_length=4096)] | None = None
    sources: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=4096)], ...], Field(max_length=16)
    ] = ()
    is_metered: bool = False
    delivery: DeliveryPolicy = DeliveryPolicy()
    policy: UpdatePolicy = UpdatePolicy()


class HomeAssistantConfig(FileModel):
    """How the device shows itself in Home Assistant, and what it may do in the home.

    Attributes:
        enabled: announce the device, its sensors and its controls.
        prefix: of the discovery topics, as it is set in Home Assistant.
        home: a map of areas and entities, relative to this file; without one no answer is carried out.
        wyoming_port: port on which Assist hands sentences over; ``None`` opens none.
        wyoming_host: address of that port; the default can only be reached from the device itself.
    """

    enabled: bool = False
    prefix: Annotated[
        str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", max_length=128)
    ] = "homeassistant"
    home: Path | None = None
    wyoming_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    wyoming_host: Annotated[str, StringConstraints(min_length=1, max_length=255)] = "127.0.0.1"


class AgentConfig(FileModel):
    """Everything that one agent needs to know.

    Attributes:
        models: packages to serve; the first is the default. ``builtin:NAME`` is one that ships with edgeslm,
            everything else is a path to a ``.slm`` file, relative to this file.
        models_memory_mb: most memory for loaded models, in MiB and as predicted; where not all of them fit, one is
            loaded when it is asked, and the one used least recently makes room. ``None`` keeps all of them loaded.
        threads: inference threads; ``None`` takes the board's recommendation.
        power: how the board's draw is measured.
        budget: what the device may draw; the default restrains nothing.
        prefixes: what is kept of prompts that begin alike.
        sessions: what is remembered of conversations.
        metrics: what it tells about itself.
        updates: how it follows assignments, once it belongs to a fleet.
        homeassistant: how it shows itself in Home Assistant.
        rules: files of rules, and directories of them, relative to this file; by default ``rules`` beside this file
            and in the state directory, where there are such.
    """

    fleet: Identifier = "home"
    device: Identifier
    board: Identifier | None = None
    broker: BrokerConfig = BrokerConfig()
    models: Annotated[tuple[str, ...], Field(min_length=1, max_length=16)] = ("builtin:home-command",)
    models_memory_mb: Annotated[int, Field(ge=1, le=1_048_576)] | None = None
    state_dir: Path = Path("/var/lib/edgeslm")
    threads: Annotated[int, Field(ge=1, le=64)] | None = None
    runtime: RuntimeChoice = "auto"
    pool: bool = True
    limits: LimitsConfig = LimitsConfig()
    power: MetersConfig = MetersConfig()
    budget: Budget = Budget()
    prefixes: PrefixesConfig = PrefixesConfig()
    sessions: SessionsConfig = SessionsConfig()
    metrics: MetricsConfig = MetricsConfig()
    updates: UpdatesConfig = UpdatesConfig()
    homeassistant: HomeAssistantConfig = HomeAssistantConfig()
    rules: Annotated[tuple[Path, ...], Field(max_length=32)] = ()

    @model_validator(mode="after")
    def _readable_at_home(self) -> Self:
        if self.homeassistant.enabled and self.metrics.encoding != "identity":
            raise ValueError("metrics.encoding: Home Assistant cannot read compressed reports; leave it out")
        return self

    @field_validator("models")
    @classmethod
    def _well_formed(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        for reference in models:
            if not _MODEL_REFERENCE.match(reference):
                raise ValueError(f"'{reference[:80]}' is neither builtin:NAME nor a path")
        if len(set(models)) != len(models):
            raise ValueError("a model is named twice")
        return models
