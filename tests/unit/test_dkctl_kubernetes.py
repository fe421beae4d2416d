"""``dkctl manifests`` and ``kubectl diffkeeper``: what is printed and what is asked of Kubernetes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.sacs import DEPLOY

from dkctl import kubectl_plugin, main, manifests

# A kubectl that answers what the test lays down and notes what it was asked, as the real program in PATH would be.
KUBECTL = """#!/usr/bin/env python3
import json, pathlib, sys
folder = pathlib.Path(__file__).parent
asked = sys.argv[1:]
given = sys.stdin.read() if asked[-3:] and "create" in asked else ""
with open(folder / "asked", "a") as log:
    log.write(json.dumps([asked, given]) + "\\n")
kind = next((one.split(".")[0] for one in asked if "sacs.diffkeeper.io" in one), "switchovers")
answer = folder / ("create.json" if "create" in asked else f"{kind}.json")
if not answer.exists():
    sys.exit(f'Error from server (NotFound): {kind} not found')
print(answer.read_text())
"""


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def lay(folder: Path, name: str, thing: dict[str, Any]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(thing))


def asked(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "asked").read_text().splitlines()]


def sac(phase: str = "Protected") -> dict[str, Any]:
    status = {
        "phase": phase,
        "message": "Well.",
        "primary": "east",
        "epoch": 1,
        "readyReplicas": 2,
        "desiredReplicas": 2,
    }
    return {"metadata": {"name": "postgres"}, "status": status}


def invoke(*arguments: str) -> int:
    return main.invoke(arguments, command=kubectl_plugin.plugin, name="kubectl diffkeeper")


def test_status_of_a_protected_sac_is_well(kubectl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay(kubectl, "sacs", sac())
    assert invoke("status", "postgres", "-n", "shop") == 0
    out = capsys.readouterr().out
    assert out.startswith("All is well")
    assert "postgres   Protected   east      1       2/2" in out
    assert "--namespace=shop" in asked(kubectl)[0][0]


def test_status_of_all_names_those_that_need_attention(
    kubectl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay(kubectl, "sacs", {"items": [sac(), sac("Degraded"), {"metadata": {"name": "new"}}]})
    assert invoke("status") == 1
    verdict = capsys.readouterr().out.splitlines()[0]
    assert "postgres is Degraded" in verdict
    assert "new is not seen by an operator yet" in verdict


def test_failover_makes_a_switchover_and_follows_it(
    kubectl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay(kubectl, "sacs", sac())
    lay(kubectl, "create", {"metadata": {"name": "postgres-to-west-1"}})
    steps = [{"phase": "promise", "outcome": "done", "tookMillis": 3}]
    ended = {"phase": "Succeeded", "message": "west leads since 2.1.", "steps": steps}
    lay(kubectl, "switchovers", {"metadata": {"name": "postgres-to-west-1"}, "status": ended})
    assert invoke("failover", "postgres", "--to", "west", "--yes") == 0
    told = capsys.readouterr()
    assert told.out.startswith("Succeeded: west leads since 2.1.")
    assert "promise" in told.err
    given = json.loads(asked(kubectl)[1][1])
    assert given["spec"] == {"sac": "postgres", "to": "west"}


def test_a_forced_failover_wants_the_loss_accepted(kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(kubectl, "sacs", sac())
    with open("/dev/null") as nowhere:
        monkeypatch.setattr("sys.stdin", nowhere)
        assert invoke("failover", "postgres", "--to", "west", "--force", "--yes") == 6
    assert len(asked(kubectl)) == 1, "nothing was made"


def test_a_refused_switchover_has_the_exit_code_of_a_refusal(
    kubectl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay(kubectl, "sacs", sac())
    lay(kubectl, "create", {"metadata": {"name": "move"}})
    refused = {"phase": "Refused", "message": "nothing was done", "hint": "make it in east"}
    lay(kubectl, "switchovers", {"metadata": {"name": "move"}, "status": refused})
    assert invoke("failover", "postgres", "--to", "west", "--yes") == 6
    assert "make it in east" in capsys.readouterr().err


def test_what_is_not_there_is_exit_code_5(kubectl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("status", "nothing") == 5
    assert "(NotFound)" in capsys.readouterr().err


# -- manifests


@pytest.mark.parametrize("overlay", manifests.overlays())
def test_every_overlay_is_whole_and_parses(overlay: str) -> None:
    things = [one for one in yaml.safe_load_all(manifests.render(overlay)) if one]
    names = [(one["kind"], one["metadata"]["name"]) for one in things]
    assert len(names) == len(set(names))
    assert ("Deployment", "diffkeeper-operator") in names
    assert ("CustomResourceDefinition", "sacs.sacs.diffkeeper.io") in names


def test_every_file_of_the_manifests_is_in_some_overlay_or_an_example() -> None:
    used = {path for name in manifests.overlays() for path in manifests.files(DEPLOY / "overlays" / name)}
    there = {path for path in DEPLOY.rglob("*.yaml") if path.name != manifests.KUSTOMIZATION}
    assert {path for path in there - used if path.parent.name != "examples"} == set()


def test_a_tag_names_our_own_images_only() -> None:
    text = manifests.render("single", "9.9")
    assert "image: diffkeeper/operator:9.9" in text
    assert "apps/v1" in text


def test_the_operators_settings_of_each_overlay_are_read() -> None:
    import msgspec

    from diffkeeper_operator.settings import OperatorSettings

    clusters = []
    for overlay in manifests.overlays():
        things = yaml.safe_load_all(manifests.render(overlay))
        [config] = [
            one
            for one in things
            if one and (one["kind"], one["metadata"]["name"]) == ("ConfigMap", "diffkeeper-operator")
        ]
        clusters.append(msgspec.json.decode(config["data"]["operator.json"], type=OperatorSettings).cluster)
    assert sorted(clusters) == ["east", "main", "west"]


def test_the_broker_is_told_what_receipts_rest_on() -> None:
    """The same as the brokers of ``dkctl up``, but for where things are in its container."""
    from diffkeeper import nats_config

    things = {
        (one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(manifests.render("single"))
    }
    told = things["ConfigMap", "diffkeeper-nats"]["data"]["nats.conf"]
    place = Path("/var/lib/nats")
    ours = nats_config.render(nats_config.ServerConfig("main", place, 4222, 8222, "x", host="0.0.0.0"))
    wanted = [
        line
        for line in ours.replace('"x"', "$BROKER_PASSWORD").splitlines()
        if "_file" not in line or "max" in line
    ]
    assert told.splitlines() == wanted


def test_kustomize_prints_the_same_objects(capsys: pytest.CaptureFixture[str]) -> None:
    program = shutil.which("kubectl")
    version = (
        subprocess.run(
            [program, "version", "--client", "-o", "json"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if program
        else None
    )
    minor = json.loads(version.stdout)["clientVersion"]["minor"] if version and version.stdout else "0"
    if int("".join(filter(str.isdigit, minor)) or 0) < 21:
        pytest.skip("no kubectl with a kustomize that reads folders as resources (1.21 or newer)")
    for overlay in manifests.overlays():
        done = subprocess.run(
            [str(program), "kustomize", str(DEPLOY / "overlays" / overlay)],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert _by_name(done.stdout) == _by_name(manifests.render(overlay))


def _by_name(text: str) -> dict[tuple[str, str], Any]:
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(text) if one}


def test_an_unknown_overlay_is_named_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.invoke(["manifests", "nope"]) == 5
    assert "east, single, west" in capsys.readouterr().err
    assert main.invoke(["manifests", "single", "--tag", "a b"]) == 2
