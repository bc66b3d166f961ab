"""Stages that do not keep their promise, by `config.how`."""

from __future__ import annotations

import errno

from safetensors import SafetensorError

from caravan.errors import DataError
from caravan.recipe import Config
from caravan.stages.context import StageResult

NAME = "odd"
VERSION = 1


class OddConfig(Config):
    how: str


def run(config, inputs, context):
    match config.how:
        case "empty output":
            context.output("model", "model")
        case "bad name":
            context.output("../model", "model")
        case "twice":
            context.output("model", "model")
            context.output("model", "model")
        case "link":
            (context.output("model", "model") / "passwd").symlink_to("/etc/passwd")
        case "bad row":
            raise DataError("rows.jsonl, row 3: field 'messages' is missing")
        case "full disk":
            raise OSError(errno.ENOSPC, "No space left on device", str(context.workdir / "x"))
        case "full disk of safetensors":
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        case "other trouble of safetensors":
            raise SafetensorError("I/O error: Permission denied (os error 13)")
        case "large":
            (context.workdir / "checkpoint").write_bytes(bytes(1 << 20))
        case "nothing":
            pass
    return StageResult({"n": float("nan")})
