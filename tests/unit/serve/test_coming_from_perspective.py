"""The page for those who come from Perspective or Presidio says what the server does."""

import re

from places import ROOT

from phf_ray.scorers.toxicity import LANGUAGES
from serve.compat.google_batch import MAX_REQUESTS
from serve.compat.perspective import PERSPECTIVE_CLASSES, PERSPECTIVE_MAX_BYTES, PERSPECTIVE_UNJUDGED
from serve.compat.presidio import PRESIDIO_ENTITIES

PAGE = (ROOT / "docs" / "coming_from_perspective.md").read_text(encoding="utf-8")


def row(name: str) -> str:
    return re.search(rf"^\| {name} \|(.*)\|$", PAGE, re.MULTILINE)[1]


def test_attributes_and_limits_are_those_of_the_server():
    assert set(re.findall(r"`([A-Z_]+)`", row("attributes"))) == set(PERSPECTIVE_CLASSES)
    assert set(re.findall(r"`([A-Z_]+)`", row("Perspective's others"))) <= PERSPECTIVE_UNJUDGED
    assert not PERSPECTIVE_UNJUDGED & set(PERSPECTIVE_CLASSES)
    assert set(re.findall(r"`([a-z]{2})`", row("`languages`"))) == set(LANGUAGES["multilingual"])
    assert f"{PERSPECTIVE_MAX_BYTES:,} bytes" in row("limits")
    assert f"{MAX_REQUESTS:,} comments in a batch" in row("limits")


def test_entities_of_presidio_are_those_of_the_server():
    table = PAGE.partition("| detector | entity |")[2]
    assert dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|$", table, re.MULTILINE)) == PRESIDIO_ENTITIES


def test_tasks_of_lm_eval_are_those_that_are_shipped():
    named = set(re.findall(r"^\| `(phf_\w+)` \|", PAGE, re.MULTILINE))
    assert named == {path.stem for path in (ROOT / "configs" / "lm_eval").glob("*.yaml")}
