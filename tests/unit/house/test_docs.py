"""What the documents say is true: commands are parsed by their jobs, links lead somewhere, the keys are the code's.

PHF_UPDATE_DOCS=1 writes the list of keys anew.
"""

import os
import re
import shlex
import types
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from commands import job_words, problem_of
from guide import write_scorer_of_the_guide
from manifests import render, versions
from places import ROOT
from pydantic import BaseModel

from jobs.commands import COMMANDS, help_text, module_of
from jobs.stages import stages_of
from phf_ray.config import AnnotatorPool, Config, PipelineConfig, Quantile, parse_config, parse_section
from phf_ray.errors import ConfigError
from phf_ray.judging import load_pool
from phf_ray.scorers.base import Scorer
from phf_ray.scorers.build import build_scorer
from serve.settings import parse_args

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DELETE = "kubectl delete raycluster -l ray.io/originated-from-crd=RayService,"
OTHER_PROGRAMS = {"pip", "source", "export", "curl", "for", "kind", "$EDITOR"}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """One per line that is not a comment; continued lines joined."""
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    lines = [re.sub(r"\s+# .*", "", line).strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def all_commands() -> list[tuple[str, str]]:
    return [(page.name, command) for page in PAGES for command in commands(page)]


def problem_of_command(command: str) -> str | None:
    """None: nothing is wrong that can be told without running it."""
    if " && " in command:
        return next(filter(None, map(problem_of_command, command.split(" && "))), None)
    program = shlex.split(command)[0]
    if command.startswith("ray job submit "):
        options, separator, inner = command.partition(" -- ")
        return _submission_problem(shlex.split(options)[3:]) or (problem_of_command(inner) if separator else "no --")
    started = job_words(command)
    if started is not None:
        module, *arguments = started[1]
        return problem_of(module, arguments)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return next((f"make has no {word}" for word in command.split()[1:] if word not in targets), None)
    if program == "docker":
        return None if "TORCH=cuda" in command or "--build-arg" not in command else f"unknown argument: {command}"
    if program in CHECKS:
        return CHECKS[program](shlex.split(command))
    return None if program in OTHER_PROGRAMS or "=" in program else f"{program} is not known here"


def _submission_problem(words: list[str]) -> str | None:
    options = dict(zip(words[::2], words[1::2], strict=True))
    if options.keys() - {"--runtime-env", "--working-dir", "--address"}:
        return f"unknown options: {options}"
    return None if (ROOT / options["--runtime-env"]).is_file() else f"there is no {options['--runtime-env']}"


def _kubectl_problem(words: list[str]) -> str | None:
    if words[1] == "apply":
        folder = ROOT / words[words.index("-k") + 1]
        if not (folder / "kustomization.yaml").is_file():
            return f"{folder} is no folder of kustomize"
        if "-l" in words:
            label, _, stage = words[words.index("-l") + 1].partition("=")
            texts = [path.read_text() for path in (ROOT / "k8s" / "base").glob("*.yaml")]
            if not any(f"    {label}: {stage}\n" in text for text in texts):
                return f"nothing is labelled {label}={stage}"
    found = re.findall(r"\b(rayjob|rayservice|service)/([\w-]+)", " ".join(words))
    if words[1:3] == ["delete", "raycluster"]:
        # By the labels that the operator gives a cluster, whose name it makes up.
        labels = dict(label.split("=") for label in words[words.index("-l") + 1].split(","))
        if labels.keys() != {"ray.io/originated-from-crd", "ray.io/originated-from-cr-name"}:
            return f"unknown labels: {labels}"
        kind, name = labels["ray.io/originated-from-crd"], labels["ray.io/originated-from-cr-name"]
        found.append((kind.lower(), name))
    for kind, name in found:
        if name not in _names_of(kind):
            return f"there is no {kind} {name}"
    return None


def _serve_problem(words: list[str]) -> str | None:
    """`serve run FILE`: the file is there, and our builder takes the `args` of each of its applications."""
    if len(words) != 3 or words[1] != "run":
        return f"unknown: {words}"
    if not (ROOT / words[2]).is_file():
        return f"there is no {words[2]}"
    for application in yaml.safe_load((ROOT / words[2]).read_text())["applications"]:
        if application["import_path"] != "serve.app:build":
            return f"{words[2]} builds {application['import_path']}"
        try:
            parse_args(application["args"])
        except ConfigError as error:
            return f"{words[2]}: {error}"
    return None


def _images_problem(words: list[str]) -> str | None:
    """An image that is left out would be looked for where nobody put it."""
    if words[:4] != ["kustomize", "edit", "set", "image"]:
        return f"unknown: {words}"
    texts = [path.read_text() for path in (ROOT / "k8s" / "base").glob("*.yaml")]
    ours = {name for text in texts for name in re.findall(r"^ +image: ([\w-]+):", text, re.MULTILINE)}
    given = {word.partition("=")[0] for word in words[4:]}
    return None if given == ours else f"images {sorted(given)}, the manifests have {sorted(ours)}"


def _names_of(kind: str) -> list[str]:
    if kind == "service":
        # Those that the operator makes.
        served = [f"{name}-serve-svc" for name in _names_of("rayservice")]
        return served + [f"{name}-head-svc" for name in _names_of("rayservice") + _names_of("raycluster")]
    return [
        one["metadata"]["name"]
        for path in (ROOT / "k8s" / "base").glob("*.yaml")
        for one in yaml.safe_load_all(path.read_text())
        if isinstance(one, dict) and one["kind"].lower() == kind
    ]


def _phf_problem(words: list[str]) -> str | None:
    """Of `phf --help` and the like; its commands are checked as jobs."""
    return None if " ".join(words) in help_text() else f"unknown: {words}"


CHECKS = {"kubectl": _kubectl_problem, "kustomize": _images_problem, "phf": _phf_problem, "serve": _serve_problem}


@pytest.mark.parametrize(("page", "command"), all_commands())
def test_a_command_is_one_that_works(page, command):
    assert problem_of_command(command) is None


@pytest.mark.parametrize(
    "command",
    [
        "python -m jobs.train --task configs/pep8/pretrain.yml",
        "python -m jobs.score_corpus --task configs/pep8/pretrain.yml --inputs a --output b",
        "python -m jobs.score_corpus --task configs/pep8/pretain.yml --input a --output b",
        "python -m jobs.serve --scorers pep9",
        "python -m benchmarks.scale --machines 1 8 64",
        "python -m benchmarks.scales",
        "ray job submit --runtime-env configs/runtime.yaml --working-dir . -- python -m jobs.demo",
        "ray job submit --runtime-env configs/runtime_env.yaml --working-dir . -- python -m jobs.demo --outputs x",
        "make dmeo",
        "kubectl apply -k k8s/overlays/gpus",
        "kubectl apply -k k8s/overlays/gpu -l app.kubernetes.io/component=training",
        "kubectl wait rayjob/training",
        "kubectl delete raycluster -l ray.io/originated-from-crd=RayService,ray.io/originated-from-cr-name=phf-serve",
        "kubectl delete raycluster -l ray.io/cluster=phf",
        "kubectl port-forward service/phf-submit-svc 8265:8265",
        "kustomize edit set image phf-ray=registry.example/phf-ray:0.1.0-ray2.60.0",
        "serve run configs/serve/typo.yaml",
        "serve start configs/serve/demo.yaml",
        "pythn -m jobs.demo",
        "phf --confgs",
        "phf score-corpsu --task pep8 --input a --output b",
        "phf score-corpus --task pep9 --input a --output b",
        "phf train-lm --task pep8 --method conditionl --run-name a --storage-path b",
    ],
)
def test_a_mistyped_command_is_found(command):
    assert problem_of_command(command) is not None


@pytest.mark.parametrize(("old", "new"), [("num_cpus", "num_cpu"), ("serve.app:build", "serve.app:bild")])
def test_a_mistyped_file_of_what_is_served_is_found(old, new, tmp_path):
    file = tmp_path / "demo.yaml"
    text = (ROOT / "configs" / "serve" / "demo.yaml").read_text()
    file.write_text(text)
    assert problem_of_command(f"serve run {shlex.quote(str(file))}") is None
    assert old in text
    file.write_text(text.replace(old, new))
    assert new in str(problem_of_command(f"serve run {shlex.quote(str(file))}"))


def test_every_job_is_documented():
    modules = {module_of(command) for command in COMMANDS} - {"jobs.make_prompts", "jobs.demo"}
    shown = {started[1][0] for _, command in all_commands() if (started := job_words(command.rpartition(" -- ")[2]))}
    assert modules - shown == set()


def test_the_image_is_the_one_of_the_manifests():
    project, ray = versions()
    found = [tag for page in PAGES for tag in re.findall(r"phf-ray(?:-cuda)?:([\w.-]+)", page.read_text("utf-8"))]
    assert found
    assert set(found) == {f"{project}-ray{ray}"}


def test_every_stage_of_the_manifests_is_documented():
    page = (ROOT / "docs" / "operate.md").read_text()
    texts = [path.read_text() for path in (ROOT / "k8s" / "base").glob("*.yaml")]
    stages = {name for text in texts for name in re.findall(r"^    app.kubernetes.io/component: (\S+)$", text, re.M)}
    assert stages >= {"score", "serve", "setup"}
    assert {stage for stage in stages if f"app.kubernetes.io/component={stage}" not in page} == set()


@pytest.mark.parametrize("overlay", ["cpu-smoke", "gpu", "production"])
def test_it_is_documented_how_pods_are_replaced_that_the_operator_leaves_as_they_are(overlay):
    services = [one for one in render(ROOT / "k8s" / "overlays" / overlay) if one["kind"] == "RayService"]
    deletes = [command for page, command in all_commands() if page == "operate.md" and command.startswith(DELETE)]
    assert len(services) == 2
    for service in services:
        # With this strategy a changed template of an existing cluster is ignored, without an event.
        assert service["spec"]["upgradeStrategy"] == {"type": "None"}
        assert [command for command in deletes if command.endswith(f"cr-name={service['metadata']['name']}")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_page_is_reached_from_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"docs/{page.name}" not in text] == []


def test_examples_of_configuration_are_configuration(monkeypatch):
    for page in PAGES:
        for block in blocks(page, "yaml"):
            values = yaml.safe_load(block)
            if page in (JUDGE, ANNOTATE):
                load_pool(values)
            elif page == PIPELINE:
                stages_of(parse_section(PipelineConfig, values | {"values": {"texts": "src"}}, page.name), output="out")
            else:
                parse_config(values)


def test_the_scorer_of_the_guide_works(tmp_path, monkeypatch):
    class_name = write_scorer_of_the_guide(tmp_path)
    (task,) = [block for block in blocks(ROOT / "docs" / "extend.md", "yaml") if "scorers:" in block]
    (config,) = parse_config(yaml.safe_load(task)).scoring.scorers
    monkeypatch.syspath_prepend(str(tmp_path))
    assert build_scorer(config).identity().settings == {"min_letters": 5}
    assert config["class_name"] == class_name
    scorer = build_scorer({"class_name": class_name})
    assert scorer.score_texts(["LOUD", "Loud", "", "1!"]) == [1.0, 0.25, None, None]
    assert scorer.score_all(["1!"])[0].error == "too_short: 0 letters"
    assert scorer.identity().settings == {"min_letters": 3}
    assert scorer.identity().class_name == "my_scorers:ShoutingScorer"


def test_the_guide_names_every_attribute_of_a_scorer_and_files_that_are_there():
    page = (ROOT / "docs" / "extend.md").read_text()
    public = {name for name in Scorer.__annotations__ if not name.startswith("_")}
    assert {name for name in public if f"`{name}`" not in page} == set()
    paths = re.findall(r"`((?:phf_ray|tests)/[\w/.]+)`", page)
    assert len(paths) > 5
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_scorer_has_a_line():
    from phf_ray.scorers.build import SCORERS

    page = (ROOT / "docs" / "score.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == sorted(SCORERS, key=list(SCORERS).index)


# --- The list of keys -------------------------------------------------------------------------------------------------

CONFIGURE, JUDGE, ANNOTATE, PIPELINE = (
    ROOT / "docs" / f"{name}.md" for name in ("configure", "judge", "annotate", "pipeline")
)
NAMED = ("objective", "algorithm")
"""Sections of which `name` chooses one."""
MARK = "<!-- Made by tests/unit/house/test_docs.py with PHF_UPDATE_DOCS=1. -->\n"


def keys(section: type[BaseModel], path: str = "") -> list[tuple[str, str, str]]:
    """(key, default, what it says) of a section and of those below it."""
    found = []
    for name, field in section.model_fields.items():
        inner = sections_in(field.annotation)
        described = " ".join((field.description or "").split())
        if (
            not isinstance(field.annotation, types.UnionType)
            and len(inner) == 1
            and get_origin(field.annotation) is None
        ):
            found += keys(inner[0], f"{path}{name}.")
            continue
        found.append((f"{path}{name}", shown(field.get_default(call_default_factory=True)), described))
        for one in inner:
            if one is not Quantile:
                label = one.model_fields["name"].annotation if name in NAMED else None
                suffix = f" ({get_args(label)[0]})" if label is not None else of_many(field.annotation)
                found += [
                    (f"{path}{name}{suffix}.{key}", default, text)
                    for key, default, text in keys(one)
                    if not (name in NAMED and key == "name")
                ]
    return found


def of_many(annotation: Any) -> str:
    """What stands between the key and those of each of its sections."""
    return {tuple: "[]", dict: ".NAME"}.get(get_origin(annotation), "")


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [one for part in get_args(annotation) for one in sections_in(part)]


def shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
    if repr(value) == "PydanticUndefined":
        return "required"
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix('...' + chr(10)).strip()}`"


def table(section: type[BaseModel]) -> str:
    lines = ["| key | default | |", "|---|---|---|"]
    for key, default, text in keys(section):
        lines.append(f"| `{key}` | {default} | {text} |".replace(" |  |", " | |"))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(("page", "section"), [(CONFIGURE, Config), (JUDGE, AnnotatorPool)])
def test_the_list_of_keys_is_that_of_the_code(page, section):
    text = page.read_text(encoding="utf-8")
    head, mark, _ = text.partition(MARK)
    assert mark
    if os.environ.get("PHF_UPDATE_DOCS") == "1":
        page.write_text(head + mark + "\n" + table(section), encoding="utf-8")
    assert page.read_text(encoding="utf-8") == head + mark + "\n" + table(section), "run this with PHF_UPDATE_DOCS=1"
