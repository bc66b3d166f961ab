"""Artifacts and the stages between them, as a graph in the DOT language."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from caravan.registry import ArtifactRow, LineageEdge, StageRunRow
from caravan_dashboard import palette
from caravan_dashboard.text import short_digest, size

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
            f'  {quoted("stage " + node)} [label={quoted(node)}, shape=box, style="rounded,filled",'
            f' fillcolor="{colour}", color="{colour}", fontcolor="white"];'
        )
    for digest in dict.fromkeys(e.digest for e in shown):
        lines.append(_artifact(digest, artifacts.get(digest), written, digest == highlighted))
    for edge in shown:
        ends = (quoted("stage " + edge.node), quoted("artifact " + edge.digest))
        start, end = ends if edge.written else ends[::-1]
        lines.append(f"  {start} -> {end};")
    return "\n".join([*lines, "}"])


def _artifact(
    digest: str, row: ArtifactRow | None, written: Mapping[str, Edge], highlighted: bool
) -> str:
    name = written[digest].name if digest in written else "input"
    kind = row.kind if row else "unknown"
    title = kind if name in (kind, "Output") else f"{name} · {kind}"
    about = f"{short_digest(digest)} · {size(row.size_bytes)}" if row else short_digest(digest)
    border = "#111827" if highlighted else "#8b94a3"
    return (
        f"  {quoted('artifact ' + digest)} [label={quoted(title, about)}, shape=note,"
        f' style=filled, fillcolor="{palette.KIND.get(kind, "#f1f5f9")}", color="{border}",'
        f' penwidth={2 if highlighted else 0.7}, fontsize=10, fontcolor="#111827"];'
    )


def quoted(*lines: str) -> str:
    """A quoted DOT string of one or more lines; nothing in them is read as DOT or as an escape."""
    escaped = []
    for line in lines:
        plain = "".join(c if c.isprintable() else " " for c in line)
        short = plain if len(plain) <= MAX_LABEL else plain[: MAX_LABEL - 1] + "…"
        # Graphviz turns HTML entities in labels into characters, so `&` is written as one.
        entities = short.replace("&", "&amp;")
        escaped.append(entities.replace("\\", "\\\\").replace('"', '\\"'))
    return '"' + "\\n".join(escaped) + '"'
