"""Programs that a model might write, run for real."""

import os
import platform
import socket
import sys
import threading

import pytest

from phf_ray.errors import ConfigError
from phf_ray.evaluation.execution import ProgramLimits, first_function, program_of, run_program
from phf_ray.records import PASSED

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="programs are contained on Linux on x86-64 only"
)
FORGERY = """
import json, os, sys
def values(frame):
    while frame is not None:
        yield from frame.f_locals.values()
        yield from frame.f_globals.values()
        frame = frame.f_back
words = {one["word"] for one in list(values(sys._getframe())) if isinstance(one, dict) and "word" in one}
words |= {one for one in list(values(sys._getframe())) if isinstance(one, str) and len(one) == 32}
for word in words:
    for fd in range(3, 60):
        try:
            os.write(fd, (word + "passed").encode())
        except OSError:
            pass
if words:
    os._exit(0)
assert False
"""
"""Looks for the word that makes a verdict in the frames that lead to it."""
FAST = ProgramLimits(wall_s=20.0, cpu_s=1, memory_bytes=1 << 28)


def test_a_program_that_ends_has_passed_and_others_say_how_they_failed():
    assert run_program("import math, json, re, collections\nassert math.gcd(4, 6) == 2") == PASSED
    assert run_program("assert 1 == 2, 'passed'") == "AssertionError"
    assert run_program("x ==") == "SyntaxError"
    assert run_program("raise SystemExit(0)") == "SystemExit"
    assert run_program("\x00") in ("SyntaxError", "ValueError")


@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("while True: pass", "timed out"),
        ("x = 'a' * (1 << 40)", "MemoryError"),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", "MemoryError"),
        ("import os\nos._exit(0)", "ended with exit code 0"),
        ("import sys\nprint('passed')\nsys.__stdout__.write('passed')\nsys.exit()", "SystemExit"),
        ("def f(): f()\nf()", "RecursionError"),
        ("import ctypes\nctypes.string_at(0)", "killed: signal 11"),
        ("raise type(open('/etc/passwd').read()[:9], (KeyError,), {})()", "KeyError"),
        ("class E(Exception): pass\nraise E", "Exception"),
        (FORGERY, "AssertionError"),
        ("import os\nfor fd in range(3, 60):\n  try:\n    os.write(fd, b'passed')\n  except OSError: pass\n1/0", None),
    ],
)
def test_a_program_that_misbehaves_fails(program, outcome):
    found = run_program(program, limits=FAST)
    assert found != PASSED
    assert outcome is None or found == outcome


def test_a_program_that_only_waits_is_killed():
    assert run_program("import time\ntime.sleep(60)", limits=ProgramLimits(wall_s=1.0)) == "timed out"


@pytest.mark.parametrize(
    "program",
    [
        # A bomb's first step, and no loop of it: this test must not hurt where the filter is gone.
        "import os\nos.fork()",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os\nos.posix_spawn('/bin/true', ['true'], {})",
        "import os\nos.kill(os.getppid(), 0)",
        "import threading\nthreading.Thread(target=print).start()",
        "import os\nos.system('true') == 0 or 1 / 0",
    ],
)
def test_a_program_starts_no_process_and_signals_none(program):
    assert run_program(program, limits=FAST) in ("PermissionError", "RuntimeError", "ZeroDivisionError")


def test_a_program_reaches_no_network():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}))"
        assert run_program(program, limits=FAST) in ("PermissionError", "OSError", "gaierror")
        assert run_program("import socket\nsocket.socket()", limits=FAST) == "PermissionError"


def test_a_program_changes_no_file(tmp_path):
    kept = tmp_path / "kept.txt"
    kept.write_text("kept")
    for attempt in (
        f"open({str(kept)!r}, 'w')",
        f"open({str(kept)!r}, 'a')",
        f"open({str(kept)!r}, 'r+')",
        f"open({str(tmp_path / 'new')!r}, 'x')",
        "open('here.txt', 'w')",
        f"import os\nos.remove({str(kept)!r})",
        f"import os\nos.rename({str(kept)!r}, {str(tmp_path / 'other')!r})",
        f"import os\nos.truncate({str(kept)!r}, 0)",
        f"import os\nos.chmod({str(kept)!r}, 0)",
        f"import os\nos.mkdir({str(tmp_path / 'folder')!r})",
        f"import shutil\nshutil.rmtree({str(tmp_path)!r})",
    ):
        assert run_program(attempt, limits=FAST) == "PermissionError", attempt
    assert run_program(f"assert open({str(kept)!r}).read() == 'kept'", limits=FAST) == PASSED
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    assert kept.read_text() == "kept"


def test_a_program_sees_nothing_of_our_environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    assert run_program("import os\nassert not {*os.environ} - {'LC_CTYPE'}, os.environ") == PASSED
    assert "OPENAI_API_KEY" in os.environ


def test_programs_run_beside_each_other():
    found = []
    threads = [threading.Thread(target=lambda: found.append(run_program("sum(range(1000))"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [PASSED] * 4


def test_where_programs_cannot_be_contained_none_is_run(monkeypatch, tmp_path):
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(ConfigError, match="on Linux on x86-64 only, not on linux on riscv64"):
        run_program("1")


def test_the_program_of_a_problem_is_its_function_with_its_tests():
    prompt = "def add(a, b):\n"
    completion = "    return a + b\n\n\ndef other():\n    1 / 0\n\n\nother()"
    test = "def check(candidate):\n    assert candidate(1, 2) == 3\n"
    program = program_of(prompt, completion, test=test, entry_point="add")
    assert "other" not in program
    assert run_program(program) == PASSED
    wrong = program_of(prompt, "    return a - b\n", test=test, entry_point="add")
    assert run_program(wrong) == "AssertionError"


@pytest.mark.parametrize("following", ["class A:", "def f():", "# Next", "if x:", "print(1)", "@cache", "```"])
def test_what_follows_a_function_is_cut_off(following):
    assert first_function(f"    return 1\n{following}\n    x") == "    return 1"
    assert first_function(f"    return 1\n    {following}\n") == f"    return 1\n    {following}\n"
