"""Every metric is documented, and what the dashboard asks for exists."""

import json
import re
from pathlib import Path

import pytest
import ray
import yaml
from metric_names import ROOT, exported

from serve.gate import Metrics
from serve.settings import Limits

DASHBOARD = ROOT / "k8s" / "grafana" / "dashboard.json"
NAME = r"\b(?:ray_)?phf_\w+|\bray_\w+"


def test_the_names_are_those_that_the_server_answers_with():
    served = {
        f"{metric.name}_total" if metric.type == "counter" else metric.name
        for metric in Metrics(Limits()).registry.collect()
    }
    assert {name for name in exported() if not name.startswith("ray_")} == served


def test_what_the_server_answers_with_the_nodes_of_ray_have_too():
    names = exported()
    own = {name: kind for name, kind in names.items() if not name.startswith("ray_")}
    assert own
    assert {name: names.get(f"ray_{name}") for name in own} == own


def test_every_metric_is_in_the_documents_and_no_other():
    page = (ROOT / "docs" / "operate.md").read_text()
    listed = re.findall(r"^\| `((?:ray_)?phf_\w+)` \| (\w+)", page, re.MULTILINE)
    assert dict(listed) == exported()
    assert len(listed) == len(dict(listed))


def expressions():
    dashboard = json.loads(DASHBOARD.read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def unknown_metrics(expression):
    """Names in an expression that neither this project nor the installed Ray has."""
    ours = {
        name if kind != "histogram" else f"{name}{part}"
        for name, kind in exported().items()
        for part in ("_bucket", "_sum", "_count")
    }
    folder = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    theirs = "\n".join(path.read_text() for path in folder.glob("*_panels.py"))
    return [
        name
        for name in re.findall(NAME, expression)
        if name not in ours and ("phf_" in name or re.search(rf"\b{name}\b", theirs) is None)
    ]


def test_the_dashboard_asks_for_metrics_that_exist():
    assert len(expressions()) > 10
    for expression in expressions():
        assert re.search(NAME, expression), expression
        assert unknown_metrics(expression) == []


def test_the_dashboard_asks_for_what_monitoring_can_reach():
    """Port 8080 of the pods: the service's own port is closed to it, and answers for one of several replicas."""
    policies = yaml.safe_load_all((ROOT / "k8s" / "overlays" / "production" / "network.yaml").read_text())
    (ports,) = (
        [port["port"] for port in rule["ports"]]
        for policy in policies
        for rule in policy["spec"].get("ingress", [])
        if "monitoring" in str(rule["from"])
    )
    assert ports == [8080]
    assert [expression for expression in expressions() if re.search(r"\bphf_", expression)] == []


def test_the_dashboard_shows_every_metric_of_ours():
    asked = " ".join(expressions())
    assert [name for name in exported() if name not in asked] == []


@pytest.mark.parametrize("name", ["phf_http_requests", "ray_phf_document_total", "ray_node_gpu_utilisation"])
def test_a_misspelt_metric_is_found(name):
    assert unknown_metrics(f"sum(rate({name}[1m]))") == [name]


def test_panels_do_not_overlap_and_have_one_source():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    cells = [
        (x, y)
        for panel in panels
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert {panel["datasource"]["uid"] for panel in panels if panel["type"] != "row"} == {"${source}"}
