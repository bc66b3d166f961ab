"""Alembic's entry: runs the migrations on the connection that `caravan.registry` hands over."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from sqlalchemy.types import TypeDecorator

from caravan.registry.models import Base


def render_item(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Write a decorated type as what it is in the database: a migration must not change with it."""
    if kind == "type" and isinstance(item, TypeDecorator):
        return f"sa.{item.impl!r}"
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite cannot alter a table in place
    render_item=render_item,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
