"""What a stage run warned of, and which Caravan launched a run."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("stage_run", schema=None) as batch_op:
        batch_op.add_column(sa.Column("warnings", sa.Integer(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("last_warning", sa.Text(), server_default="", nullable=False))
    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("caravan_version", sa.String(64), server_default="", nullable=False)
        )


def downgrade() -> None:
    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.drop_column("caravan_version")
    with op.batch_alter_table("stage_run", schema=None) as batch_op:
        batch_op.drop_column("last_warning")
        batch_op.drop_column("warnings")
