"""Licences: read from cards, judged by their names, and carried from a data set to the models made from it."""

import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tiny_models import tiny_tokenizer

from jobs.score_corpus import _facts
from phf_ray.blocks.build import build_blocks, build_here
from phf_ray.blocks.manifest import read_block_manifest
from phf_ray.blocks.plan import plan_blocks
from phf_ray.checkpoint import CheckpointInfo, write_info
from phf_ray.config import parse_config
from phf_ray.models.card import model_card
from phf_ray.scoring.executor import InProcessScoring
from phf_ray.scoring.job import run_scoring
from phf_ray.scoring.request import ScoringRequest
from phf_ray.storage.licenses import (
    card_metadata,
    front_matter,
    is_non_commercial,
    license_of_card,
    license_warning,
    union,
)
from phf_ray.training.licenses import license_facts, run_licenses


@pytest.mark.parametrize(
    ("front", "license"),
    [
        ("license: mit", "mit"),
        ("license: [mit, cc-by-nc-4.0]", "mit, cc-by-nc-4.0"),
        ("license:\n- odc-by", "odc-by"),
        ("license: other\nlicense_name: our-own", "other (our-own)"),
        ("license: other", "other"),
        ("license:", None),
        ("pretty_name: x", None),
        ("license: [", None),
        ("- a list", None),
    ],
)
def test_the_licence_is_in_the_front_of_the_card(front, license):
    assert license_of_card(f"---\n{front}\n---\n\n# Card\n") == license
    assert license_of_card(f"# Card\n\n---\n{front}\n---\n") is None


@pytest.mark.parametrize(
    "license", ["cc-by-nc-4.0", "CC-BY-NC-SA-3.0", "cc-by-nc-nd-4.0", "fair-noncommercial-research-license"]
)
def test_a_licence_that_says_non_commercial_warns(license):
    assert is_non_commercial(license)
    assert f"({license}) forbids commercial use" in license_warning(["mit", license])


@pytest.mark.parametrize(
    "license", ["mit", "other", "other (nc)", "cc-by-sa-4.0", "ncsa", "odc-by", "bsl-1.0", "openrail++"]
)
def test_others_are_not_judged(license):
    assert license_warning([license]) is None


def test_licences_are_joined_once():
    assert union(["mit, odc-by", "mit", "cc0-1.0"]) == ("mit", "odc-by", "cc0-1.0")
    assert front_matter(()) == {}
    assert front_matter(["mit"]) == {"license": "mit"}
    assert front_matter(["other (a)", "mit", "other (b)"]) == {"license": ["other", "mit"]}


