"""What people prefer of the two replies of a pair."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "pair_rating",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("pair_id", sa.Text(), nullable=False),
        sa.Column("person", sa.String(length=255), nullable=False),
        sa.Column("choice", sa.String(length=8), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["digest"], ["artifact.digest"], name=op.f("fk_pair_rating_digest_artifact")
        ),
        sa.PrimaryKeyConstraint("digest", "pair_id", "person", name=op.f("pk_pair_rating")),
    )


def downgrade() -> None:
    op.drop_table("pair_rating")
