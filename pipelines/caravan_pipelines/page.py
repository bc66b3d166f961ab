"""What Kubeflow Pipelines' own page shows of a stage: a Markdown card."""

from __future__ import annotations

from urllib.parse import quote

from caravan.registry import StageRunRow

ESCAPED = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]<>#|"})


def stage_page(stage: StageRunRow, dashboard_url: str) -> str:
    """The card of a stage run that has succeeded."""
    seconds = "" if stage.seconds is None else f", {stage.seconds:.0f} s"
    reused = ", taken from an earlier run" if stage.reused_from else ""
    lines = [f"## {_plain(stage.node)}", "", f"{stage.state}{seconds}{reused}", ""]
    if stage.metrics:
        lines += ["| metric | value |", "| --- | ---: |"]
        lines += [f"| {_plain(name)} | {value:g} |" for name, value in stage.metrics.items()]
        lines.append("")
    lines += [f"- {_plain(name)}: `{digest[:12]}`" for name, digest in stage.outputs.items()]
    if dashboard_url:
        lines += ["", f"[Open in Caravan]({run_link(dashboard_url, stage.run_id)})"]
    return "\n".join(lines) + "\n\n"


def run_link(dashboard_url: str, run_id: str) -> str:
    """The dashboard's page of a run."""
    return f"{dashboard_url.rstrip('/')}/run?run={quote(run_id)}"


def _plain(text: str) -> str:
    return text.translate(ESCAPED)
