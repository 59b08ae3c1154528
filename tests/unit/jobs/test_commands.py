"""The command `phf`: what it lists, how fast, what it says to a mistyped name, and that its examples work."""

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from commands import problem_of
from places import ROOT

from jobs import workers
from jobs.cli import command_of
from jobs.commands import COMMANDS, module_of
from phf_ray import __version__

FLOW = [
    "fetch-models",
    "score-corpus",
    "prepare-feedback",
    "build-blocks",
    "train-lm",
    "evaluate-lm",
    "red-team",
    "serve",
    "demo",
]


def phf(*words, cwd=ROOT):
    """As the installed script does it: the path of this process, not the current directory."""
    command = command_of(words[0], words[1:]) if words else command_of("", [])[:-1]
    command[2] = command[2].replace("import sys;", "import sys; sys.argv[0] = '/somewhere/bin/phf';")
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def test_help_lists_every_job_in_the_order_of_the_flow_with_a_line_each():
    done = phf("--help")
    assert (done.returncode, done.stderr) == (0, "")
    listed = re.findall(r"^  ([a-z-]+)  +\S.*$", done.stdout, re.MULTILINE)
    assert listed == list(COMMANDS)
    assert [name for name in listed if name in FLOW] == FLOW
    runnable = {path.stem for path in (ROOT / "jobs").glob("*.py") if "__main__" in path.read_text()}
    assert {module_of(name) for name in listed} == {f"jobs.{name}" for name in runnable}
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_help_loads_nothing_of_the_jobs():
    code = (
        "import sys, atexit; sys.argv = ['phf', '--help']; "
        "atexit.register(lambda: print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)); "
        "from jobs.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    loaded = set(re.findall(r"'(\w+)'", done.stderr))
    assert "jobs" in loaded
    assert loaded.isdisjoint({"torch", "ray", "transformers", "pyarrow", "numpy", "pydantic", "yaml", "fsspec"})


HEAVY = {"torch", "ray", "matplotlib", "transformers", "spacy", "scipy", "datasets", "dateparser", "pandas"}
"""Libraries that take from a tenth of a second to seconds to load."""


def test_arguments_are_read_before_any_heavy_library_is_loaded():
    """Of every job, its help and the error of a mistyped option: in one process, so that the first culprit is named."""
    code = f"""
import contextlib, importlib, io, sys
from jobs.commands import COMMANDS, module_of
for command in COMMANDS:
    job = importlib.import_module(module_of(command))
    for arguments, code in ((["--help"], 0), (["--no-such-option"], 2)):
        silent = io.StringIO()
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            try:
                job.main(arguments)
            except SystemExit as end:
                assert end.code == code, (command, arguments, end.code)
            else:
                raise AssertionError((command, arguments))
        loaded = {sorted(HEAVY)!r}
        loaded = [name for name in loaded if name in sys.modules]
        assert not loaded, (command, arguments, loaded)
print(len(COMMANDS))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, str(len(COMMANDS))), done.stderr


def test_without_a_command_the_help_goes_to_standard_error():
    done = phf()
    assert (done.returncode, done.stdout) == (2, "")
    assert "score-corpus" in done.stderr


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("score-corpsu", "did you mean `phf score-corpus`?"),
        ("train_lm", "did you mean `phf train-lm`?"),
        ("zzz", "`phf --help` lists them"),
        ("--hepl", "`phf --help` lists them"),
    ],
)
def test_an_unknown_command_is_answered_in_one_line(word, expected):
    done = phf(word)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert repr(word) in line
    assert expected in line


def test_version_and_folder_of_the_configurations(tmp_path):
    assert phf("--version").stdout == f"phf-ray {__version__}\n"
    folder = Path(phf("--configs", cwd=tmp_path).stdout.rstrip("\n"))
    assert (folder / "pep8" / "pretrain.yml").is_file()


def test_a_job_runs_as_a_command_with_its_own_exit_code(tmp_path):
    words = ["train-lm", "--task", "demo", "--run-name", "a", "--storage-path", "runs"]
    done = phf(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert "dataset.datasets is empty" in done.stderr
    usage = phf("train-lm", "--tsk", "demo", cwd=tmp_path)
    assert usage.returncode == 2
    assert "phf train-lm: error:" in usage.stderr


def test_a_job_that_is_a_command_logs_by_its_own_name(tmp_path, monkeypatch):
    monkeypatch.setenv("PHF_LOG_FORMAT", "json")
    done = phf("serve", "--host", "0.0.0.0", "--port", "0", "--scorers", "pep8", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '"stage": "serve"' in done.stderr


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_of_a_job_ends_with_examples_that_work(command, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/phf", command, "--help"])
    parser = import_module(module_of(command)).parser()
    assert parser.prog == f"phf {command}"
    _, _, shown = parser.format_help().partition("\nexamples:\n")
    examples = [shlex.split(line) for line in shown.splitlines()]
    assert len(examples) in (2, 3)
    for example in examples:
        assert example[:2] == ["phf", command]
        assert problem_of(module_of(command), example[2:]) is None
    monkeypatch.setattr(sys, "argv", [f"/somewhere/jobs/{command}.py"])
    assert import_module(module_of(command)).parser().prog == f"python -m {module_of(command)}"


def test_another_command_is_started_with_the_same_code_beside_a_folder_of_its_name(tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").write_text("raise ImportError('not ours')\n")
    done = subprocess.run(command_of("--version", []), cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"phf-ray {__version__}\n")


@pytest.mark.parametrize(("name", "hidden"), [("jobs", True), ("serve.py", True), ("phf_ray", True), ("job", False)])
def test_folders_with_names_of_ours_are_noticed(tmp_path, monkeypatch, name, hidden):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert (workers.runtime_env() == {"worker_process_setup_hook": "jobs.workers.set_up"}) == hidden
    monkeypatch.chdir(ROOT)
    assert workers.runtime_env() == {}
