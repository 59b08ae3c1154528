"""The Dockerfile, as far as it can be judged without an engine: what it copies, locks, and lets run."""

import fnmatch
import re
import tomllib

import pytest
from manifests import versions
from places import ROOT


def instructions(text):
    """(name, arguments) with continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def problems_of(text, *, ignored):
    """Sentences; empty if nothing is wrong."""
    found = instructions(text)
    copied = [source for name, words in found if name == "COPY" for source in words.split()[:-1]]
    yield from (f"COPY {source}: not in the repository" for source in copied if not (ROOT / source).exists())
    yield from (f"COPY {source}: left out by .dockerignore" for source in copied if not is_sent(source, ignored))
    users = [words for name, words in found if name == "USER"]
    if not users or users[-1].partition(":")[0] in ("0", "root"):
        yield "runs as root"
    runs = [words for name, words in found if name == "RUN"]
    packages = " ".join(words for words in runs if "apt-get install" in words).split()
    yield from (f"{program} is not installed" for program in ("bash", "wget") if program not in packages)
    locked = any(name == "ENV" and "PIP_CONSTRAINT=/app/constraints.txt" in words for name, words in found)
    for words in (words for words in runs if "pip install" in words):
        if not locked or ("--no-deps" not in words and "-c constraints-cpu.txt" not in words):
            yield f"takes any version: {words}"
    torch = next((words for words in runs if "pip install" in words and " torch" in words), "")
    if not re.search(r"\scpu\) PIP_ARGS=\S+ https://download\.pytorch\.org/whl/cpu", torch):
        yield f"TORCH=cpu takes PyPI's build of torch, with CUDA: {torch}"
    for name, words in found:
        if re.search(r"(?i)(token|secret|password|api_?key)\w*\s*=", words):
            yield f"{name} holds a secret: {words}"
    if ("WORKDIR", "/app") not in found:
        yield "the manifests take the configurations from /app"


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


def test_nothing_is_wrong_with_the_image(dockerfile, ignored):
    assert list(problems_of(dockerfile, ignored=ignored)) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("COPY jobs jobs", "COPY job jobs", "COPY job: not in the repository"),
        ("COPY jobs jobs", "COPY tests jobs", "left out by .dockerignore"),
        ("USER 1000:1000", "", "runs as root"),
        ("USER 1000:1000", "USER root", "runs as root"),
        ("bash wget", "bash", "wget is not installed"),
        ("bash wget", "wget", "bash is not installed"),
        ("-c constraints-cpu.txt -r", "-r", "takes any version"),
        ("--extra-index-url https://download.pytorch.org/whl/cpu}", "}", "takes PyPI's build of torch"),
        ("cpu) PIP_ARGS=", "cpu) PIP_OPTIONS=", "takes PyPI's build of torch"),
        ("PIP_CONSTRAINT=/app/constraints.txt", "PIP_CONSTRAINT=", "takes any version"),
        ("ENV HOME=", "ENV HF_TOKEN=hf_x HOME=", "holds a secret"),
        ("WORKDIR /app", "WORKDIR /src", "take the configurations from /app"),
    ],
)
def test_a_planted_mistake_is_found(dockerfile, ignored, old, new, expected):
    assert old in dockerfile
    assert any(expected in problem for problem in problems_of(dockerfile.replace(old, new, 1), ignored=ignored))


def test_all_packages_configurations_and_locks_are_copied(dockerfile):
    values = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in values["tool"]["setuptools"]["packages"]["find"]["include"]}
    copied = {
        words.split()[0] for name, words in instructions(dockerfile) if name == "COPY" and len(words.split()) == 2
    }
    assert packages | {"configs"} == copied
    # What the build reads besides.
    for name in (values["project"]["readme"], *values["project"]["license-files"]):
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
