"""The base of everything that a recipe is made of: frozen and closed pydantic models."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        populate_by_name=True,
        allow_inf_nan=False,
    )

    def derive(self, **changes: object) -> Self:
        """A validated copy with `changes` (`model_copy` would not validate them)."""
        return type(self).model_validate(self.model_dump() | changes)
