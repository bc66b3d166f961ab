"""torchrun, which ends when the launcher does: python -m caravan.stages.ranks.agent LOCK ...

An agent that is left over from a launcher that died ends its ranks first; the next one waits for
that at LOCK, so there is never more than one set of ranks in a work directory.
"""

from __future__ import annotations

import fcntl
import sys
from pathlib import Path

from caravan.orphans import die_with_parent


def main() -> None:
    die_with_parent()
    lock, *arguments = sys.argv[1:]
    with Path(lock).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        from torch.distributed.run import main as torchrun

        torchrun(arguments)


if __name__ == "__main__":
    main()
