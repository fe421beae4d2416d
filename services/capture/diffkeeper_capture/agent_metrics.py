"""What the agent measures, taken from its state when it is asked: nothing is counted on the hot path."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from diffkeeper import metrics
from diffkeeper_capture import volume_status
from diffkeeper_capture.agent import Agent

_PREFIX = metrics.PREFIX + "capture_"


class AgentMetrics:
    """A collector of the registry it was added to."""

    def __init__(self, measured: metrics.Metrics, agent: Agent) -> None:
        self._agent = agent
        measured.registry.register(self)

    def collect(self) -> Iterable[Metric]:
        frames = GaugeMetricFamily(_PREFIX + "lag_frames", "Frames that are not safe yet", labels=["volume"])
        size = GaugeMetricFamily(_PREFIX + "lag_bytes", "Bytes that are not safe yet", labels=["volume"])
        age = GaugeMetricFamily(_PREFIX + "lag_seconds", "Age of the oldest unsafe change", labels=["volume"])
        waiting = GaugeMetricFamily(_PREFIX + "barriers_waiting", "Sync calls that wait", labels=["volume"])
        up = GaugeMetricFamily(_PREFIX + "capturing", "1 while writes are captured", labels=["volume"])
        barriers = CounterMetricFamily(_PREFIX + "barriers", "Sync calls seen", labels=["volume"])
        gaps = CounterMetricFamily(_PREFIX + "gaps", "Gaps recorded", labels=["volume"])
        published = CounterMetricFamily(
            _PREFIX + "published_bytes", "Bytes stored in the stream", labels=["volume"]
        )
        replica = GaugeMetricFamily(
            _PREFIX + "replica_lag_seconds",
            "Age of the oldest change a site has not confirmed",
            labels=["volume", "site"],
        )
        alarms = GaugeMetricFamily(
            _PREFIX + "stalled", "1 while a stage does not move", labels=["volume", "reason"]
        )
        for capture in self._agent.captures():
            status = volume_status.of(capture)
            label = [capture.order.volume]
            frames.add_metric(label, status["lag"]["frames"])
            size.add_metric(label, status["lag"]["bytes"])
            age.add_metric(label, status["lag"]["ms"] / 1000)
            for site, behind in status["replicas"].items():
                replica.add_metric([*label, site], behind["ms"] / 1000)
            for reason in sorted({alarm["reason"] for alarm in status["alarms"]}):
                alarms.add_metric([*label, reason], 1)
            waiting.add_metric(label, len(status["barriers"]["waiting"]))
            up.add_metric(label, float(capture.state in ("scanning", "capturing")))
            barriers.add_metric(label, capture.gate.total)
            gaps.add_metric(label, capture.framer.gaps)
            published.add_metric(label, capture.publisher.counters.published_bytes)
        records = CounterMetricFamily(_PREFIX + "records", "Records taken from the ring")
        records.add_metric([], self._agent.status()["records"])
        return [frames, size, age, replica, alarms, waiting, up, barriers, gaps, published, records]
