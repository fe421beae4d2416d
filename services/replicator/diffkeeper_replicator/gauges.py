"""The metrics of a replicator, taken from the status of its volumes when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from diffkeeper import metrics
from diffkeeper_replicator.replicator import Replicator

_STATES = ("following", "leading", "waiting", "stalled", "failed")


class _Volumes(Collector):
    def __init__(self, replicator: Replicator) -> None:
        self._replicator = replicator

    def collect(self) -> Iterator[Metric]:
        lags = {
            "frames": GaugeMetricFamily(
                f"{metrics.PREFIX}lag_frames", "Frames seen and not applied", labels=["volume"]
            ),
            "bytes": GaugeMetricFamily(
                f"{metrics.PREFIX}lag_bytes", "Bytes that wait to be applied", labels=["volume"]
            ),
            "ms": GaugeMetricFamily(
                f"{metrics.PREFIX}lag_seconds", "Age of the oldest delta not applied", labels=["volume"]
            ),
        }
        state = GaugeMetricFamily(
            f"{metrics.PREFIX}replica_state", "1 for the state it is in", labels=["volume", "state"]
        )
        for volume, replica in sorted(self._replicator.replicas.items()):
            status = replica.status()
            for unit, gauge in lags.items():
                gauge.add_metric([volume], status["lag"][unit] / (1000 if unit == "ms" else 1))
            for name in _STATES:
                state.add_metric([volume, name], float(status["state"] == name))
        yield from lags.values()
        yield state

    def describe(self) -> list[Metric]:
        return []  # the volumes are not known yet


def register(measured: metrics.Metrics, replicator: Replicator) -> None:
    measured.registry.register(_Volumes(replicator))
