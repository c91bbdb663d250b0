"""The device's own metrics for Prometheus: what goes out over MQTT, kept up between two reports and served over HTTP.

What always holds: counters never fall while the agent runs; each report is counted once, however often Prometheus
asks. Whoever makes reports hands each to :meth:`Exposition.report`. What a report does not know is not exposed.

Needs ``prometheus-client`` (extra ``prometheus``), which is loaded when :meth:`Exposition.start` is called.

Names and units: Prometheus documentation, "Metric and label naming" (base units, ``_total`` for what accumulates).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final

from edgeslm.errors import ConfigError
from edgeslm.schema.metrics import InferenceMetrics, PowerMetrics, SystemMetrics

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client.metrics_core import Metric

_MB: Final = 2**20
_STOP_TIMEOUT_S: Final = 5.0

Labels = tuple[str, ...]


@dataclass
class _Counter:
    """A number that only grows, for each combination of labels."""

    name: str
    text: str
    labels: Labels = ()
    values: dict[Labels, float] = field(default_factory=dict)

    def add(self, amount: float, *labels: str) -> None:
        """Count; what is below zero is rounding and counts as nothing."""
        self.values[labels] = self.values.get(labels, 0.0) + max(amount, 0.0)


@dataclass(frozen=True)
class _Gauge:
    """A number as it is now."""

    name: str
    text: str
    labels: Labels
    values: Sequence[tuple[Labels, float]]


class _Counters:
    """All that accumulates from report to report."""

    def __init__(self) -> None:
        by_cause, by_model = ("cause", "model", "rule"), ("model",)
        self.energy = _Counter("edgeslm_energy_joules", "Energy of the board by what caused it.", by_cause)
        self.net = _Counter("edgeslm_energy_net_joules", "The same above the idle draw.", by_cause)
        self.co2 = _Counter("edgeslm_co2e_grams", "CO2e of the board's energy by the configured intensity.")
        self.prompts = _Counter("edgeslm_prompts", "Prompts by what became of them.", ("model", "outcome"))
        self.deferred = _Counter("edgeslm_prompts_deferred", "Prompts that waited for energy.", by_model)
        self.shortened = _Counter(
            "edgeslm_prompts_shortened", "Answers that the budget made shorter.", by_model
        )
        self.prompt_tokens = _Counter("edgeslm_prompt_tokens", "Tokens of prompts.", by_model)
        self.completion_tokens = _Counter("edgeslm_completion_tokens", "Generated tokens.", by_model)
        self.cost: float | None = None
        """No counter: where prices are negative at times, the cost falls."""

    def add(self, power: PowerMetrics, inference: InferenceMetrics) -> None:
        """Count a report."""
        for cause in power.causes:
            labels = (cause.cause, cause.model or "", cause.rule or "")
            self.energy.add(cause.energy_j, *labels)
            self.net.add(cause.net_j, *labels)
        if power.co2_g is not None:
            self.co2.add(power.co2_g)
        if power.cost is not None:
            self.cost = (self.cost or 0.0) + power.cost
        for model in inference.models:
            name = model.model
            self.prompts.add(model.answered, name, "answered")
            self.prompts.add(model.refused, name, "refused")
            self.prompts.add(model.failed, name, "failed")
            self.deferred.add(model.deferred, name)
            self.shortened.add(model.shortened, name)
            self.prompt_tokens.add(model.prompt_tokens, name)
            self.completion_tokens.add(model.completion_tokens, name)

    def all(self) -> Iterator[_Counter]:
        """Those that have counted anything."""
        return (one for one in vars(self).values() if isinstance(one, _Counter) and one.values)


def _gauges(power: PowerMetrics, inference: InferenceMetrics, system: SystemMetrics) -> Iterator[_Gauge]:
    """What the latest reports say of now."""
    yield from _power_gauges(power)
    yield _one("edgeslm_prompts_waiting", "Prompts in the queue.", inference.waiting)
    models = inference.models
    yield _Gauge(
        "edgeslm_decode_tokens_per_second",
        "Generated tokens a second, median of the last report.",
        ("model",),
        [((model.model,), model.decode_tps) for model in models if model.decode_tps is not None],
    )
    yield _Gauge(
        "edgeslm_first_token_seconds",
        "Time to first token, median of the last report.",
        ("model",),
        [((model.model,), model.ttft_ms / 1e3) for model in models if model.ttft_ms is not None],
    )
    yield from _system_gauges(system)


def _power_gauges(power: PowerMetrics) -> Iterator[_Gauge]:
    yield _one(
        "edgeslm_report_timestamp_seconds",
        "When the figures were made, Unix time by the device's clock.",
        datetime.fromisoformat(power.at).timestamp(),
    )
    if power.points:
        latest = power.points[-1]
        yield _one("edgeslm_power_watts", "Draw of the board, mean of the latest ten seconds.", latest.mean_w)
        yield _one(
            "edgeslm_power_min_watts", "Lowest draw of the last report.", min(p.min_w for p in power.points)
        )
        yield _one(
            "edgeslm_power_max_watts", "Highest draw of the last report.", max(p.max_w for p in power.points)
        )
    yield _one("edgeslm_power_idle_watts", "Learned draw of the idle board.", power.idle_w)
    yield _Gauge(
        "edgeslm_power_meter_info",
        "The meter in use.",
        ("meter", "class"),
        [((power.meter, power.meter_class), 1.0)],
    )
    yield _one("edgeslm_power_meter_error_ratio", "Relative error of it, one sigma.", power.error_share)
    for name, text, figure in (
        ("limit_joules", "Energy that a window of the budget allows.", "limit_j"),
        ("used_joules", "Energy drawn within that window.", "used_j"),
        ("left_ratio", "What is left of it; below zero when exceeded.", "left_share"),
        ("seconds", "Its length.", "window_s"),
    ):
        yield _Gauge(
            f"edgeslm_budget_window_{name}",
            text,
            ("window",),
            [((window.name,), getattr(window, figure)) for window in power.windows],
        )
    if power.battery is not None:
        yield _one("edgeslm_battery_charge_ratio", "State of charge.", power.battery.share)
        yield _one("edgeslm_battery_discharge_watts", "What leaves the battery.", power.battery.discharge_w)
        yield _one(
            "edgeslm_battery_external_supply", "1 while another supply feeds it.", power.battery.external
        )


def _system_gauges(system: SystemMetrics) -> Iterator[_Gauge]:
    yield _one("edgeslm_uptime_seconds", "How long the agent has run.", system.uptime_s)
    yield _one("edgeslm_temperature_celsius", "Temperature of the processor.", system.temperature_c)
    mhz = system.frequency_mhz
    yield _one("edgeslm_processor_frequency_hertz", "Its frequency.", None if mhz is None else mhz * 1e6)
    yield _Gauge(
        "edgeslm_throttling",
        "Flags of the firmware: 1 is set now, 0 was set since boot.",
        ("flag",),
        [
            ((flag,), float(flag in system.throttling))
            for flag in sorted({*system.throttling, *system.throttled_before})
        ],
    )
    yield _one(
        "edgeslm_spool_waiting",
        "Reports and events that the broker has not confirmed yet.",
        system.spool_waiting,
    )
    yield _one(
        "edgeslm_spool_dropped",
        "Reports and events given up for want of room since the spool's file was made.",
        system.spool_dropped,
    )
    yield _one("edgeslm_busy_cores", "Cores of the board that were busy.", system.busy_cores)
    for name, text, megabytes in (
        ("edgeslm_resident_memory_bytes", "Memory of the agent.", system.rss_mb),
        ("edgeslm_memory_available_bytes", "Memory that is left on the board.", system.memory_free_mb),
        ("edgeslm_disk_free_bytes", "Room where the agent keeps its state.", system.disk_free_mb),
    ):
        yield _one(name, text, None if megabytes is None else megabytes * _MB)


def _one(name: str, text: str, value: float | None) -> _Gauge:
    return _Gauge(name, text, (), [] if value is None else [((), float(value))])


class Exposition:
    """Serves ``/metrics`` from :meth:`start` to :meth:`stop`. Thread-safe."""

    def __init__(self, host: str, port: int) -> None:
        """Keep `host` and `port`; nothing is opened yet."""
        self._host, self._port = host, port
        self._lock = threading.Lock()
        self._counters = _Counters()
        self._latest: tuple[PowerMetrics, InferenceMetrics, SystemMetrics] | None = None
        self._server: tuple[WSGIServer, threading.Thread] | None = None

    @property
    def port(self) -> int:
        """Where it listens: the port that the system chose, where 0 was asked for."""
        return self._port if self._server is None else self._server[0].server_port

    def report(self, power: PowerMetrics, inference: InferenceMetrics, system: SystemMetrics) -> None:
        """Take the reports of a span; each exactly once, in order."""
        with self._lock:
            self._counters.add(power, inference)
            self._latest = (power, inference, system)

    def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: prometheus-client is not installed, or the address cannot be listened on.
        """
        try:
            from prometheus_client import CollectorRegistry, start_http_server  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise ConfigError(
                "metrics.prometheus_port needs prometheus-client, which is not installed",
                key="metrics.prometheus_port",
                hint="pip install 'edgeslm[prometheus]'",
            ) from error
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server = start_http_server(self._port, self._host, registry)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {self._host}:{self._port}: {error.strerror or error}",
                key="metrics.prometheus_port",
                hint="Is another program there? metrics.prometheus_host and prometheus_port choose the address",
            ) from error

    def stop(self) -> None:
        """Close the port. Idempotent."""
        if self._server is not None:
            server, thread = self._server
            self._server = None
            server.shutdown()
            server.server_close()
            thread.join(_STOP_TIMEOUT_S)

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand: what there is depends on the board."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is told; it calls this for each scrape."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415

        with self._lock:
            counters = [(one, dict(one.values)) for one in self._counters.all()]
            cost, latest = self._counters.cost, self._latest
        for counter, values in counters:
            family = CounterMetricFamily(counter.name, counter.text, labels=counter.labels)
            for labels, value in values.items():
                family.add_metric(labels, value)
            yield family
        if latest is None:
            return
        gauges = [*_gauges(*latest), _one("edgeslm_energy_cost", "Cost since the agent started.", cost)]
        for gauge in gauges:
            if gauge.values:
                family = GaugeMetricFamily(gauge.name, gauge.text, labels=gauge.labels)
                for labels, value in gauge.values:
                    family.add_metric(labels, value)
                yield family
