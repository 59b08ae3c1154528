"""docs/algorithms.md names every algorithm and every setting, with its default."""

import re
from typing import get_args

import pytest
import yaml
from places import ROOT

from phf_ray.config import AlgorithmConfig, PPOConfig

SECTIONS = get_args(get_args(AlgorithmConfig)[0])
SHARED = ("kl_coef", "kl_target", "clip", "dual_clip", "aggregation")


def settings(section):
    """Those that the algorithm's own table lists, with their defaults."""
    for key, field in section.model_fields.items():
        if key != "name" and (key not in SHARED or section is PPOConfig or "clip" not in section.model_fields):
            yield key, field.default


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_the_page_names_the_algorithm_and_its_settings(section):
    page = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    (name,) = get_args(section.model_fields["name"].annotation)
    assert f"\n| `{name}` |" in page
    for key, default in settings(section):
        shown = re.search(rf"^\| (?:`{name}`: )?`{key}` \| `(.*?)` \|", page, re.MULTILINE)
        assert shown, key
        found = yaml.safe_load(shown[1].replace("\\", ""))
        assert (type(found), found) == (type(default), default), key
