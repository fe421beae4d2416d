"""Random histories of three sites of a shared volume with real directories: programs write, rename and remove, rules change,
records come late, in any interleaving and twice, merging processes die without a word. At the end all directories
are the same, and every word that was written and not knowingly removed is there.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.shared_sites import EngineSite, exchange, join

NAMES = ("a.txt", "b.txt", "c.bin", "d.txt")
RULES = "diffkeeper.yaml"
DIRECTORIES = ("", "x", "y")
_FIRST_WORD = 0x4E00


class Programs:
    """What the programs of all sites do. Each word is written once; ``words`` are those nobody removed."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.words: set[str] = set()
        self._count = 0

    def act(self, site: EngineSite) -> None:
        path = site.path / self.rng.choice(DIRECTORIES) / self.rng.choice(NAMES)
        files = [found for found in site.path.rglob("*") if found.is_file()]
        files = [found for found in files if found.name != RULES]
        what = self.rng.random()
        if what < 0.05:
            strategy = self.rng.choice(("text", "lines", "set", "opaque", "nonsense"))
            (site.path / RULES).write_text(f"merge:\n  '{self.rng.choice(NAMES)}': {strategy}\n")
        elif what < 0.45:
            self._append(path)
        elif what < 0.65 and files:
            self._append(self.rng.choice(files))
        elif what < 0.8 and files:
            path.parent.mkdir(exist_ok=True)
            if not path.exists():
                self.rng.choice(files).rename(path)
        elif what < 0.9 and files:
            self._save_by_rename(self.rng.choice(files))
        elif files:
            self._remove(self.rng.choice(files))

    def _word(self, path: Path) -> bytes:
        self._count += 1
        # One character: what a site wrote is found by comparing texts, and two words that begin alike may be told apart in
        # another place than where they were written. Then they stand in each other, and nothing is lost.
        word = chr(_FIRST_WORD + self._count)
        self.words.add(word)
        return (b"\0" if path.suffix == ".bin" else b"") + f"{word}\n".encode()

    def _append(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as file:
            file.write(self._word(path))

    def _save_by_rename(self, path: Path) -> None:
        fresh = path.with_name(".save~")
        fresh.write_bytes(path.read_bytes() + self._word(path))
        fresh.rename(path)

    def _remove(self, path: Path) -> None:
        self.words -= set(path.read_text())
        path.unlink()


def words_of(site: EngineSite) -> set[str]:
    return {character for text in site.tree().values() for character in text if ord(character) > _FIRST_WORD}


def play(seed: int, steps: int) -> None:
    rng = random.Random(seed)
    base = Path(tempfile.mkdtemp(prefix="shared-"))
    try:
        sites = [EngineSite(base, name) for name in ("east", "west", "north")]
        join(*sites)
        programs = Programs(rng)
        for _ in range(steps):
            site = rng.choice(sites)
            what = rng.random()
            if what < 0.55:
                programs.act(site)
            elif what < 0.7:
                site.engine.scan()
                site.engine.step()
                site.publish()
            elif what < 0.8:
                site.settle()
            elif what < 0.95:
                other = rng.choice(sites)
                if other is not site:
                    site.hear(other)
            else:
                site.restart()
            time.sleep(rng.choice((0, 0, 0.02)))
        exchange(*sites, rounds=5)
        trees = [site.tree() for site in sites]
        assert trees[1] == trees[0] and trees[2] == trees[0], f"seed {seed}"
        assert programs.words <= words_of(sites[0]), f"seed {seed}"
        for site in sites:
            site.engine.close()
    finally:
        shutil.rmtree(base)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32))
def test_directories_converge_and_no_word_is_lost(seed: int) -> None:
    play(seed, 40)


@pytest.mark.parametrize("seed", range(4))
def test_long_histories_converge(seed: int) -> None:
    play(seed, 120)
