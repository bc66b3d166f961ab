"""What a stage run's scores add up to, which runs are put in order by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

FIRST_SHARES = """
    FROM score WHERE id IN (
        SELECT min(found.id) FROM score AS found
        WHERE found.stage_run_id = coalesce(stage_run.reused_from, stage_run.id)
        AND found.metric NOT LIKE '%rating%' GROUP BY found.task
    )
"""


def upgrade() -> None:
    with op.batch_alter_table("stage_run", schema=None) as batch_op:
        batch_op.add_column(sa.Column("share_total", sa.Float(53), nullable=True))
        batch_op.add_column(
            sa.Column("share_count", sa.Integer(), server_default="0", nullable=False)
        )
    op.execute(
        "UPDATE stage_run SET "
        f"share_count = (SELECT count(*) {FIRST_SHARES}), "
        "share_total = (SELECT CASE WHEN count(value) = count(*) THEN sum(value) END "
        f"{FIRST_SHARES}) WHERE stage_run.node LIKE 'evaluate-%'"
    )


def downgrade() -> None:
    op.drop_column("stage_run", "share_count")
    op.drop_column("stage_run", "share_total")
