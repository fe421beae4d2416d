"""Metrics in the Prometheus text format, one registry a service.

Names begin with ``diffkeeper_``, use base units, and end in ``_total`` for counters. A path or an id is
never a label: the number of series must stay bounded by the number of volumes and sites.
"""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

PREFIX = "diffkeeper_"


class Metrics:
    """The metrics of one service. Making one twice under the same name is an error of the caller."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

    def counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(PREFIX + name, text, labels, registry=self.registry)

    def histogram(
        self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()
    ) -> Histogram:
        return Histogram(PREFIX + name, text, labels, registry=self.registry, buckets=buckets)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def route(self) -> web.RouteDef:
        """``GET /metrics``, to be added to the application."""

        async def answer(_request: web.Request) -> web.Response:
            return web.Response(body=self.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

        return web.get("/metrics", answer)
