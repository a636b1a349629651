"""Child processes that do not outlive whoever started them, however that one ends."""

import os
import signal
import sys
from collections.abc import Sequence

# Runs between fork and the program, in a process of its own, where asking the kernel for a signal
# on the parent's death is safe; a hook in the forked child of a threaded process is not.
_TETHER = """
import os, sys
parent, signum, program, *arguments = sys.argv[1:]
try:
    import ctypes
    ctypes.CDLL(None).prctl(1, ctypes.c_ulong(int(signum)))
except (ImportError, OSError, AttributeError):
    pass
if os.getppid() == int(parent):
    os.execv(program, [program, *arguments])
"""


def tethered(command: Sequence[str], signum: signal.Signals) -> list[str]:
    """A command whose process the kernel sends `signum` when the thread that starts it ends.

    The process keeps its id: the tether becomes the program. Linux only; elsewhere the command
    is as it was, and a child of a parent that was killed runs on.
    """
    if sys.platform != "linux":
        return list(command)
    tether = [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid()), str(int(signum))]
    return [*tether, *command]
