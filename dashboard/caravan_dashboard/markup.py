"""HTML that cannot be broken out of: text is escaped unless this module made it.

    tag("td", row.name, tag("b", 3), style="color:red")

Only `Html` passes unescaped, and only `tag` makes it. Data goes in as children; attributes come
from code, but for `title` and `href`, which are escaped too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote, urlencode

from caravan.registry.states import State
from caravan_dashboard import palette
from caravan_dashboard.diff import Piece
from caravan_dashboard.text import escape

VOID = {"br", "hr"}


class Html(str):
    """Markup whose every piece of data has been escaped."""

    __slots__ = ()


def tag(name: str, *children: object, **attributes: object) -> Html:
    """An element; `class_` gives `class`, and a None attribute is left out."""
    inside = "".join(child if isinstance(child, Html) else escape(child) for child in children)
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{given}>" if name in VOID else f"<{name}{given}>{inside}</{name}>")


def caveat(text: str) -> Html:
    """What stands under a score that says little; nothing for no text."""
    return tag("div", text, class_="cv-caveat") if text else Html()


def join(parts: Iterable[object], separator: str = "") -> Html:
    """Parts one after another."""
    return Html(escape(separator).join(p if isinstance(p, Html) else escape(p) for p in parts))


def table(headers: Sequence[object], rows: Iterable[Sequence[object]], numeric: str = "") -> Html:
    """A table; `numeric` has an `n` for each column of numbers and any other letter elsewhere."""
    kind = ["cv-num" if c == "n" else None for c in numeric.ljust(len(headers))]
    head = tag("tr", *(tag("th", h, class_=k) for h, k in zip(headers, kind, strict=False)))
    body = [
        tag("tr", *(tag("td", cell, class_=k) for cell, k in zip(row, kind, strict=False)))
        for row in rows
    ]
    inside = join([tag("thead", head), tag("tbody", *body)])
    return tag("div", tag("table", inside, class_="cv-table"), class_="cv-scroll")


def page_link(text: object, page: str, **parameters: str | Sequence[str]) -> Html:
    """A link to a page of the dashboard, by its path in the URL."""
    href = quote(page, safe="") + ("?" + urlencode(parameters, doseq=True) if parameters else "")
    return tag("a", text, href="./" + href, target="_self", class_="cv-link")


def mono(text: object) -> Html:
    """An identifier, unbroken."""
    return tag("span", text, class_="cv-mono")


def pill(text: object, kind: str = "neutral") -> Html:
    """A small label; `kind` is `good`, `bad` or `neutral`, colours of the style sheet."""
    colour = f"var(--cv-{kind})"
    return tag("span", text, class_="cv-pill", style=f"color:{colour};border-color:{colour}")


def state_pill(state: State) -> Html:
    return tag("span", _dot(palette.STATE[state]), state.value, class_="cv-state")


def line_mark(colour: str, kind: str) -> Html:
    """A piece of a curve, as it is drawn in a chart."""
    return tag("span", class_="cv-line", style=f"border-top:3px {kind} {colour}")


def legend(colour_of: Mapping[str, str]) -> Html:
    """What the colours of a chart stand for."""
    items = [tag("span", _dot(colour), name) for name, colour in colour_of.items()]
    return tag("div", *items, class_="cv-facts")


def _dot(colour: str) -> Html:
    return tag("span", class_="cv-dot", style=f"background:{colour}")


def bar(share: float, colour: str) -> Html:
    """A horizontal bar that fills `share` of its cell."""
    width = min(100.0, max(0.0, 100 * share))
    fill = tag("div", class_="cv-fill", style=f"width:{width:.1f}%;background:{colour}")
    return tag("div", fill, class_="cv-bar")


def prose(text: str) -> Html:
    """A text as it is, line breaks and spaces kept."""
    return tag("div", text if text else tag("i", "empty"), class_="cv-text")


def marked(pieces: Iterable[Piece], kind: str) -> Html:
    """A text with the pieces that differ marked; `kind` is `chosen` or `rejected`."""
    shown = [
        tag("mark", piece.text, class_=f"cv-{kind}") if piece.differs else piece.text
        for piece in pieces
    ]
    return tag("div", *(shown or [tag("i", "empty")]), class_="cv-text")


def turn(role: str, content: object) -> Html:
    """One message of a conversation."""
    body = content if isinstance(content, Html) else prose(str(content))
    known = role if role in ("system", "user", "assistant") else "other"
    return tag("div", tag("div", role, class_="cv-role"), body, class_=f"cv-turn cv-{known}")


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Names and values on one line, in small type."""
    items = [
        tag("span", tag("span", name, class_="cv-name"), value) if name else tag("span", value)
        for name, value in pairs
    ]
    return tag("div", *items, class_="cv-facts")
