"""Become redis-server, and die with the parent. Run as a script: PARENT_PID BINARY ARGUMENT ...

A process of its own, because nothing may run between fork and exec in a process with threads.
Linux sends the signal when the *thread* that started this process ends, so the one that starts it
has to live as long as the child is wanted.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def main() -> None:
    """Ask for SIGTERM at the parent's death, then exec; exit when the parent is dead already."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
