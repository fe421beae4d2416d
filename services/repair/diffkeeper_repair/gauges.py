"""The metrics of the repair service, taken when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from diffkeeper import metrics
from diffkeeper_repair import health
from diffkeeper_repair.service import RepairService

_P = metrics.PREFIX


class _Repair(Collector):
    def __init__(self, service: RepairService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        yield from self._nodes()
        yield from self._volumes()
        yield from self._totals()

    def _nodes(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(f"{_P}storage_node_up", "1 when the storage node answers", labels=["node"])
        stored = GaugeMetricFamily(f"{_P}storage_node_bytes", "Bytes the storage node holds", labels=["node"])
        for row in health.nodes(self._service):
            up.add_metric([row["node"]], float(row["state"] in ("up", "draining")))
            stored.add_metric([row["node"]], row["stored_bytes"])
        yield from (up, stored)

    def _volumes(self) -> Iterator[Metric]:
        spare = GaugeMetricFamily(
            f"{_P}stripe_spare_shards", "Nodes that can still be lost without loss of data", labels=["volume"]
        )
        lost = GaugeMetricFamily(
            f"{_P}segments_unreadable",
            "Segments that the answering nodes cannot give back",
            labels=["volume"],
        )
        waiting = GaugeMetricFamily(
            f"{_P}unsealed_frames", "Frames of the streams that no segment holds yet", labels=["volume"]
        )
        for row in self._service.health()["volumes"]:
            if row["spare"] is not None:
                spare.add_metric([row["volume"]], row["spare"])
            lost.add_metric([row["volume"]], row["lost_segments"])
            behind = sum(max(0, one["seen"] - one["sealed"]) for one in row["streams"])
            waiting.add_metric([row["volume"]], behind)
        yield from (spare, lost, waiting)

    def _totals(self) -> Iterator[Metric]:
        service = self._service
        open_now = GaugeMetricFamily(f"{_P}damages_open", "Damaged items in quarantine")
        open_now.add_metric([], len(service.book.open))
        yield open_now
        for name, text, value in (
            ("damages_found", "Damaged items found", service.book.found_total),
            (
                "segments_mended_by_likeness",
                "Segments read with the help of data that is like them",
                service.io.mended_by_likeness_total,
            ),
            ("damages_repaired", "Damaged items repaired", service.book.repaired_total),
            ("scrubbed_bytes", "Bytes read and verified by the scrub", service.scrubber.bytes_total),
            ("shards_rebuilt", "Shards written anew", service.rebuilder.shards_written_total),
            ("rebuilt_bytes", "Bytes of shards written anew", service.rebuilder.bytes_written_total),
            ("segments_recoded", "Segments brought into another geometry", service.recoder.segments_total),
            (
                "frames_served_from_streams",
                "Missing frames found at another site",
                service.finder.served_from_streams_total,
            ),
            (
                "frames_served_from_shards",
                "Missing frames decoded from shards",
                service.finder.served_from_shards_total,
            ),
        ):
            total = CounterMetricFamily(f"{_P}{name}", text)
            total.add_metric([], value)
            yield total

    def describe(self) -> list[Metric]:
        return []  # nodes and volumes are not known yet


def register(measured: metrics.Metrics, service: RepairService) -> None:
    measured.registry.register(_Repair(service))
