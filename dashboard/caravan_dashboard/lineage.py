"""Artifacts and the stages between them, as a graph in the DOT language."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from caravan.registry import ArtifactRow, LineageEdge, StageRunRow
from caravan.store.sizes import size
from caravan_dashboard import palette
from caravan_dashboard.text import short_digest

MAX_LABEL = 60


class Edge(NamedTuple):
    node: str
    name: str
    digest: str
    written: bool
    """Whether the stage wrote the artifact or read it."""


def edges_of(stages: Sequence[StageRunRow]) -> list[Edge]:
    """What the stage runs of one run read and wrote."""
    edges = []
    for stage in stages:
        edges += [Edge(stage.node, name, d, False) for name, d in stage.inputs.items()]
        edges += [Edge(stage.node, name, d, True) for name, d in stage.outputs.items()]
    return edges


def traced(edges: Sequence[LineageEdge]) -> list[Edge]:
    """The edges of a lineage that the registry has followed."""
    return [Edge(e.node, e.name, e.digest, e.direction == "out") for e in edges]


def dot(
    edges: Sequence[Edge],
    artifacts: Mapping[str, ArtifactRow],
    states: Mapping[str, str],
    *,
    hidden: Collection[str] = (),
    highlighted: str = "",
) -> str:
    """The graph: stages as boxes bordered in the colour of their state, artifacts as notes.

    `states` maps a node to a colour; nodes in `hidden` are left out.
    """
    shown = list(dict.fromkeys(e for e in edges if e.node not in hidden))
    written = {e.digest: e for e in reversed(shown) if e.written}
    lines = [
        "digraph lineage {",
        '  rankdir=TB; bgcolor="transparent"; nodesep=0.3; ranksep=0.32;',
        '  node [fontname="Helvetica", fontsize=11, margin="0.12,0.06"];',
        '  edge [color="#8b94a3", arrowsize=0.6];',
    ]
    for node in dict.fromkeys(e.node for e in shown):
        colour = states.get(node, "#8b94a3")
        lines.append(
            f'  {name("stage " + node)} [label={label(node)}, shape=box, style="rounded,filled",'
            f' fillcolor="{colour}", color="{colour}", fontcolor="white"];'
        )
    for digest in dict.fromkeys(e.digest for e in shown):
        lines.append(_artifact(digest, artifacts.get(digest), written, digest == highlighted))
    for edge in shown:
        ends = (name("stage " + edge.node), name("artifact " + edge.digest))
        start, end = ends if edge.written else ends[::-1]
        lines.append(f"  {start} -> {end};")
    return "\n".join([*lines, "}"])


def _artifact(
    digest: str, row: ArtifactRow | None, written: Mapping[str, Edge], highlighted: bool
) -> str:
    called = written[digest].name if digest in written else "input"
    kind = row.kind if row else "unknown"
    title = kind if called in (kind, "Output") else f"{called} · {kind}"
    about = f"{short_digest(digest)} · {size(row.size_bytes)}" if row else short_digest(digest)
    border = "#111827" if highlighted else "#8b94a3"
    return (
        f"  {name('artifact ' + digest)} [label={label(title, about)}, shape=note,"
        f' style=filled, fillcolor="{palette.KIND.get(kind, "#f1f5f9")}", color="{border}",'
        f' penwidth={2 if highlighted else 0.7}, fontsize=10, fontcolor="#111827"];'
    )


def label(*lines: str) -> str:
    """A quoted DOT label of one or more lines, each cut to a width that can be drawn."""
    short = (x if len(x) <= MAX_LABEL else x[: MAX_LABEL - 1] + "…" for x in lines)
    # Graphviz turns HTML entities in labels into characters, so `&` is written as one.
    return '"' + "\\n".join(_escaped(line.replace("&", "&amp;")) for line in short) + '"'


def name(text: str) -> str:
    """A quoted DOT identifier."""
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    """`text` for the inside of a quoted string: nothing in it is read as DOT or as an escape."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain.replace("\\", "\\\\").replace('"', '\\"')
