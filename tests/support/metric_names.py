"""The metrics in the code, by their names in Prometheus."""

import ast
import re
from collections.abc import Iterator
from functools import cache

from places import ROOT

KINDS = {"Counter", "Gauge", "Histogram", "MetricCounter", "MetricGauge", "MetricHistogram"}


@cache
def exported() -> dict[str, str]:
    """Return exported name -> kind. Ray adds `ray_` to its own metrics; every counter ends in `_total`."""
    found = {}
    for folder in ("phf_ray", "serve", "jobs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            prefix = (
                "ray_"
                if re.search(
                    r"^from ray\.util(\.metrics import| import metrics)|^from ray\.serve import metrics",
                    text,
                    re.MULTILINE,
                )
                else ""
            )
            names = list(_names(ast.parse(text)))
            assert len(names) >= len(re.findall(r'"phf_(?!ray\b)', text)), (
                f"{path}: a metric is made in a way that is not read here"
            )
            for name, kind in names:
                kind = kind.removeprefix("Metric").lower()
                found[f"{prefix}{name}{'_total' if kind == 'counter' else ''}"] = kind
    return found


def _names(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield names and kinds: `Counter("phf_x", ...)`, `{name: Counter(f"phf_{name}", ...) for name in ("x", ...)}`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and ast.unparse(node.func).removeprefix("metrics.") in KINDS:
            first = node.args[0]
            if isinstance(first, ast.Constant) and str(first.value).startswith("phf_"):
                yield str(first.value), ast.unparse(node.func).removeprefix("metrics.")
        if isinstance(node, ast.DictComp) and isinstance(node.value, ast.Call):
            first = node.value.args[0] if node.value.args else None
            if isinstance(first, ast.JoinedStr) and isinstance(node.value.func, ast.Name):
                head = first.values[0]
                assert isinstance(head, ast.Constant), ast.unparse(first)
                for name in ast.literal_eval(node.generators[0].iter):
                    yield f"{head.value}{name}", node.value.func.id