def request(folder, **options):
    scoring = {"scorers": [{"class_name": "fakes:LengthScorer"}], "segmenter": "lines"}
    return ScoringRequest(parse_config({"scoring": scoring}), inputs=[str(folder)], **options)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A scored corpus that was made from a clone with a card."""
    folder = tmp_path_factory.mktemp("licences")
    clone = folder / "clone"
    clone.mkdir()
    pq.write_table(pa.table({"text": [f"line {number}\nand more" for number in range(40)]}), clone / "train.parquet")
    (clone / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Clone\n")
    run_scoring(request(clone), str(folder / "scored"), executor=InProcessScoring())
    return folder / "scored"


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_a_corpus_carries_the_licence_of_its_source(scored):
    assert manifest_of(scored)["sources"] == [{"name": "clone", "license": "cc-by-nc-4.0"}]
    card = (scored / "README.md").read_text()
    assert card_metadata(card)["license"] == "cc-by-nc-4.0"
    assert "- from `clone`, licence cc-by-nc-4.0" in card
    assert "**Warning**: the licence of the data (cc-by-nc-4.0) forbids commercial use" in card
    done = run_scoring(request(scored.parent / "clone"), str(scored), executor=InProcessScoring())
    assert _facts(done)["licenses"] == ["cc-by-nc-4.0"]
    assert "forbids commercial use" in _facts(done)["warnings"][0]


def test_the_user_states_a_licence_at_any_time(scored, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("a\nb")
    run_scoring(request(texts), str(tmp_path / "out"), executor=InProcessScoring())
    assert manifest_of(tmp_path / "out")["sources"] == []
    before = (tmp_path / "out" / "part-00000.parquet").stat().st_mtime_ns
    run_scoring(request(texts, license="cc0-1.0"), str(tmp_path / "out"), executor=InProcessScoring())
    assert manifest_of(tmp_path / "out")["sources"] == [{"name": "texts", "license": "cc0-1.0"}]
    assert (tmp_path / "out" / "part-00000.parquet").stat().st_mtime_ns == before


def test_blocks_and_models_carry_the_licences_of_all_their_data(scored, tmp_path, caplog):
    (tmp_path / "plain").mkdir()
    rows = {"texts": [["a", "b"]] * 9, "scores": [[0.0, 1.0]] * 9}
    pq.write_table(pa.table(rows), tmp_path / "plain" / "train.parquet")
    (tmp_path / "plain" / "README.md").write_text("---\nlicense: mit\n---\n")
    config = parse_config(
        {"dataset": {"seq_length": 16}, "scoring": {"scorers": [{"class_name": "fakes:LengthScorer"}]}}
    )
    tokenizer = tiny_tokenizer()
    corpora = [str(scored), str(tmp_path / "plain")]
    plan = plan_blocks(config, corpora=corpora, tokenizer=tokenizer, output_root=str(tmp_path / "blocks"))
    manifest = read_block_manifest(build_blocks(plan, tokenizer=tokenizer, builder=build_here))
    assert manifest.licenses == ("cc-by-nc-4.0", "mit")
    start = tmp_path / "start"
    start.mkdir()
    write_info(start, CheckpointInfo(licenses=("odc-by",)))
    facts = license_facts(manifest, model=config.model, checkpoint_path=str(start))
    assert facts["licenses"] == ["cc-by-nc-4.0", "mit", "odc-by"]
    assert facts["warnings"][0] in caplog.text
    card = model_card(CheckpointInfo(licenses=facts["licenses"]), config=config, corpora=["scored"], metrics={})
    assert yaml.safe_load(card.split("---\n")[1])["license"] == facts["licenses"]
    assert "| licence of the data | cc-by-nc-4.0, mit, odc-by |" in card
    assert "**Warning**: the licence of the data (cc-by-nc-4.0) forbids commercial use" in card
    assert "Warning" not in model_card(CheckpointInfo(), config=config, corpora=["scored"], metrics={})


def test_a_run_has_the_licence_of_the_model_that_it_starts_from(tmp_path):
    for name, license in (("base", "cc-by-nc-4.0"), ("ours", "mit"), ("bare", None)):
        (tmp_path / name).mkdir()
        if license is not None:
            (tmp_path / name / "README.md").write_text(f"---\nlicense: {license}\n---\n")
    write_info(tmp_path / "ours", CheckpointInfo(licenses=("odc-by", "mit")))
    blocks = SimpleNamespace(licenses=("mit",))

    def licenses(name, checkpoint=None, **model):
        config = parse_config({"model": {"path_or_name": str(tmp_path / name), "from_scratch": False, **model}})
        path = None if checkpoint is None else str(tmp_path / checkpoint)
        return run_licenses(blocks, model=config.model, checkpoint_path=path)

    assert licenses("base") == ("mit", "cc-by-nc-4.0")
    assert licenses("bare") == ("mit",)
    assert licenses("ours") == ("mit", "odc-by")
    # These weights are not used.
    assert licenses("base", from_scratch=True) == ("mit",)
    assert licenses("base", "bare") == ("mit",)
    assert licenses("bare", "base") == ("mit", "cc-by-nc-4.0")
    assert licenses("base", "ours", from_scratch=True) == ("mit", "odc-by")
