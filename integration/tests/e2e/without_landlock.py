"""Runs a command for which landlock_create_ruleset(2) fails with ENOSYS, as on a kernel without Landlock (x86-64 only)."""

import ctypes
import errno
import os
import struct
import sys

LANDLOCK_CREATE_RULESET = 444
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
RETURN_ERROR, RETURN_ALLOW = 0x0005_0000, 0x7FFF_0000
# Of struct sock_filter: load a word, skip unless equal, return.
LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06


def instruction(code, if_true, if_false, value):
    return struct.pack("HBBI", code, if_true, if_false, value)


program = [
    instruction(LOAD, 0, 0, 0),  # the call's number
    instruction(IF_EQUAL, 0, 1, LANDLOCK_CREATE_RULESET),
    instruction(RETURN, 0, 0, RETURN_ERROR | errno.ENOSYS),
    instruction(RETURN, 0, 0, RETURN_ALLOW),
]
code = ctypes.create_string_buffer(b"".join(program))
fprog = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, fprog, 0, 0) != 0:
    sys.exit(f"seccomp: {os.strerror(ctypes.get_errno())}")
os.execvp(sys.argv[1], sys.argv[1:])
