"""``diffkeeper-replicator --config FILE``: the replicator of one site, put together."""

from __future__ import annotations

import argparse
import gc
import resource
import sys
import time
from pathlib import Path

from diffkeeper import heap, http, metrics, service, settings
from diffkeeper.log import event_log, nats_event_log
from diffkeeper_replicator import clones, gauges, healing_log, orphan_api, replicator_api
from diffkeeper_replicator.history_main import HistorySettings
from diffkeeper_replicator.history_process import HistoryProcess
from diffkeeper_replicator.merging_process import MergingProcess
from diffkeeper_replicator.merging_service.merging_main import MergingSettings
from diffkeeper_replicator.replicator import Replicator
from diffkeeper_replicator.settings import ReplicatorSettings
from diffkeeper_replicator.undo_log import Bounds

# Threads of the journal and the applier give way to each other faster than by Python's default of 5 ms.
_SWITCH_INTERVAL_S = 0.001
# Of free memory at the heap's end: what the frames of two runs and their undo take. Given back after each run, it would be
# zeroed by the kernel anew for the next, which costs more than hashing what is in it.
_HEAP_KEPT_BYTES = 48 * 1024 * 1024
# So many new objects are looked through for cycles at once; Python's default of 700 does it with every few frames.
_YOUNG_OBJECTS = 20_000
# Below the directory of the journals; no volume can have this name.
SHARED = "_shared"


def main() -> None:
    parser = argparse.ArgumentParser(prog="diffkeeper-replicator", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the settings file (JSON)")
    config = parser.parse_args().config

    async def run(scope: service.Scope) -> None:
        await serve(scope, settings.load(config, ReplicatorSettings))

    service.run_service("replicator", run)


async def serve(scope: service.Scope, wanted: ReplicatorSettings) -> None:
    heap.hold(_HEAP_KEPT_BYTES)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    _raise_descriptor_limit()
    token = settings.read_token(Path(wanted.token_file))
    log: event_log.EventLog = await nats_event_log.NatsEventLog.connect(
        wanted.site,
        wanted.servers,
        password=settings.read_token(Path(wanted.broker_secret_file)),
        name=f"diffkeeper-replicator-{wanted.site}",
        sites=wanted.sites,
    )
    if wanted.repair is not None:
        log = healing_log.HealingEventLog(log, wanted.repair, token)
    replicator = Replicator(
        log,
        Path(wanted.dir),
        Path(wanted.volumes_dir),
        scope.spawn,
        now_us,
        allow_setid=wanted.allow_setid,
        undo_bounds=Bounds(wanted.undo_bytes, wanted.undo_frames, wanted.undo_durable),
    )
    history = HistoryProcess(
        HistorySettings(
            site=wanted.site,
            dir=wanted.dir,
            volumes_dir=wanted.volumes_dir,
            token=token,
            peers=wanted.peers,
        ),
        replicator.journal_bytes,
        replicator.trim_journal,
    )
    merging = MergingProcess(
        MergingSettings(
            site=wanted.site,
            dir=str(Path(wanted.dir) / SHARED),
            token=token,
            servers=wanted.servers,
            broker_secret=settings.read_token(Path(wanted.broker_secret_file)),
            sites=wanted.sites,
            repair=wanted.repair,
        )
    )
    try:
        await replicator.resume()
        # What stands now stays; and what comes are frames, which are never part of a cycle.
        gc.freeze()
        gc.set_threshold(_YOUNG_OBJECTS, 20, 20)
        app = http.make_app(token)
        replicator_api.add_routes(app, replicator, now_us)
        orphan_api.add_routes(app, replicator)
        history.add_routes(app)
        scope.spawn("history", history.run())
        merging.add_routes(app)
        scope.spawn("merging", merging.run())
        clones.add_routes(app, replicator)
        measured = metrics.Metrics()
        gauges.register(measured, replicator)
        app.add_routes([measured.route()])
        async with http.serve(app, wanted.host, wanted.port) as port:
            scope.ready(site=wanted.site, port=port)
            await scope.stopping.wait()
    finally:
        await merging.close()
        await history.close()
        await replicator.close()
        await log.close()


def now_us() -> int:
    return time.time_ns() // 1000


def _raise_descriptor_limit() -> None:
    """Descriptors of files and directories are kept open by every volume."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
