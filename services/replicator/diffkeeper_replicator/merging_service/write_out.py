"""Brings the site's directory up to the shared volume: names by rename, content by a new file that takes the
place of the old one in one step.

A reader finds the old file or the new one whole; who holds the old one open keeps it. Nothing is replaced or
removed that is not what the merger left there: what a program did meanwhile is told to ``LocalChanges`` first
(``Round.look``), and what it did in the very last instant is found in the file that was displaced and said as
an edit of what that file was made from.
"""

from __future__ import annotations

from diffkeeper.domain import errors, trees
from diffkeeper.domain.shared_ops import ROOT
from diffkeeper_replicator import safe_paths
from diffkeeper_replicator.merging_service.disk_model import Directory, DiskModel, Standing
from diffkeeper_replicator.merging_service.displaced import Displaced
from diffkeeper_replicator.merging_service.shared_state import SharedState
from diffkeeper_replicator.merging_service.workplace import ASIDE, Round, Workplace
from diffkeeper_replicator.merging_service.write_files import FileWriter, Ready
from diffkeeper_replicator.merging_service.write_names import NameWriter


class WriteOut:
    def __init__(
        self, state: SharedState, disk: DiskModel, directory: Directory, displaced: Displaced
    ) -> None:
        self._place = Workplace(state, disk, directory, displaced)
        self._names = NameWriter(self._place)
        self._files = FileWriter(self._place)

    def recover(self) -> None:
        """Finish what an earlier run announced: it was done where the file that was made aside stands in its place."""
        for entry_id, (aside, *fields) in self._place.state.store.intents():
            standing = Standing(*fields)
            try:
                if entry_id.startswith(ASIDE):
                    self._names.put_back(entry_id.removeprefix(ASIDE), aside)
                    continue
                found = self._place.live(standing)
                if found is not None and standing.is_node(found[1]):
                    self._files.took_place(
                        Ready(entry_id, aside, standing, self._place.disk.standing.get(entry_id))
                    )
            except OSError as error:
                raise safe_paths.disk_error(error, "finishing what was begun before a restart") from error
            finally:
                self._place.state.store.drop_intent(entry_id)
        self._place.displaced.recover(self._place.directory)
        self._place.state.store.commit()

    def everything(self) -> None:
        """All there is to compare, at a start."""
        tree = self._place.state.tree
        self._place.state.pending.directories |= {ROOT} | {
            entry_id for entry_id, entry in tree.entries.items() if entry.kind is trees.Kind.DIR
        }
        self._place.state.pending.objects |= set(tree.objects)

    def round(self) -> Round:
        """As much as can be done now; what could not stays pending."""
        self._place.directory.check_there()
        outcome = Round()
        pending = self._place.state.pending
        directories, pending.directories = pending.directories, set()
        objects, pending.objects = pending.objects, set()
        try:
            arriving = self._names.names(directories, outcome)
            files = self._files.files(arriving, objects, outcome)
            while files:
                batch, files = self._files.batch(files)
                self._files.write_batch(batch, outcome)
            self._attributes(objects, outcome)
        except OSError as error:
            pending.directories |= directories
            pending.objects |= objects
            raise safe_paths.disk_error(error, "writing out what other sites did") from error
        except errors.DiffKeeperError:
            pending.directories |= directories
            pending.objects |= objects
            raise
        return outcome

    def _attributes(self, objects: set[bytes], outcome: Round) -> None:
        for object_id in objects:
            found = self._place.state.tree.objects.get(object_id)
            for entry_id in (
                sorted(found.entries & self._place.disk.standing.keys()) if found is not None else ()
            ):
                if self._place.set_mode(entry_id):
                    outcome.written += 1
