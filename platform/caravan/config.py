"""The base of everything that a recipe is made of: frozen and closed pydantic models."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, field_validator

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

    @field_validator("*")
    @classmethod
    def _can_be_stored(cls, value: Any) -> Any:
        if isinstance(value, int) and abs(value) >= LARGEST:
            raise ValueError("a number as large as this cannot be stored; give a smaller one")
        return value

    def derive(self, **changes: object) -> Self:
        """A validated copy with `changes` (`model_copy` would not validate them)."""
        return type(self).model_validate(self.model_dump() | changes)
