"""How a failure of a stage is told."""

from __future__ import annotations

import errno
import os
import re
import traceback

from caravan.errors import CaravanError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_full(error: BaseException) -> str | None:
    """How the system says that a disk or a quota is full, if that is what `error` comes from."""
    if isinstance(error, OSError):
        code = error.errno
    else:  # libraries in Rust, safetensors among them, keep the number only in the text
        found = re.search(r"\(os error (\d+)\)", str(error))
        code = int(found[1]) if found else None
    return os.strerror(code) if code in DISK_FULL else None


def described(error: BaseException, cause: BaseException | None = None) -> str:
    """The error in a sentence, then its traceback."""
    text = str(error) if isinstance(error, CaravanError) else f"{type(error).__name__}: {error}"
    trace = traceback.format_exception(cause or error)
    return f"{text}\n\n{''.join(trace)}"
