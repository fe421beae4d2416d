"""The manifests of ``deploy/k8s`` as one stream of documents: what ``kubectl kustomize`` would print, without needing it.

Overlays only put parts together, they patch nothing; so following ``resources`` and naming the version of our own images is all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from diffkeeper.domain import errors

KUSTOMIZATION = "kustomization.yaml"
_RESOURCES = re.compile(r"^resources: \[([^\]]*)\]$", re.MULTILINE)
_IMAGE = re.compile(r"(?P<image>\bdiffkeeper/[a-z-]+):[0-9][0-9A-Za-z.-]*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def folder() -> Path:
    """Where they are: beside this module when installed, else in the source tree."""
    installed = Path(__file__).parent / "k8s"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "deploy" / "k8s"


def overlays() -> list[str]:
    return sorted(path.parent.name for path in folder().glob(f"overlays/*/{KUSTOMIZATION}"))


def render(overlay: str, tag: str | None = None) -> str:
    """Every document of an overlay, in the order in which it can be applied. Raises NotFound and Refused."""
    if overlay not in overlays():
        raise errors.NotFound(
            f"there is no overlay {overlay!r}",
            reason="unknown-overlay",
            hint=f"one of {', '.join(overlays())}",
        )
    if tag is not None and _TAG.fullmatch(tag) is None:
        raise errors.Refused(f"{tag!r} cannot be the tag of an image", reason="bad-tag", hint="such as 0.1.0")
    text = "---\n".join(path.read_text("utf-8") for path in files(folder() / "overlays" / overlay))
    return text if tag is None else _IMAGE.sub(rf"\g<image>:{tag}", text)


def files(place: Path) -> Iterator[Path]:
    """What a kustomization names, folders followed, in its order."""
    match = _RESOURCES.search((place / KUSTOMIZATION).read_text("utf-8"))
    assert match is not None, f"{place} puts parts together in one line of resources"
    for name in filter(None, (part.strip() for part in match[1].split(","))):
        named = (place / name).resolve()
        if named.is_dir():
            yield from files(named)
        else:
            yield named
