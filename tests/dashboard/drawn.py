"""What a page that was drawn in process shows."""

from __future__ import annotations

from streamlit.testing.v1 import AppTest


def checked(app: AppTest) -> AppTest:
    assert not app.exception, [e.message for e in app.exception]
    return app


def markup(app: AppTest) -> str:
    """All HTML of the page, without the style sheet."""
    bodies = [element.proto.body for element in app.get("html")]
    return "\n".join(body for body in bodies if not body.startswith("<style>"))


def plain(app: AppTest) -> str:
    """All text of the page that is no HTML."""
    kinds = (app.title, app.subheader, app.text, app.caption, app.error, app.warning, app.success,
             app.code)  # fmt: skip
    return "\n".join(str(element.value) for kind in kinds for element in kind)
