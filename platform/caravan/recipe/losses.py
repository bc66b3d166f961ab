"""How the options of a loss are written in a recipe: flat, beside the fields of their section.

    dpo: {loss_type: simpo, beta: 2.5, simpo_gamma: 1.4, learning_rate: 5e-7}

Inside, `loss_type` and its options are one member of a union, so an option of one loss cannot be
set on another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel

TAG = "loss_type"


def members(union: Any) -> list[type[BaseModel]]:
    """The models of `Annotated[A | B, ...]`; the first is the default."""
    return list(get_args(get_args(union)[0]))


def tags(member: Any) -> tuple[str, ...]:
    """The spellings of `loss_type` that choose `member`; none where it is no loss."""
    if not (isinstance(member, type) and issubclass(member, BaseModel)):
        return ()
    field = member.model_fields.get(TAG)
    return get_args(field.annotation) if field is not None else ()


def options(union: Any) -> dict[str, list[type[BaseModel]]]:
    """Every option of every loss, `loss_type` among them, with the losses that have it."""
    owners: dict[str, list[type[BaseModel]]] = {}
    for member in members(union):
        for name in member.model_fields:
            owners.setdefault(name, []).append(member)
    return owners


def gather_options(data: dict[str, Any], union: Any) -> dict[str, Any]:
    """The data of a section with what belongs to its loss moved into `loss`."""
    known = options(union)
    loss = {key: value for key, value in data.items() if key in known}
    if isinstance(data.get("loss"), Mapping):
        raise ValueError("loss is not a key: write loss_type and its options beside the rest")
    if "loss" in data and not loss:
        return data
    rest = {key: value for key, value in data.items() if key not in known and key != "loss"}
    return {**rest, "loss": {TAG: tags(members(union)[0])[0], **loss}}


def without_options(section: dict[str, Any], loss_type: Any, union: Any) -> dict[str, Any]:
    """A section as the base of one with `loss_type`: the options of another loss do not carry
    over."""
    if loss_type == section.get(TAG, tags(members(union)[0])[0]):
        return section
    return {key: value for key, value in section.items() if key not in options(union)}


def foreign_option(key: str, owner: Any, union: Any) -> str:
    """What is wrong with `key` on the loss `owner`, where another loss has an option of that name;
    empty where none has."""
    others = [tag for member in options(union).get(key, []) for tag in tags(member)[:1]]
    if not others or not tags(owner):
        return ""
    return (
        f"is an option of {TAG} {' or '.join(others)}, not of {tags(owner)[0]}; remove it, or set "
        f"{TAG}: {others[0]}"
    )


def flatten_schema(section: dict[str, Any], union: Any) -> None:
    """Replace the property `loss` of a section's JSON schema by the options, in place.

    An option that not every loss has says which `loss_type` may stand beside it.
    """
    del section["properties"]["loss"]
    every = [tag for member in members(union) for tag in tags(member)]
    section["dependentSchemas"] = {}
    for name, owners in options(union).items():
        described = {tags(o)[0]: o.model_json_schema()["properties"][name] for o in owners}
        texts = {tag: schema.pop("description", "") for tag, schema in described.items()}
        texts = {tag: " ".join(text.split()) for tag, text in texts.items()}
        first = next(iter(described.values()))
        if name == TAG:
            first = {"enum": every, "default": every[0], "title": "Loss Type", "type": "string"}
            texts = {tags(m)[0]: (m.__doc__ or "").strip() for m in members(union)}
        elif any(schema.get("default") != first.get("default") for schema in described.values()):
            first.pop("default")
        first["description"] = "\n".join(f"{tag}: {text}" for tag, text in texts.items())
        section["properties"][name] = first
        if len(owners) < len(members(union)):
            allowed = [tag for owner in owners for tag in tags(owner)]
            section["dependentSchemas"][name] = {"properties": {TAG: {"enum": allowed}}}
