"""Time that the earlier attempts of a stage run took, for costs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("stage_run", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("spent_seconds", sa.Float(53), server_default="0", nullable=False)
        )


def downgrade() -> None:
    with op.batch_alter_table("stage_run", schema=None) as batch_op:
        batch_op.drop_column("spent_seconds")
