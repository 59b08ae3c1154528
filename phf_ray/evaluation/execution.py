"""Runs Python that a model wrote, as HumanEval does: a process of its own per program, with limits.

The policy: the kernel lets the process read files, compute, and write to what it has open; anything else it asks for,
another process, a network, a file to write, a signal, is answered with EPERM (a seccomp filter, which nothing can take
off again). CPU time, memory and output are limited, the environment is empty, and whatever takes too long is killed.
The price: programs with threads, subprocesses or files of their own fail, and it works on Linux on x86-64 only; where
it can't be set up, nothing is run. It is no container: a program can read what its user can, though it can tell nobody
but by how it ends, which is one of Python's own names for failures. Nor is a pass a proof: the program shares an
interpreter with its tests, and one that is bent on passing can bend them. That takes code about interpreters, not about
the problem; a model that was rewarded for passes might find it.
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
    """Far above `cpu_s`, which ends what computes: on a busy machine a program waits for its turn."""
    cpu_s: int = 5
    memory_bytes: int = 1 << 30
    """Address space."""
    output_bytes: int = 1 << 16


def check_supported() -> None:
    """Raises ConfigError where programs can't be contained."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise ConfigError(
            f"code of a model can be contained on Linux on x86-64 only, not on {sys.platform} on {platform.machine()}; "
            "evaluate such scenarios there"
        )


def run_program(program: str, *, limits: ProgramLimits | None = None) -> str:
    """`passed` (`records.PASSED`), if the program runs to its end, or how it failed: `AssertionError`, `timed out`, ...

    Only the kind of failure is told: the text of an exception is the program's own.
    """
    check_supported()
    with _PLACES:
        return _run(program, limits or ProgramLimits())


_PLACES = threading.BoundedSemaphore(os.cpu_count() or 1)
"""Programs that a process runs at the same time: more would only wait for a core, and the wall time is limited."""


def _run(program: str, limits: ProgramLimits) -> str:
    # What the program prints goes nowhere; that it has ended is said with a word it does not know.
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
    """HumanEval's program: the function, its tests, and their call."""
    return f"{prompt}{first_function(completion)}\n{test}\ncheck({entry_point})\n"


_ENDS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\n```", "\nassert ")


def first_function(completion: str) -> str:
    """A completion up to the end of the function that it completes; models go on with the next one."""
    return completion[: min((found for end in _ENDS if (found := completion.find(end)) >= 0), default=len(completion))]
