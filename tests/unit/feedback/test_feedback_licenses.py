"""A feedback corpus says where its rows come from and under which licence, and hands that on to token blocks."""

import json
import logging

import pytest
from feedback_files import hh_record, write_lines
from feedback_runs import make_config, train, write_feedback
from tiny_models import tiny_tokenizer

from jobs.prepare_feedback import main
from phf_ray.blocks.build import build_blocks, build_here
from phf_ray.blocks.manifest import read_block_manifest
from phf_ray.blocks.plan import plan_blocks
from phf_ray.checkpoint import read_info
from phf_ray.config import parse_config
from phf_ray.feedback import read_feedback_manifest
from phf_ray.storage.licenses import card_metadata

CLONE = {"name": "clone", "license": "cc-by-nc-4.0"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone with a card, and a folder without one."""
    folder = tmp_path_factory.mktemp("licences")
    write_lines(folder / "clone/train.jsonl", [hh_record(number) for number in range(9)])
    (folder / "clone/README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Clone\n")
    write_lines(folder / "plain/train.jsonl", [hh_record(number) for number in range(9)])
    return folder / "clone"


def prepare(source, output, *words):
    assert main(["--input", str(source), "--output", str(output), *words]) == 0
    return list(read_feedback_manifest(str(output)).sources)


def test_the_manifest_the_card_and_the_command_name_the_licence(clone, tmp_path, capsys, caplog):
    assert prepare(clone, tmp_path / "out") == [CLONE]
    card = (tmp_path / "out/README.md").read_text()
    assert card_metadata(card)["license"] == "cc-by-nc-4.0"
    assert "- from `clone`, licence cc-by-nc-4.0" in card
    assert "**Warning**: the licence of the data (cc-by-nc-4.0) forbids commercial use" in card
    assert "licence of the sources: cc-by-nc-4.0" in capsys.readouterr().out
    assert [record.levelno for record in caplog.records if "forbids commercial use" in record.message] == [
        logging.WARNING
    ]
    main(["--input", str(clone), "--output", str(tmp_path / "other"), "--dry-run"])
    assert f"{clone}: clone, licence cc-by-nc-4.0\nwarning: " in capsys.readouterr().out


def test_a_corpus_made_of_another_names_the_sources_of_that(clone, tmp_path):
    prepare(clone, tmp_path / "pairs")
    assert prepare(tmp_path / "pairs", tmp_path / "examples", "--to", "sft") == [CLONE]
    assert prepare(tmp_path / "pairs", tmp_path / "stated", "--to", "sft", "--license", "mit") == [
        {"name": "pairs", "license": "mit"}
    ]


def test_the_user_states_a_licence_at_any_time(clone, tmp_path):
    source, output = clone.parent / "plain", tmp_path / "out"
    assert prepare(source, output) == []
    before = (output / "part-00000.parquet").stat().st_mtime_ns
    stated = [{"name": "plain", "license": "cc0-1.0"}]
    assert prepare(source, output, "--license", "cc0-1.0") == stated
    assert prepare(source, output) == stated
    assert (output / "part-00000.parquet").stat().st_mtime_ns == before
    # A job that was stopped keeps the licence with which it began.
    prepare(clone, tmp_path / "begun", "--license", "mit")
    for name in ("_SUCCESS", "manifest.json", "part-00000.parquet"):
        (tmp_path / "begun" / name).unlink()
    assert prepare(clone, tmp_path / "begun") == [{"name": "clone", "license": "mit"}]


def test_token_blocks_have_the_licence(clone, tmp_path):
    prepare(clone, tmp_path / "pairs")
    dataset = {"seq_length": 128, "prompt_template": "hh", "held_out_fraction": 0.0}
    config = parse_config({"dataset": dataset, "objective": {"name": "DPO"}, "training": {"document_mask": True}})
    tokenizer = tiny_tokenizer()
    plan = plan_blocks(
        config, corpora=[str(tmp_path / "pairs")], tokenizer=tokenizer, output_root=str(tmp_path / "blocks")
    )
    manifest = read_block_manifest(build_blocks(plan, tokenizer=tokenizer, builder=build_here))
    assert [list(corpus.sources) for corpus in manifest.corpora] == [[CLONE]]
    assert manifest.licenses == ("cc-by-nc-4.0",)


def test_a_licence_that_is_stated_after_the_blocks_were_built_reaches_the_model_card(tmp_path):
    folder = write_feedback(tmp_path)
    config = make_config(folder, objective={"name": "BradleyTerry"}, num_epochs=0.5)
    run, start = train(folder, "before", config, corpus="pairs")
    start()
    assert "license" not in card_metadata((run.latest_checkpoint() / "README.md").read_text())
    [shard] = (folder / "blocks").glob("blocks-*/shard-*")
    built = shard.stat().st_mtime_ns
    prepare(folder / "pairs.jsonl", folder / "pairs", "--license", "cc-by-nc-4.0")
    run, start = train(folder, "after", config, corpus="pairs")
    start()
    assert card_metadata((run.latest_checkpoint() / "README.md").read_text())["license"] == "cc-by-nc-4.0"
    assert read_info(run.latest_checkpoint()).licenses == ("cc-by-nc-4.0",)
    assert shard.stat().st_mtime_ns == built


def test_a_corpus_of_an_older_version_has_no_sources(clone, tmp_path):
    prepare(clone, tmp_path / "out")
    file = tmp_path / "out/manifest.json"
    file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "sources"}))
    assert read_feedback_manifest(str(tmp_path / "out")).sources == ()
