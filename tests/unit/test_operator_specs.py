"""The Python types of a SAC agree with the schema that the API server checks with, and names come out the same everywhere."""

from __future__ import annotations

import types
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import sacs

from diffkeeper.domain import errors, volumes
from diffkeeper_operator import conditions, one_shots, specs


def schema(plural: str) -> dict[str, Any]:
    version = sacs.crd(plural)["spec"]["versions"][0]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]
    return found


def disagreements(kind: type[msgspec.Struct], node: dict[str, Any], where: str) -> list[str]:
    """Every field whose name, necessity, default, enum or type differs between the two."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    found = [f"{where}.{name}: only one of the two has it" for name in set(fields) ^ set(node["properties"])]
    for name in set(fields) & set(node["properties"]):
        found += _compare(
            fields[name], node["properties"][name], name in node.get("required", []), f"{where}.{name}"
        )
    return found


def _compare(field: Any, told: dict[str, Any], required: bool, where: str) -> list[str]:
    found = []
    if field.required != required:
        found.append(f"{where}: required is {required} in the schema")
    kind, args = _plain(field.type)
    default = None if field.default is msgspec.NODEFAULT else field.default
    if not isinstance(default, msgspec.Struct | tuple | None) and told.get("default") != default:
        found.append(f"{where}: default {default!r} against {told.get('default')!r}")
    if kind is typing.Literal and list(args) != told.get("enum"):
        found.append(f"{where}: {args} against {told.get('enum')}")
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        found += disagreements(kind, told, where)
    if kind is tuple and isinstance(args[0], type) and issubclass(args[0], msgspec.Struct):
        found += disagreements(args[0], told["items"], f"{where}[]")
    expected = {
        str: "string",
        int: "integer",
        bool: "boolean",
        dict: "object",
        tuple: "array",
        typing.Literal: "string",
    }
    if expected.get(kind, "object") != told["type"]:
        found.append(f"{where}: {kind} against {told['type']}")
    return found


def _plain(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """``X | None`` as X; with what is inside of it."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        [kind] = [one for one in typing.get_args(kind) if one is not type(None)]
    origin = typing.get_origin(kind)
    return (origin or kind), typing.get_args(kind)


@pytest.mark.parametrize(
    ("plural", "kind"),
    [
        ("sacs", specs.Spec),
        ("switchovers", one_shots.SwitchoverSpec),
        ("restores", one_shots.RestoreSpec),
    ],
)
def test_the_python_types_agree_with_the_schema(plural: str, kind: type[msgspec.Struct]) -> None:
    assert disagreements(kind, schema(plural)["spec"], plural) == []


def test_accepted_fields_are_in_the_schema_of_the_status() -> None:
    assert (
        disagreements(
            specs.Accepted,
            schema("sacs")["status"]["properties"]["accepted"]
            | {"required": ["volume", "path", "mode", "size", "stateful"]},
            "accepted",
        )
        == []
    )


def test_the_condition_types_are_those_of_the_schema() -> None:
    items = schema("sacs")["status"]["properties"]["conditions"]["items"]
    assert items["properties"]["type"]["enum"] == list(conditions.TYPES)


def test_the_seeds_manifest_is_read_as_it_is() -> None:
    sac = sacs.sac()
    assert sac.spec.image == "postgres:15"
    assert sac.spec.stateful
    assert sac.spec.storage == specs.Storage(path="/var/lib/postgresql/data", compression=True)
    assert sac.volume == "default-postgres"
    assert sac.durability("east") == "site"


def test_several_clusters_ask_for_remote_durability_unless_told_otherwise() -> None:
    assert sacs.two_clusters().durability("east") == "remote"
    assert sacs.two_clusters(durability="observe").durability("east") == "observe"


def test_a_resource_of_a_newer_schema_is_read_and_of_another_shape_is_refused() -> None:
    assert sacs.sac(something_newer=1).spec.image == "postgres:15"
    with pytest.raises(errors.Misconfigured, match="does not fit"):
        sacs.sac(storage={"path": 7})


_names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?", fullmatch=True)


@given(_names, _names)
def test_every_resource_has_a_volume_name_that_may_be_one(namespace: str, name: str) -> None:
    volumes.check_name("volume", specs.volume_name(namespace, name))


@given(_names, _names, _names, _names)
def test_two_resources_never_share_a_volume_name(one: str, two: str, three: str, four: str) -> None:
    if (one, two) != (three, four):
        assert specs.volume_name(one, two) != specs.volume_name(three, four)


def test_namespaces_and_names_that_join_to_the_same_text_are_told_apart() -> None:
    assert specs.volume_name("a-b", "c") != specs.volume_name("a", "b-c")


def test_retention_becomes_the_policy_of_the_history() -> None:
    sac = sacs.sac(
        retention={"everyWrite": "1d", "everyBarrier": "7d", "steps": [{"every": "1h", "until": "30d"}]}
    )
    assert specs.retention_policy(sac.spec.retention) == {
        "every_write_s": 86_400,
        "every_barrier_s": 604_800,
        "steps": [{"every_s": 3600, "until_s": 2_592_000}],
    }
    assert specs.retention_policy(None) is None
