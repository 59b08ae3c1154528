"""All that can be told of manifests without a cluster: what they name exists, and they agree with our code."""

import copy
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from commands import APP, job_words, pipeline_stages, problem_of
from manifests import Manifest, cluster_of, names_of, structure_problems, templates_of, versions
from places import ROOT

from jobs import pipeline
from phf_ray.errors import ConfigError
from phf_ray.scorers.build import SCORERS
from serve.settings import parse_args


def problems_of(objects: list[Manifest], *, secrets: list[Manifest]) -> list[str]:
    """Sentences; empty if nothing is wrong. `secrets`: rendered from k8s/secrets, which is applied apart."""
    found: list[str] = []
    for one in objects:
        name = f"{one['kind']} {one['metadata']['name']}"
        found += [f"{name}: {problem}" for problem in structure_problems(one)]
        if found:
            continue
        found += [f"{name}: {problem}" for problem in _labels(one)]
        for problem in [*_pods(one, [*objects, *secrets]), *_cluster(one), *_job(one), *_service(one)]:
            found.append(f"{name}: {problem}")
    between = (_head_services, _ways_out, _flow)
    return found or [*_environment_names(objects, secrets), *(text for check in between for text in check(objects))]


def _labels(one: Manifest) -> Iterator[str]:
    if one["kind"] == "Secret":
        return
    labels = one["metadata"].get("labels", {})
    if labels.get("app.kubernetes.io/part-of") != "phf-ray" or "app.kubernetes.io/component" not in labels:
        yield "has no labels app.kubernetes.io/part-of and component, by which it is applied"


def _pods(one: Manifest, objects: list[Manifest]) -> Iterator[str]:
    for where, template in templates_of(one):
        spec = template["spec"]
        for problem in [*_pod_rights(spec, objects), *_pod_volumes(spec, objects)]:
            yield f"{where}: {problem}"
        for container in spec["containers"]:
            yield from (f"{where}: {problem}" for problem in _references(container, objects))
            yield from (f"{where}: {problem}" for problem in _image(container["image"]))
        if template.get("metadata", {}).get("labels", {}).get("app.kubernetes.io/part-of") != "phf-ray":
            yield f"{where}: without the label part-of a NetworkPolicy does not know the pod"


def _pod_rights(spec: Manifest, objects: list[Manifest]) -> Iterator[str]:
    if spec.get("serviceAccountName") not in names_of(objects, "ServiceAccount"):
        yield f"there is no ServiceAccount {spec.get('serviceAccountName')}"
    security = spec.get("securityContext", {})
    if not security.get("runAsNonRoot") or not security.get("runAsUser"):
        yield "may run as root"
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "has no seccomp profile"
    for container in spec["containers"]:
        security = container["securityContext"]
        if security.get("allowPrivilegeEscalation") is not False or security.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{container['name']} may gain privileges"
        if container["resources"].keys() != {"requests", "limits"}:
            yield f"{container['name']} has no requests or no limits"


def _pod_volumes(spec: Manifest, objects: list[Manifest]) -> Iterator[str]:
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    for volume in volumes.values():
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim is not None and claim not in names_of(objects, "PersistentVolumeClaim"):
            yield f"there is no PersistentVolumeClaim {claim}"
    for container in spec["containers"]:
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"there is no volume {mount['name']}"


def _references(container: Manifest, objects: list[Manifest]) -> Iterator[str]:
    maps, secrets = names_of(objects, "ConfigMap"), names_of(objects, "Secret")
    for source in container.get("envFrom", []):
        for field, known in (("configMapRef", maps), ("secretRef", secrets)):
            if field in source and source[field]["name"] not in known:
                yield f"there is no {source[field]['name']} to take the environment from"
    for variable in container.get("env", []):
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        if reference is not None and reference["key"] not in secrets.get(reference["name"], {}).get("data", {}):
            yield f"{variable['name']}: no Secret {reference['name']} has {reference['key']}"


def _image(image: str) -> Iterator[str]:
    project, ray = versions()
    ours = {f"phf-ray:{project}-ray{ray}", f"phf-ray-cuda:{project}-ray{ray}"}
    if image not in ours and not re.fullmatch(r"redis:\d+\.\d+", image):
        yield f"image {image} is not one of {', '.join(sorted(ours))}"


