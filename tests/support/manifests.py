"""Kustomize folders rendered by kubectl, and their objects held against the schemas of Kubernetes."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from places import ROOT

K8S = ROOT / "k8s"
KUBERNETES = "1.32"
Manifest = dict[str, Any]

STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}


def only(*required: str, **fields: Any) -> dict[str, Any]:
    """A JSON schema: an object with these fields and no others. A type's name stands for the type."""
    properties = {name: {"type": one} if isinstance(one, str) else one for name, one in fields.items()}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


POD = {"type": "object"}  # held against the schema of Kubernetes apart
GROUP = {"template": POD, "rayStartParams": STRINGS}
COUNTS = {"replicas": "integer", "minReplicas": "integer", "maxReplicas": "integer", "groupName": "string"}
CLUSTER = only(
    "headGroupSpec",
    rayVersion="string",
    enableInTreeAutoscaling="boolean",
    autoscalerOptions=only(version={"enum": ["v1", "v2"]}, idleTimeoutSeconds="integer"),
    authOptions=only(mode={"enum": ["disabled", "token"]}, secretName="string"),
    gcsFaultToleranceOptions=only("redisAddress", redisAddress="string", redisPassword="object"),
    headGroupSpec=only(*GROUP, **GROUP),
    workerGroupSpecs={"type": "array", "items": only(*GROUP, *COUNTS, **GROUP, **COUNTS)},
)
JOB = only(
    "entrypoint",
    "rayClusterSpec",
    entrypoint="string",
    backoffLimit="integer",
    metadata=STRINGS,
    rayClusterSpec=CLUSTER,
    shutdownAfterJobFinishes="boolean",
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    submitterConfig=only(backoffLimit="integer"),
    submitterPodTemplate=POD,
    ttlSecondsAfterFinished="integer",
)
SERVICE = only(
    "serveConfigV2",
    "rayClusterConfig",
    excludeHeadPodFromServeSvc="boolean",
    rayClusterConfig=CLUSTER,
    rayClusterDeletionDelaySeconds="integer",
    serveConfigV2="string",
    upgradeStrategy=only("type", type={"enum": ["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]}),
)
# No package carries the schemas of KubeRay 1.7 and Kueue: this is what our manifests use of them. A field beyond these
# is a typing error until it is added here.
CUSTOM = {
    ("ray.io/v1", "RayCluster"): CLUSTER,
    ("ray.io/v1", "RayJob"): JOB,
    ("ray.io/v1", "RayService"): SERVICE,
    ("kueue.x-k8s.io/v1beta1", "LocalQueue"): only("clusterQueue", clusterQueue="string"),
}


def render(folder: Path) -> list[Manifest]:
    """The objects that `kubectl apply -k folder` would send. `make install` brings a kubectl of its own."""
    kubectl = shutil.which("kubectl", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert kubectl is not None, "there is no kubectl; `make install` brings one"
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def structure_problems(one: Manifest) -> Iterator[str]:
    """Fields that its kind does not have, lacks, or has with values of another type."""
    custom = CUSTOM.get((one["apiVersion"], one["kind"]))
    if custom is None:
        yield from _schema_problems(one)
        return
    found = list(jsonschema.Draft202012Validator(custom).iter_errors(one["spec"]))
    yield from (f"{error.json_path}: {error.message}" for error in found)
    for where, template in [] if found else templates_of(one):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {}, **template}
        yield from (f"{where}: {problem}" for problem in _schema_problems(pod))


def _schema_problems(one: Manifest) -> tuple[str, ...]:
    return _schema_problems_of_text(json.dumps(one, sort_keys=True))


# Most pods are the same in all jobs, and a schema takes half a second to load.
@cache
def _schema_problems_of_text(text: str) -> tuple[str, ...]:
    one = json.loads(text)
    try:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return (f"{'.'.join(map(str, error.path))}: {error.message}",)
    except kubernetes_validate.SchemaNotFoundError as error:
        return (f"{one['apiVersion']} has no kind {one['kind']}: {error}",)
    return ()


def versions() -> tuple[str, str]:
    """Of the project and of Ray."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    ray = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert ray is not None
    return project, ray[1]


def templates_of(one: Manifest) -> list[tuple[str, Manifest]]:
    """Pod templates by where they are."""
    spec = one.get("spec", {})
    found = [("submitter", spec["submitterPodTemplate"])] if "submitterPodTemplate" in spec else []
    if one["kind"] == "Deployment":
        return [("pod", spec["template"])]
    cluster = cluster_of(one)
    if cluster is not None:
        found.append(("head", cluster["headGroupSpec"]["template"]))
        found += [(group["groupName"], group["template"]) for group in cluster.get("workerGroupSpecs", [])]
    return found


def cluster_of(one: Manifest) -> Manifest | None:
    spec = one.get("spec", {})
    places = {"RayJob": spec.get("rayClusterSpec"), "RayService": spec.get("rayClusterConfig"), "RayCluster": spec}
    return places.get(one["kind"])


def names_of(objects: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {one["metadata"]["name"]: one for one in objects if one["kind"] == kind}
