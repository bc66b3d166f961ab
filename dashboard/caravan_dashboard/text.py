"""Values as people read them, and untrusted text as HTML that shows it and does nothing else."""

from __future__ import annotations

import html
import math
from datetime import UTC, datetime

DASH = "–"


def escape(text: object) -> str:
    """`text` for the inside of an HTML element or of a quoted attribute."""
    return html.escape(str(text), quote=True)


def duration(seconds: float | None) -> str:
    """`7 s`, `3 min 12 s`, `2 h 5 min`."""
    if seconds is None:
        return DASH
    if seconds < 0.1:
        return "< 0.1 s"
    if seconds < 1:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def moment(at: datetime | None) -> str:
    """`2026-11-22 15:30` in UTC."""
    return DASH if at is None else at.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def ago(at: datetime | None, now: datetime) -> str:
    """`just now`, `5 min ago`, `3 h ago`, `2 days ago`."""
    if at is None:
        return DASH
    seconds = max(0.0, (now - at).total_seconds())
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{int(seconds // 60)} min ago"
    if seconds < 86400:
        return f"{int(seconds // 3600)} h ago"
    days = int(seconds // 86400)
    return f"{days} day{'s' if days > 1 else ''} ago"


def count(number: int) -> str:
    """`12 345`, with a thin space."""
    return f"{number:,}".replace(",", "\u2009")


def percent(share: float, digits: int = 1) -> str:
    return DASH if math.isnan(share) else f"{100 * share:.{digits}f}"


def signed_points(difference: float) -> str:
    """A difference of shares in percentage points: `+3.4`, `−1.2`."""
    if math.isnan(difference):
        return DASH
    return f"{100 * difference:+.1f}".replace("-", "−")


def short_digest(digest: str) -> str:
    return digest.removeprefix("sha256:")[:10]
