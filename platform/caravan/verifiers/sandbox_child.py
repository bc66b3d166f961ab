"""The inside of the sandbox: confine this process, then run the program that stdin brings.

Started by `caravan.verifiers.sandbox` as a script, with nothing of caravan importable.
stdin: one line "token cpu_seconds memory_bytes", one with a folder of packages (may be empty),
then the program. Reports on the file descriptor
given as argument: "ready" when confined, and the token when the program ran to its end.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

_CLONE_NEWNS = 0x00020000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_PR_SET_PDEATHSIG = 1
_NOBODY = 65534

_libc = ctypes.CDLL(None, use_errno=True)


def _limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _unshare() -> None:
    """Leave the machine's network and processes, with or without privileges; else stay."""
    isolated = _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWPID | _CLONE_NEWNS
    if _libc.unshare(isolated) != 0 and _libc.unshare(_CLONE_NEWUSER | isolated) != 0:
        return
    child = os.fork()  # the first process of the new namespace: all others die with it
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _drop_root() -> None:
    """Become nobody, who can still read the standard library."""
    if os.geteuid() != 0:
        return
    os.seteuid(_NOBODY)
    readable = os.access(os.__file__, os.R_OK, effective_ids=True)
    os.seteuid(0)
    if not readable and not _mount_library():
        return  # under a private home, on a kernel that lets us mount nothing
    os.setgroups([])
    os.setgid(_NOBODY)
    os.setuid(_NOBODY)


def _mount_library() -> bool:
    """Show the interpreter's directory under the working directory, in this namespace only."""
    here = os.path.join(os.getcwd(), ".python")
    os.mkdir(here, 0o755)
    if _libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        return False
    prefix = sys.base_prefix
    if _libc.mount(prefix.encode(), here.encode(), None, _MS_BIND | _MS_REC, None) != 0:
        return False
    packages = [
        m.__path__ for m in sys.modules.values() if isinstance(m.__dict__.get("__path__"), list)
    ]
    for paths in (sys.path, *packages):
        paths[:] = [here + p.removeprefix(prefix) if p.startswith(prefix) else p for p in paths]
    sys.path_importer_cache.clear()
    return True


def main() -> None:
    report = int(sys.argv[1])
    header, packages, source = sys.stdin.buffer.read().decode().split("\n", 2)
    if packages:
        sys.path.append(packages)
    token, cpu_seconds, memory_bytes = header.split()
    try:
        _unshare()
        _drop_root()
        _limit(resource.RLIMIT_CPU, int(cpu_seconds))
        _limit(resource.RLIMIT_AS, int(memory_bytes))
        _limit(resource.RLIMIT_FSIZE, 16 << 20)
        _limit(resource.RLIMIT_NOFILE, 64)
        _limit(resource.RLIMIT_NPROC, 64)
        _limit(resource.RLIMIT_CORE, 0)
    except (OSError, ValueError) as error:
        os.write(report, f"cannot confine: {error}".encode())
        os._exit(1)
    os.write(report, b"ready ")
    sys.argv = ["program.py"]
    exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})
    sys.stdout.flush()
    os.write(report, token.encode())
    os._exit(0)


if __name__ == "__main__":
    main()