def _cluster(one: Manifest) -> Iterator[str]:
    cluster = cluster_of(one)
    if cluster is None:
        return
    if cluster.get("rayVersion") != versions()[1]:
        yield f"rayVersion {cluster.get('rayVersion')} is not the {versions()[1]} of constraints.txt"
    if cluster.get("authOptions") != {"mode": "token", "secretName": "phf-ray-token"}:
        yield "the cluster asks for no token"
    if cluster["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield "work may be placed on the head"
    if ("autoscalerOptions" in cluster) != cluster.get("enableInTreeAutoscaling", False):
        yield "options of the autoscaler, and enableInTreeAutoscaling, belong together"
    for group in cluster["workerGroupSpecs"]:
        yield from (f"{group['groupName']}: {problem}" for problem in _group(group))


def _group(group: Manifest) -> Iterator[str]:
    if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
        yield f"{group['replicas']} replicas are not between {group['minReplicas']} and {group['maxReplicas']}"
    (container,) = group["template"]["spec"]["containers"]
    gpus = container["resources"]["limits"].get("nvidia.com/gpu")
    if group["rayStartParams"].get("num-gpus") != gpus:
        yield f"num-gpus {group['rayStartParams'].get('num-gpus')} is not the limit of {gpus} GPUs"
    if gpus is None:
        return
    if not any(one.get("key") == "nvidia.com/gpu" for one in group["template"]["spec"].get("tolerations", [])):
        yield "its pods do not tolerate the taint of GPU nodes"
    if not container["image"].startswith("phf-ray-cuda:"):
        yield f"{container['image']} is no image for GPUs"


def _job(one: Manifest) -> Iterator[str]:
    if one["kind"] != "RayJob":
        return
    spec = one["spec"]
    started = job_words(spec["entrypoint"])
    if started is None:
        yield f"entrypoint {spec['entrypoint']!r} starts no job of ours"
        return
    environment, (module, *arguments) = started
    problem = problem_of(module, arguments)
    if problem is not None:
        yield f"entrypoint: {problem}"
    if "HF_HUB_OFFLINE" in environment and module != "jobs.fetch_models":
        yield "asks the hub, though everything is fetched before"
    if not spec.get("shutdownAfterJobFinishes"):
        yield "its cluster stays when it is done"
    queued = "kueue.x-k8s.io/queue-name" in one["metadata"]["labels"]
    if queued and spec["rayClusterSpec"]["enableInTreeAutoscaling"]:
        yield "Kueue admits a job whose number of pods is fixed"
    yield from _paths(arguments)


def _paths(arguments: list[str]) -> Iterator[str]:
    """Paths are on the volume, in the image, or in a bucket."""
    for path in re.findall(r"(?<![\w/:.])/[\w./-]+", " ".join(arguments)):
        if path.startswith(APP):
            if not (ROOT / path.removeprefix(APP)).exists():
                yield f"{path} is not in the repository"
        elif not path.startswith(("/mnt/shared/", "/usr/local/lib/python3.11/")):
            yield f"{path} is not on the volume that all pods mount"


def _service(one: Manifest) -> Iterator[str]:
    if one["kind"] != "RayService":
        return
    values = yaml.safe_load(one["spec"]["serveConfigV2"])
    if set(values) != {"proxy_location", "http_options", "applications"} or values["proxy_location"] != "EveryNode":
        yield f"serveConfigV2 has {sorted(values)}, with proxies on {values.get('proxy_location')}"
        return
    if values["http_options"] != {"host": "0.0.0.0", "port": 8000}:
        yield f"http_options are {values['http_options']}, the pods' port is 8000"
    (application,) = values["applications"]
    module, _, function = application["import_path"].partition(":")
    spec = importlib.util.find_spec(module) if re.fullmatch(r"serve\.\w+", module) else None
    if spec is None or f"\ndef {function}(" not in Path(str(spec.origin)).read_text():
        yield f"import_path {application['import_path']} leads nowhere"
    try:
        args = parse_args(application["args"])
    except ConfigError as error:
        yield str(error)
        return
    if args.keys.env != "PHF_API_KEYS":
        yield f"keys are taken from {args.keys.env}, the pods have PHF_API_KEYS"
    yield from (
        f"there is no scorer {scorer.scorer['class_name']}"
        for scorer in args.scorers
        if scorer.scorer["class_name"] not in SCORERS
    )
    yield from _paths([model.path for model in args.models])
    yield from _paths([str(scorer.scorer["path"]) for scorer in args.scorers if "path" in scorer.scorer])


# --- Between manifests ------------------------------------------------------------------------------------------------

# Variable -> file, below site-packages or the repository, that reads it.
READERS = {
    "HF_HOME": "huggingface_hub/constants.py",
    "HF_HUB_OFFLINE": "huggingface_hub/constants.py",
    "HF_HUB_DISABLE_TELEMETRY": "huggingface_hub/constants.py",
    "HF_TOKEN": "huggingface_hub/utils/_auth.py",
    "RAY_USAGE_STATS_ENABLED": "ray/_common/usage/usage_constants.py",
    "WANDB_MODE": "wandb/env.py",
    "WANDB_PROJECT": "wandb/env.py",
    "WANDB_API_KEY": "wandb/env.py",
    "PHF_MODELS": "phf_ray/scorers/toxicity.py",
    "PHF_SHARED_ROOTS": "jobs/cli.py",
    "PHF_LOG_FORMAT": "jobs/cli.py",
    "PHF_API_KEYS": "serve/settings.py",
    "PHF_API_KEY": "phf_ray/http/keys.py",
    "OPENAI_API_KEY": "phf_ray/http/keys.py",
    "TOKENIZERS_PARALLELISM": "tokenizers/tokenizers.abi3.so",
    "AWS_ACCESS_KEY_ID": "pyarrow",
    "AWS_SECRET_ACCESS_KEY": "pyarrow",
    "AWS_REGION": "pyarrow",
    "AWS_ENDPOINT_URL": "phf_ray/storage/object_stores.py",
    "REDIS_PASSWORD": "k8s/overlays/production/redis.yaml",
}


def _environment_names(objects: list[Manifest], secrets: list[Manifest]) -> Iterator[str]:
    names: set[str] = set()
    for one in objects:
        if one["kind"] == "ConfigMap":
            names |= one["data"].keys()
        if one["kind"] == "RayJob":
            names |= job_words(one["spec"]["entrypoint"])[0].keys()  # type: ignore[index]  # checked before
        for _, template in templates_of(one):
            for container in template["spec"]["containers"]:
                names |= {variable["name"] for variable in container.get("env", [])}
                for source in container.get("envFrom", []):
                    if "secretRef" in source:
                        names |= names_of(secrets, "Secret")[source["secretRef"]["name"]]["data"].keys()
    yield from (f"nothing reads the variable {name}" for name in sorted(names - READERS.keys()))


def _head_services(objects: list[Manifest]) -> Iterator[str]:
    """KubeRay makes NAME-head-svc for each; the cluster of a RayJob has the job's name and some random letters."""
    names = [one["metadata"]["name"] for one in objects if cluster_of(one) is not None]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{names.count(name)} clusters would have the service {name}-head-svc"


def _ways_out(objects: list[Manifest]) -> Iterator[str]:
    """Pods with the credentials of a bucket or of a judge reach it, whatever policies there are."""
    policies = [one["spec"] for one in objects if one["kind"] == "NetworkPolicy"]
    for one in objects:
        for where, template in templates_of(one):
            sources = [
                source for container in template["spec"]["containers"] for source in container.get("envFrom", [])
            ]
            for secret, what in (("phf-bucket", "the bucket"), ("phf-judges", "its judge")):
                wants = {"secretRef": {"name": secret}} in sources
                if wants and not _reaches_443(template["metadata"]["labels"], policies):
                    yield f"{where} of {one['kind']} {one['metadata']['name']} is kept from {what} by a NetworkPolicy"


def _reaches_443(labels: Manifest, policies: list[Manifest]) -> bool:
    """At any address. Rules of several policies add up; a pod that none names is free."""
    of_pod = [policy for policy in policies if policy["podSelector"]["matchLabels"].items() <= labels.items()]
    rules = [rule for policy in of_pod for rule in policy.get("egress", [])]
    open_ports = {port["port"] for rule in rules if "to" not in rule for port in rule["ports"]}
    return not of_pod or 443 in open_ports


def _flow(objects: list[Manifest]) -> Iterator[str]:
    """What one stage writes is what the next one reads."""
    jobs = {name: _flags(one["spec"]["entrypoint"]) for name, one in names_of(objects, "RayJob").items()}
    scored = jobs["score"]["--output"][0]
    if f"dataset.datasets=[{scored}]" not in jobs["train"]["--override"]:
        yield f"train does not read {scored}, which score writes"
    served = {name: _served(service) for name, service in names_of(objects, "RayService").items()}
    if (run := _run_of(jobs["train"])) not in served["phf"].values():
        yield f"the service does not serve {run}, which train writes"
    url = "http://phf-serve-svc:8000"
    for name in ("evaluate", "red-team"):
        for model in jobs[name].get("--model", []):
            asked, _, address = model.partition("=")
            if asked not in served["phf"] or address != url:
                yield f"{name} asks for {model}, the service is {url} with {', '.join(served['phf'])}"
        if jobs[name].get("--scores-url", [url]) != [url]:
            yield f"{name} asks {jobs[name]['--scores-url']} for scores, the service is {url}"
    tasks = {tuple(jobs[name]["--task"]) for name in ("score", "train", "evaluate", "red-team")}
    if len(tasks) != 1:
        yield f"stages are of different tasks: {sorted(tasks)}"
    yield from _learning_flow(objects, jobs, served["phf-align"])
    yield from _same_pods(objects)


def _learning_flow(objects: list[Manifest], jobs: dict[str, Any], served: dict[str, str]) -> Iterator[str]:
    """Stages that learn from feedback read what another one writes, or a file that the user brings."""
    written = {_run_of(jobs["train"]), _run_of(jobs["train-rl"]), f"{jobs['best-of-n']['--output'][0]}/best_of_n.json"}
    started = job_words(names_of(objects, "RayJob")["pipeline"]["spec"]["entrypoint"])
    assert started is not None
    for stage in pipeline_stages(pipeline.parser().parse_args(started[1][1:])):
        written |= {stage.output, f"{stage.output}/best_of_n.json"}
    read = {
        "best-of-n": [*jobs["best-of-n"]["--model"], *jobs["best-of-n"].get("--reward", [])],
        "annotate": jobs["annotate"]["--samples"],
        "train-rl": [
            *jobs["train-rl"]["--checkpoint-path"],
            *(word.partition("=")[2] for word in jobs["train-rl"]["--override"] if ".reward.model=" in word),
        ],
        "the service phf-align": served.values(),
    }
    yield from (
        f"{name} reads {path}, which no stage writes"
        for name, paths in read.items()
        for path in paths
        if path.startswith("/mnt/shared/") and path not in written
    )
    url, asked = (jobs["annotate"].get(flag, [""])[0] for flag in ("--url", "--model"))
    service = "http://phf-align-serve-svc:8000"
    if url.startswith("http://") and (url != service or asked not in served):
        yield f"annotate asks {url} for {asked}, the service is {service} with {', '.join(served)}"


def _run_of(flags: dict[str, list[str]]) -> str:
    return f"{flags['--storage-path'][0]}/{flags['--run-name'][0]}"


def _served(service: Manifest) -> dict[str, str]:
    """What a service serves, by name, with its path; a scorer without one has none."""
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    scorers = (one["scorer"] for one in application["args"].get("scorers", []))
    return {model["name"]: model["path"] for model in application["args"]["models"]} | {
        scorer["class_name"]: scorer["path"] for scorer in scorers if "path" in scorer
    }


def _flags(entrypoint: str) -> dict[str, list[str]]:
    started = job_words(entrypoint)
    assert started is not None
    flags: dict[str, list[str]] = {}
    current: list[str] = []
    for word in started[1][1:]:
        if word.startswith("--"):
            current = flags.setdefault(word, [])
        else:
            current.append(word)
    return flags


def _same_pods(objects: list[Manifest]) -> Iterator[str]:
    """base/ writes the pods down once for jobs, once for the service and once for the cluster."""
    seen: dict[str, tuple[str, Any]] = {}
    for one in objects:
        if cluster_of(one) is None:
            continue
        for where, template in templates_of(one):
            spec = copy.deepcopy(template["spec"])
            for container in spec["containers"]:
                # Those of a bucket or a judge, which only some jobs have.
                container["envFrom"] = [source for source in container.get("envFrom", []) if "secretRef" not in source]
            name, first = seen.setdefault(where, (one["metadata"]["name"], spec))
            if spec != first:
                yield f"{where} of {one['kind']} {one['metadata']['name']} is not as in {name}"
