"""Which backend executes a run, and what it calls the run."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("backend", sa.String(length=16), server_default="local", nullable=False)
        )
        batch_op.add_column(
            sa.Column("backend_run_id", sa.String(length=255), server_default="", nullable=False)
        )


def downgrade() -> None:
    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.drop_column("backend_run_id")
        batch_op.drop_column("backend")
