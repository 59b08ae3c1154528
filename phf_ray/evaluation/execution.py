"""Runs Python that a model wrote, as HumanEval does: each program in its own process, with limits.

The policy: a seccomp filter, which nothing can remove again, lets the process read files, compute, and write to files
that are already open. The kernel answers everything else, such as starting a process, using a network, opening a file
for writing or sending a signal, with EPERM. CPU time, memory and output are limited, the environment is empty, and a
program that takes too long is killed.

The price: programs that need threads, subprocesses or files of their own fail, and this works on Linux on x86-64 only;
if the limits can't be set up, nothing runs.

This is not a container: a program can read whatever its user can. It can pass that on only by how it ends: as the name
of one of Python's own exceptions, a signal or an exit code. A pass is not a proof either: the program shares an
interpreter with its tests, and a program that is bent on passing can bend them. That takes code about interpreters, not
about the problem; a model that was rewarded for passes might find it.
"""

import json
import os
import platform
import secrets
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from phf_ray.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramLimits:
    wall_s: float = 60.0
    """Far above `cpu_s`, which ends a program that computes: on a busy machine a program waits for its turn."""
    cpu_s: int = 5
    memory_bytes: int = 1 << 30
    """Address space."""
    output_bytes: int = 1 << 16


def check_supported() -> None:
    """Raise ConfigError if programs can't be contained on this machine."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise ConfigError(
            f"code that a model wrote can be contained on Linux on x86-64 only, not on {sys.platform} on "
            f"{platform.machine()}; evaluate scenarios with `execute` on Linux on x86-64"
        )


def run_program(program: str, *, limits: ProgramLimits | None = None) -> str:
    """Return `passed` (`records.PASSED`) if the program runs to its end, else how it failed, such as `timed out`.

    The result names only the kind of failure, because the program itself writes the text of an exception.
    """
    check_supported()
    with _PLACES:
        return _run(program, limits or ProgramLimits())


_PLACES = threading.BoundedSemaphore(os.cpu_count() or 1)
"""Limits how many programs run at once: more would only wait for a core while their wall time runs out."""


def _run(program: str, limits: ProgramLimits) -> str:
    # The program's output is discarded. A verdict counts only with this word, which the program does not know.
    word = secrets.token_hex(16)
    request = json.dumps({"program": program, "word": word, **asdict(limits)})
    with tempfile.TemporaryDirectory(prefix="phf-program-") as folder, tempfile.TemporaryFile() as verdict:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=verdict,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        try:
            process.communicate(request.encode("utf-8", "replace"), timeout=limits.wall_s)
        except subprocess.TimeoutExpired:
            return "timed out"
        finally:
            process.kill()
            process.wait()
        verdict.seek(0)
        said = verdict.read(limits.output_bytes).decode("utf-8", "replace")
    return _outcome(said, word=word, return_code=process.returncode)


def _outcome(said: str, *, word: str, return_code: int) -> str:
    begin, _, outcome = said.rpartition(word)
    if said and not begin and outcome:
        return outcome[:80]
    if return_code < 0:
        return "timed out" if -return_code in (_SIGXCPU, _SIGKILL) else f"killed: signal {-return_code}"
    return f"ended with exit code {return_code}"


_SIGKILL, _SIGXCPU = 9, 24

_CHILD = Path(__file__).with_name("execution_child.py").read_text(encoding="utf-8")


def program_of(prompt: str, completion: str, *, test: str, entry_point: str) -> str:
    """Return HumanEval's program: the function, its tests, and the call that runs them."""
    return f"{prompt}{first_function(completion)}\n{test}\ncheck({entry_point})\n"


_ENDS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\n```", "\nassert ")


def first_function(completion: str) -> str:
    """Cut a completion after the function that it completes; models go on with the next one."""
    return completion[: min((found for end in _ENDS if (found := completion.find(end)) >= 0), default=len(completion))]
