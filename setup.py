"""The packages of the wheel. Everything else is in pyproject.toml, which can't add a package to the ones it finds.

`configs/` stays at the top of the repository. A wheel contains it as `phf_ray/shipped_configs`.
"""

from setuptools import find_packages, setup

SHIPPED = "phf_ray.shipped_configs"

setup(
    packages=[*find_packages(include=["phf_ray*", "serve*", "jobs*"]), SHIPPED],
    package_dir={SHIPPED: "configs"},
    package_data={
        SHIPPED: ["**/*.yml", "**/*.yaml", "**/*.jsonl", "**/*.md", "**/*.py", "**/*.json", "**/*.jinja", "**/*.txt"],
        "phf_ray.evaluation.report": ["*.jinja"],
        "phf_ray.judging.board": ["*.jinja", "*.csv"],
        "phf_ray.rollouts.frontier": ["*.jinja"],
        "phf_ray.rollouts.guard": ["*.jinja"],
        "phf_ray.rollouts.against_base": ["*.jinja"],
        "phf_ray.rollouts.best_of_n": ["*.jinja"],
    },
)
