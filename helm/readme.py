"""Write helm/caravan/README.md from the comments of values.yaml: python helm/readme.py

A comment that begins with `# --` describes the value below it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent / "caravan"
README = CHART / "README.md"
HEAD = """# Caravan's Helm chart

{description}. Version {version}, Kubernetes {kube}.

    helm install caravan helm/caravan --namespace caravan --create-namespace --values my-values.yaml

How to install, upgrade and publish it: [docs/installation.md](../../docs/installation.md). What
each pod may do and reach: [docs/security.md](../../docs/security.md). Whole examples: [ci/](ci).

This table is generated from `values.yaml` by `python helm/readme.py`.

| Value | Default | Meaning |
|---|---|---|
"""
KEY = re.compile(r'^(?P<indent> *)(?P<key>"[^"]*"|[A-Za-z0-9_.-]+):')
COMMENT = re.compile(r"^ *# -- (?P<text>.+)$")


def described(text: str) -> Iterator[tuple[str, str]]:
    """Path and description of each value that a comment describes, in the file's order."""
    path: list[tuple[int, str]] = []
    comment = ""
    for line in text.splitlines():
        if found := COMMENT.match(line):
            comment = found["text"]
        elif found := KEY.match(line):
            indent = len(found["indent"])
            path = [*(step for step in path if step[0] < indent), (indent, found["key"])]
            if comment:
                yield ".".join(key for _, key in path), comment
            comment = ""


def value_at(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values[key]
    return values


def render(chart: Path = CHART) -> str:
    about = yaml.safe_load((chart / "Chart.yaml").read_text("utf-8"))
    text = (chart / "values.yaml").read_text("utf-8")
    values = yaml.safe_load(text)
    rows = [
        f"| `{path}` | `{json.dumps(value_at(values, path))}` | {meaning} |"
        for path, meaning in described(text)
    ]
    head = HEAD.format(
        description=about["description"], version=about["version"],
        kube=about["kubeVersion"].removesuffix("-0"),
    )  # fmt: skip
    return head + "\n".join(rows) + "\n"


if __name__ == "__main__":
    README.write_text(render(), "utf-8")
