"""Runs a command that the kernel kills as soon as it, or a process that it starts, connects anywhere: a filter of system calls (seccomp), no tracing.

python -m tests.service.edge.no_connections MODULE ARGUMENTS...
"""

from __future__ import annotations

import ctypes
import platform
import runpy
import struct
import sys

# linux/audit.h, and the numbers of the calls: connect; and sendto, which is how send() is made too, so it is killed where it names an address.
MACHINES = {"x86_64": (0xC000003E, 42, 44), "aarch64": (0xC00000B7, 203, 206)}
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_NUMBER, _MACHINE, _ADDRESS = 0, 4, 16 + 8 * 4  # offsets in struct seccomp_data; sendto's fifth argument is the address
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER_MODE = 38, 22, 2


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install() -> None:
    """From here on, connecting kills.  Raises OSError where the kernel takes no filter."""
    machine, connect, sendto = MACHINES[platform.machine()]
    instructions = [
        (_LOAD, 0, 0, _MACHINE),
        (_JUMP_EQUAL, 0, 8, machine),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_EQUAL, 6, 0, connect),
        (_JUMP_EQUAL, 0, 4, sendto),
        (_LOAD, 0, 0, _ADDRESS),
        (_JUMP_EQUAL, 0, 3, 0),
        (_LOAD, 0, 0, _ADDRESS + 4),
        (_JUMP_EQUAL, 0, 1, 0),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _KILL),
    ]
    # The jump for connect leads to the last instruction, those of an innocent sendto to the last but one.
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    program = _Program(len(instructions), code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.prctl(_SET_SECCOMP, _FILTER_MODE, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "The kernel takes no filter of system calls")


if __name__ == "__main__":
    install()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
