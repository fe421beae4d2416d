"""One real API server for all tests here, built by ``make test-k8s``; each test has a namespace of its own.

It ends with the last of them: the tests of other folders have the machine to themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support import kubernetes
from tests.support.kubernetes import Cluster


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    binaries = kubernetes.programs()
    if binaries is None:
        pytest.skip(f"no Kubernetes API server: {kubernetes.why_not()}")
    with kubernetes.cluster(tmp_path_factory.mktemp("kubernetes"), binaries) as made:
        yield made


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """Emptied at the end, so that no later operator has to care for what is in it."""
    name = cluster.namespace()
    yield name
    cluster.forget(name)
