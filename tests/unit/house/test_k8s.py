"""The manifests agree with the code, with each other and with the types of Kubernetes; any kind of mistake is found."""

import copy
import re
import shutil
import site
import subprocess
from pathlib import Path

import pytest
import yaml
from manifest_checks import READERS, problems_of
from manifests import K8S, cluster_of, render, templates_of
from places import ROOT

OVERLAYS = ("base", "overlays/cpu-smoke", "overlays/gpu", "overlays/production")
STAGES = (
    *("fetch-models", "score", "train", "serve", "evaluate", "red-team", "submit", "setup"),
    *("pipeline", "serve-align", "best-of-n", "annotate", "train-rl"),
)


def copy_of(folder, tmp_path) -> Path:
    target = tmp_path / "k8s"
    shutil.copytree(folder, target)
    for example in target.rglob("*.env.example"):
        example.rename(example.with_suffix(""))
    return target


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    return render(copy_of(K8S, tmp_path_factory.mktemp("secrets")) / "secrets")


@pytest.fixture(scope="module")
def rendered():
    return {name: render(K8S / name) for name in OVERLAYS}


def named(objects, kind, name):
    (found,) = (one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_is_wrong_with_an_overlay(overlay, rendered, secrets):
    assert problems_of(rendered[overlay], secrets=secrets) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_stage_can_be_applied_by_its_label(overlay, rendered):
    labels = {one["metadata"]["labels"]["app.kubernetes.io/component"] for one in rendered[overlay]}
    assert labels == set(STAGES)


def write_own_overlay(folder, *, over, component="bucket") -> None:
    (folder / "own").mkdir()
    values = {"resources": [f"../{over}"], "components": [f"../components/{component}"]}
    (folder / "own" / "kustomization.yaml").write_text(yaml.safe_dump(values))


@pytest.mark.parametrize("overlay", ["overlays/gpu", "overlays/production"])
def test_the_scored_corpus_can_lie_in_a_bucket(overlay, tmp_path, rendered, secrets):
    folder = copy_of(K8S, tmp_path)
    write_own_overlay(folder, over=overlay)
    objects = render(folder / "own")
    assert problems_of(objects, secrets=secrets) == []
    score, train = (named(objects, "RayJob", name) for name in ("score", "train"))
    assert "--output s3://phf-ray/scored/toxicity" in score["spec"]["entrypoint"]
    # Nothing but the place is another, such as the GPUs that are trained on.
    for job in (score, train):
        without = named(rendered[overlay], "RayJob", job["metadata"]["name"])["spec"]["entrypoint"]
        assert job["spec"]["entrypoint"].replace("s3://phf-ray/", "/mnt/shared/") == without


def test_pods_that_can_not_reach_their_bucket_are_found(tmp_path, secrets):
    folder = copy_of(K8S, tmp_path)
    write_own_overlay(folder, over="overlays/production")
    objects = render(folder / "own")
    (worker,) = (one for where, one in templates_of(named(objects, "RayJob", "score")) if where == "gpu")
    del worker["metadata"]["labels"]["phf-ray/egress"]
    assert problems_of(objects, secrets=secrets) == ["gpu of RayJob score is kept from the bucket by a NetworkPolicy"]


@pytest.mark.parametrize("overlay", ["overlays/gpu", "overlays/production"])
def test_the_judge_can_be_outside_and_its_key_is_in_the_asking_pod(overlay, tmp_path, secrets):
    folder = copy_of(K8S, tmp_path)
    write_own_overlay(folder, over=overlay, component="outside-judge")
    objects = render(folder / "own")
    assert problems_of(objects, secrets=secrets) == []
    job = named(objects, "RayJob", "annotate")
    (variable,) = re.findall(r"--key-env (\S+)", job["spec"]["entrypoint"])
    (head,) = (one for where, one in templates_of(job) if where == "head")
    assert {"secretRef": {"name": "phf-judges"}} in head["spec"]["containers"][0]["envFrom"]
    assert variable in named(secrets, "Secret", "phf-judges")["data"]
    assert head["metadata"]["labels"]["phf-ray/egress"] == "true"


def test_answers_are_drawn_by_a_pool_that_grows(rendered):
    for overlay, group in (("base", 0), ("overlays/gpu", 1)):
        for name in ("best-of-n", "train-rl", "pipeline"):
            cluster = cluster_of(named(rendered[overlay], "RayJob", name))
            assert cluster["enableInTreeAutoscaling"]
            assert (
                cluster["workerGroupSpecs"][group]["maxReplicas"] > cluster["workerGroupSpecs"][group]["replicas"] == 0
            )
    # Kueue admits as many as the pools may have.
    for name in ("best-of-n", "train-rl", "pipeline"):
        cluster = cluster_of(named(rendered["overlays/production"], "RayJob", name))
        assert cluster["workerGroupSpecs"][1]["replicas"] == 8


def test_gpus_come_from_zero_and_only_where_they_are_asked_for(rendered):
    def replicas(overlay, kind, name):
        group = cluster_of(named(rendered[overlay], kind, name))["workerGroupSpecs"][1]
        assert group["groupName"] == "gpu"
        return group["minReplicas"], group["maxReplicas"]

    for overlay in ("base", "overlays/cpu-smoke"):
        assert replicas(overlay, "RayJob", "train") == (0, 0)
    for kind, name in (("RayJob", "train"), ("RayService", "phf"), ("RayCluster", "phf-submit")):
        low, high = replicas("overlays/gpu", kind, name)
        assert (low, high > 0) == (0, True)
    # Scoring looks for GPUs when it begins.
    assert replicas("overlays/gpu", "RayJob", "score") == (1, 8)


def test_where_gpus_are_scarce_a_change_brings_up_no_second_cluster(rendered):
    strategies = {
        name: named(objects, "RayService", "phf")["spec"]["upgradeStrategy"] for name, objects in rendered.items()
    }
    assert strategies["base"] == {"type": "NewCluster"}
    assert strategies["overlays/gpu"] == strategies["overlays/production"] == {"type": "None"}


def test_production_queues_jobs_keeps_the_heads_state_and_closes_the_network(rendered):
    objects = rendered["overlays/production"]
    queue = named(objects, "LocalQueue", "phf")["metadata"]["name"]
    for one in objects:
        if one["kind"] == "RayJob":
            assert one["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == queue
    redis = cluster_of(named(objects, "RayService", "phf"))["gcsFaultToleranceOptions"]["redisAddress"]
    service = named(objects, "Service", redis.partition(":")[0])
    assert redis.endswith(f":{service['spec']['ports'][0]['port']}")
    assert (
        service["spec"]["selector"].items()
        <= named(objects, "Deployment", "phf-redis")["spec"]["template"]["metadata"]["labels"].items()
    )
    policies = [one["spec"] for one in objects if one["kind"] == "NetworkPolicy"]
    everywhere = [
        policy for policy in policies if policy["podSelector"]["matchLabels"].keys() == {"app.kubernetes.io/part-of"}
    ]
    assert [policy["policyTypes"] for policy in everywhere] == [["Ingress", "Egress"]]
    [rule] = named(objects, "NetworkPolicy", "phf-head-to-api-server")["spec"]["egress"]
    assert [port["port"] for port in rule["ports"]] == [6443, 443]


def test_only_the_job_that_fetches_may_reach_the_internet(rendered):
    objects = rendered["overlays/production"]
    (fetch,) = (one["spec"] for one in objects if one["metadata"]["name"] == "phf-fetch")
    marks = fetch["podSelector"]["matchLabels"].items()
    reached = {
        one["metadata"]["name"]
        for one in objects
        for _, template in templates_of(one)
        if marks <= template["metadata"]["labels"].items()
    }
    assert reached == {"fetch-models"}
    assert named(objects, "ConfigMap", "phf-config")["data"]["HF_HUB_OFFLINE"] == "1"


def test_every_environment_variable_is_one_that_something_reads():
    for name, reader in READERS.items():
        places = [Path(folder) / reader for folder in site.getsitepackages()] + [ROOT / reader]
        (place,) = (place for place in places if place.exists())
        files = [place] if place.is_file() else [*place.glob("libarrow.so*")]
        assert any(name.removeprefix("HF_").encode() in file.read_bytes() for file in files), name


def test_no_secret_is_in_the_repository():
    for path in K8S.rglob("*"):
        if path.name.endswith(".env.example"):
            lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
            assert lines, path
            assert all(line.endswith("=") for line in lines), path
        assert not (path.is_file() and "kind: Secret\n" in path.read_text()), path
    ignored = subprocess.run(["git", "check-ignore", "k8s/secrets/tokens.env"], cwd=ROOT, capture_output=True)
    assert ignored.returncode == 0


# --- Planted mistakes -------------------------------------------------------------------------------------------------


def entrypoint(name, old, new):
    def change(objects):
        spec = named(objects, "RayJob", name)["spec"]
        assert old in spec["entrypoint"]
        spec["entrypoint"] = spec["entrypoint"].replace(old, new)

    return change


def serve_config(old, new):
    def change(objects):
        spec = named(objects, "RayService", "phf")["spec"]
        assert old in spec["serveConfigV2"]
        spec["serveConfigV2"] = spec["serveConfigV2"].replace(old, new)

    return change


def put(kind, name, path, value):
    """`path` by dots; a number is a place in a list."""

    def change(objects):
        *parents, last = path.split(".")
        place = named(objects, kind, name)
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        place[int(last) if isinstance(place, list) else last] = value

    return change


TRAIN = "spec.rayClusterSpec"
POD = f"{TRAIN}.headGroupSpec.template.spec"
MISTAKES = {
    "an unknown flag": (entrypoint("train", "--run-name", "--runname"), "--run"),
    "a task that is not there": (entrypoint("score", "toxicity/pretrain.yml", "toxicity/pretain.yml"), "pretain.yml"),
    "an unknown key of the configuration": (
        entrypoint("train", "training.num_workers", "training.num_worker"),
        "did you mean 'num_workers'",
    ),
    "a path on a node's own disk": (
        entrypoint("score", "/mnt/shared/corpus", "/data/corpus"),
        "/data/corpus is not on the volume",
    ),
    "a corpus that nobody writes": (
        entrypoint("train", "datasets=[/mnt/shared/scored/toxicity]", "datasets=[/mnt/shared/scored/toxic]"),
        "train does not read /mnt/shared/scored/toxicity",
    ),
    "a run that nobody serves": (entrypoint("train", "--run-name conditional", "--run-name cond"), "does not serve"),
    "a service that is not there": (
        entrypoint("evaluate", "--model conditional=http://phf-serve-svc", "--model conditional=http://phf-svc"),
        "the service is http://phf-serve-svc:8000",
    ),
    "a variable that is not read": (put("ConfigMap", "phf-config", "data.HF_HUB_OFLINE", "1"), "HF_HUB_OFLINE"),
    "a key that the secret lacks": (
        put("RayJob", "train", f"{POD}.containers.0.env.0.valueFrom.secretKeyRef.key", "servr"),
        "no Secret phf-api-keys has servr",
    ),
    "a map that is not there": (
        put("RayJob", "train", f"{POD}.containers.0.envFrom.0.configMapRef.name", "phf-conf"),
        "there is no phf-conf",
    ),
    "another image tag": (put("RayJob", "train", f"{POD}.containers.0.image", "phf-ray:0.1.0-ray2.59.0"), "2.59.0"),
    "a field that does not exist": (
        put("RayJob", "train", f"{TRAIN}.workerGroupSpec", []),
        "'workerGroupSpec' was unexpected",
    ),
    "a field of a pod": (put("RayJob", "train", f"{POD}.containers.0.volumeMount", []), "'volumeMount' was unexpected"),
    "a claim that is not there": (
        put("RayJob", "train", f"{POD}.volumes.0.persistentVolumeClaim.claimName", "phf-share"),
        "PersistentVolumeClaim phf-share",
    ),
    "root": (put("RayJob", "train", f"{POD}.securityContext.runAsNonRoot", False), "may run as root"),
    "no token": (put("RayJob", "train", f"{TRAIN}.authOptions", {"mode": "disabled"}), "asks for no token"),
    "GPUs that Ray does not know of": (
        put("RayJob", "train", f"{TRAIN}.workerGroupSpecs.1.rayStartParams", {"num-gpus": "2"}),
        "num-gpus 2",
    ),
    "pods that differ": (
        put("RayService", "phf", "spec.rayClusterConfig.headGroupSpec.template.spec.terminationGracePeriodSeconds", 5),
        "is not as in",
    ),
    "a stage of a pipeline that is not there": (
        entrypoint("pipeline", "ppo.training.num_workers", "pppo.training.num_workers"),
        "--override pppo.training.num_workers=2",
    ),
    "a value that a pipeline does not have": (
        entrypoint("pipeline", "demonstrations=", "demonstration="),
        "the pipeline has no value demonstration;",
    ),
    "a reward model that nobody trains": (
        entrypoint("train-rl", "reward.model=/mnt/shared/alpaca/runs/reward", "reward.model=/mnt/shared/alpaca/reward"),
        "train-rl reads /mnt/shared/alpaca/reward, which no stage writes",
    ),
    "samples that nobody draws": (
        entrypoint("annotate", "alpaca/answers/", "alpaca/answer/"),
        "annotate reads /mnt/shared/alpaca/answer/best_of_n.json",
    ),
    "a judge that is not served": (entrypoint("annotate", "--model chat", "--model chatty"), "annotate asks"),
    "a wrong import": (serve_config("serve.app:build", "serve.app:bild"), "serve.app:bild leads nowhere"),
    "an unknown field of what is served": (serve_config("num_cpus", "num_cpu"), "num_cpu"),
    "keys that the pods do not have": (serve_config("PHF_API_KEYS", "PHF_KEYS"), "the pods have PHF_API_KEYS"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_found(mistake, rendered, secrets):
    change, expected = MISTAKES[mistake]
    objects = copy.deepcopy(rendered["base"])
    change(objects)
    found = problems_of(objects, secrets=secrets)
    assert any(expected in problem for problem in found), found


def test_a_queued_job_that_scales_by_itself_is_found(rendered, secrets):
    objects = copy.deepcopy(rendered["overlays/production"])
    cluster = cluster_of(named(objects, "RayJob", "train"))
    cluster.update(enableInTreeAutoscaling=True, autoscalerOptions={"version": "v2"})
    (problem,) = problems_of(objects, secrets=secrets)
    assert "Kueue admits" in problem


def test_an_account_has_no_rights_of_ours(rendered):
    assert not any(
        one["kind"] in ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding") for one in rendered["base"]
    )
    assert named(rendered["base"], "ServiceAccount", "phf-worker")["automountServiceAccountToken"] is False
    for one in rendered["base"]:
        for where, template in templates_of(one):
            assert where == "head" or template["spec"]["automountServiceAccountToken"] is False
