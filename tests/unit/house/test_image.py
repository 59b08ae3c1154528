"""The Dockerfile, as far as it can be judged without an engine: what it copies, locks, and lets run."""

import fnmatch
import json
import re
import tomllib

import pytest
from commands import APP
from manifests import versions
from places import ROOT


def instructions(text):
    """(name, arguments) with continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def is_sent(source, ignored):
    lines = [line for line in ignored.splitlines() if line and not line.startswith("#")]
    sent = True
    for line in lines:
        if fnmatch.fnmatch(source, line.removeprefix("!")):
            sent = line.startswith("!")
    return sent


@pytest.fixture(scope="module")
def dockerfile():
    return (ROOT / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def ignored():
    return (ROOT / ".dockerignore").read_text()


def words_of(dockerfile, wanted):
    return [words for name, words in instructions(dockerfile) if name == wanted]


def test_what_is_copied_is_there_and_sent_to_the_engine(dockerfile, ignored):
    copied = [source for words in words_of(dockerfile, "COPY") for source in words.split()[:-1]]
    assert copied
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert [source for source in copied if not is_sent(source, ignored)] == []
    assert not is_sent("tests", ignored)


def test_jobs_run_as_an_ordinary_user_below_the_folder_that_the_manifests_name(dockerfile):
    assert words_of(dockerfile, "USER")[-1] == "1000:1000"
    assert f"{words_of(dockerfile, 'WORKDIR')[-1]}/" == APP


def test_the_programs_of_kuberay_s_probes_are_installed(dockerfile):
    (installed,) = (words.split() for words in words_of(dockerfile, "RUN") if "apt-get install" in words)
    assert {"bash", "wget"} <= {*installed}


def test_every_package_is_locked_and_torch_for_cpus_comes_from_its_own_index(dockerfile):
    assert any("PIP_CONSTRAINT=/app/constraints.txt" in words for words in words_of(dockerfile, "ENV"))
    installs = [words for words in words_of(dockerfile, "RUN") if "pip install" in words]
    assert [words for words in installs if "--no-deps" not in words and "-c constraints-cpu.txt" not in words] == []
    (torch,) = (words for words in installs if " torch" in words)
    assert re.search(r"\scpu\) PIP_ARGS=\S+ https://download\.pytorch\.org/whl/cpu", torch)


def test_no_secret_is_built_in(dockerfile):
    secret = re.compile(r"(?i)(token|secret|password|api_?key)\w*\s*=")
    assert [words for _, words in instructions(dockerfile) if secret.search(words)] == []


def test_all_packages_configurations_and_locks_are_copied(dockerfile):
    values = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (found,) = re.findall(r"include=(\[.*?\])", (ROOT / "setup.py").read_text())
    packages = {name.rstrip("*") for name in json.loads(found)}
    copied = {
        words.split()[0] for name, words in instructions(dockerfile) if name == "COPY" and len(words.split()) == 2
    }
    assert packages | {"configs"} == copied
    # What the build reads besides.
    for name in ("setup.py", values["project"]["readme"], *values["project"]["license-files"]):
        assert any(name in words.split() for kind, words in instructions(dockerfile) if kind == "COPY")


def test_the_tags_that_are_shown_are_those_of_the_manifests(dockerfile):
    project, ray = versions()
    tags = re.findall(r"docker build -t \S+:(\S+)", dockerfile)
    assert tags == [f"{project}-ray{ray}"] * 2


def test_python_is_one_that_the_project_takes_and_the_smoke_overlay_reads_the_library_of(dockerfile):
    (version,) = re.findall(r"^ARG PYTHON=(\S+)$", dockerfile, re.MULTILINE)
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert tuple(map(int, version.split("."))) >= tuple(map(int, requires.removeprefix(">=").split(".")))
    entrypoint = (ROOT / "k8s" / "overlays" / "cpu-smoke" / "score.yaml").read_text()
    assert f"/usr/local/lib/python{version}/" in entrypoint


def test_every_dependency_is_locked():
    locked = {
        re.sub(r"[-_.]+", "-", line.partition("==")[0].lower())
        for name in ("constraints.txt", "constraints-cpu.txt")
        for line in (ROOT / name).read_text().splitlines()
        if "==" in line
    }
    for dependency in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        name = re.match(r"[\w.-]+", dependency)[0]
        assert re.sub(r"[-_.]+", "-", name.lower()) in locked, dependency
