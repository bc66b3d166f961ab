"""What the process of a stage has used: CPU time and peak memory."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

GIB = 2**30
CPU_SECONDS = "perf/cpu_seconds"
PEAK_MEMORY = "perf/peak_memory_gib"
PEAK_GPU_MEMORY = "perf/peak_gpu_memory_gib"


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def peak_memory() -> dict[str, float]:
    """Of this process since it started, in GiB: on the machine, and on its GPU if it used one."""
    found = {PEAK_MEMORY: _peak_resident_bytes() / GIB}
    torch = sys.modules.get("torch")  # a stage that has not loaded it has no GPU memory
    if torch is not None and torch.cuda.is_initialized():
        found[PEAK_GPU_MEMORY] = torch.cuda.max_memory_allocated() / GIB
    return found


def _peak_resident_bytes() -> int:
    # getrusage's ru_maxrss is inherited from the process that started this one.
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0
