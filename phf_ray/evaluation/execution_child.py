"""The child process that `execution.py` starts, with the program on standard input.

It runs with `-I -S -c`, so nothing of this project is imported. It gives up its rights, runs the program, and writes
the outcome to the file that was its standard output.
"""

import builtins
import ctypes
import json
import os
import resource
import struct
import sys
from collections.abc import Iterator

# x86-64 system calls that pure Python needs to compute and to read files. Every other call is refused.
_ALLOWED = (
    0, 1, 3, 4, 5, 6, 7, 8,  # read write close stat fstat lstat poll lseek
    9, 10, 11, 12, 13, 14, 15,  # mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn
    17, 19, 20, 21, 23, 24, 25, 28,  # pread64 readv writev access select sched_yield mremap madvise
    32, 35, 36, 38, 39, 60, 63, 72, 79, 89,  # dup nanosleep getitimer setitimer getpid exit uname fcntl getcwd readlink
    96, 98, 99, 100, 102, 104, 107, 108, 110,  # gettimeofday getrusage sysinfo times get*id
    131, 186, 201, 202, 204, 217, 219,  # sigaltstack gettid time futex sched_getaffinity getdents64 restart_syscall
    228, 229, 230, 231, 262, 267, 269, 270, 271,  # clock_* exit_group newfstatat readlinkat faccessat pselect6 ppoll
    273, 292, 318, 324, 332, 334, 439,  # set_robust_list dup3 getrandom membarrier statx rseq faccessat2
)  # fmt: skip
_OPEN, _OPENAT = 2, 257  # allowed for reading only; the flags are the 2nd and the 3rd argument, respectively
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_ARCHITECTURE = 0xC000003E
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # refuse: EPERM
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06


def _filter() -> bytes:
    """Return the rules as a kernel packet filter: (code, jump if true, jump if false, value) per rule."""
    rules = [
        (_LOAD, 0, 0, 4),  # architecture: the numbers below belong to this one
        (_EQUAL, 1, 0, _ARCHITECTURE),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # number of the call
    ]
    for number, argument in ((_OPEN, 1), (_OPENAT, 2)):
        rules += [
            (_EQUAL, 0, 4, number),
            (_LOAD, 0, 0, 16 + 8 * argument),
            (_ANY_BIT, 0, 1, _WRITING),
            (_RETURN, 0, 0, _REFUSE),
            (_RETURN, 0, 0, _ALLOW),
        ]
    for number in _ALLOWED:
        rules += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *rule) for rule in [*rules, (_RETURN, 0, 0, _REFUSE)])


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("rules", ctypes.c_char_p)]


def _give_up_rights(memory_bytes: int, cpu_s: int, output_bytes: int) -> None:
    for kind, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, output_bytes),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    libc = ctypes.CDLL(None, use_errno=True)
    rules = _filter()
    no_new_privileges, set_seccomp, by_filter = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")
    if libc.prctl(set_seccomp, by_filter, ctypes.byref(_Program(len(rules) // 8, rules)), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


_KINDS = sorted(
    {kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, BaseException)},
    key=lambda kind: (-len(kind.__mro__), kind.__name__),
)
"""Python's own exceptions, derived classes before their bases."""


def _run(program: str) -> bytes:
    try:
        exec(compile(program, "program", "exec"), {"__name__": "program"})
    # Every error of the program ends here, because every error is an outcome.
    except BaseException as error:  # noqa: BLE001
        # Report the built-in base: the program can give its own class any name, such as the content of a file.
        return next(kind.__name__ for kind in _KINDS if isinstance(error, kind)).encode()
    return b"passed"


def _told_outcome() -> Iterator[int]:
    """Return an iterator that, when asked for its item, runs the program and writes the outcome.

    The program can look into the variables of all its callers. So while it runs, no variable holds the secret word or
    the file descriptor of the verdict: both are inside an iterator.
    """
    request = json.loads(sys.stdin.buffer.read())
    verdict = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    try:
        _give_up_rights(request["memory_bytes"], request["cpu_s"], request["output_bytes"])
    except (OSError, ValueError) as error:
        os.write(verdict, f"{request['word']}not run: {type(error).__name__}: {error}".encode())
        return iter(())
    return map(os.write, [verdict], map(request["word"].encode().__add__, map(_run, [request["program"]])))


def main() -> None:
    for _ in _told_outcome():
        pass
    # Skip the interpreter's shutdown, which would run the handlers that the program registered.
    os._exit(0)


if __name__ == "__main__":
    main()
