"""The base of everything that a recipe is made of: frozen and closed pydantic models."""

from __future__ import annotations

from inspect import cleandoc
from typing import Any, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

LARGEST = 2**63
"""Whole numbers of databases are below it."""


class Config(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        populate_by_name=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _complete_sections(cls, given: Any) -> Any:
        """A section of which only a part is given has the rest from the default of its field, which
        may differ from that of its type."""
        if not isinstance(given, dict):
            return given
        sections = {
            name: field.default.model_dump() | given[name]
            for name, field in cls.model_fields.items()
            if isinstance(field.default, Config)
            and field.annotation is type(field.default)
            and isinstance(given.get(name), dict)
        }
        return given | sections

    @field_validator("*")
    @classmethod
    def _can_be_stored(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) >= LARGEST:
            raise ValueError("a number as large as this cannot be stored; give a smaller one")
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        described = handler(schema)
        properties = handler.resolve_ref_schema(described).get("properties", {})
        for name, shown in properties.items():
            if "description" not in shown and (text := cls._describe(name)):
                shown["description"] = text
        return described

    @classmethod
    def _describe(cls, name: str) -> str:
        """What a field without a docstring is: as in the parent whose default it changes, or as the
        section that it holds says."""
        for parent in cls.__mro__:
            known = parent.model_fields.get(name) if issubclass(parent, BaseModel) else None
            if known is not None and known.description:
                return known.description
        annotation = cls.model_fields[name].annotation if name in cls.model_fields else None
        alternatives = (annotation, *get_args(annotation))
        held = [t for t in alternatives if isinstance(t, type) and issubclass(t, Config)]
        return cleandoc(held[0].__doc__ or "") if len(held) == 1 else ""

    def derive(self, **changes: object) -> Self:
        """A validated copy with `changes` (`model_copy` would not validate them)."""
        return type(self).model_validate(self.model_dump() | changes)
