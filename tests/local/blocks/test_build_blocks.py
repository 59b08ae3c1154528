"""Token blocks of whole corpora, built in this process and by Ray."""

import dataclasses
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import places
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.build_blocks import main
from phf_ray.blocks import build as blocks_build
from phf_ray.blocks import plan as blocks_plan
from phf_ray.blocks.build import build_blocks, build_here, ensure_blocks
from phf_ray.blocks.group import build_group
from phf_ray.blocks.held_out import is_held_out, read_held_out
from phf_ray.blocks.manifest import SourceCorpus, read_block_manifest
from phf_ray.blocks.on_ray import build_groups
from phf_ray.blocks.order import BlockOrder
from phf_ray.blocks.packing import pack
from phf_ray.blocks.plan import plan_blocks
from phf_ray.blocks.reader import BlockReader
from phf_ray.blocks.scorer_check import warn_of_other_scorers
from phf_ray.blocks.settings import PackingConfig
from phf_ray.blocks.thresholds import resolve_thresholds
from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.config import Config, parse_config
from phf_ray.corpus.reader import list_parts, read_corpus, read_part
from phf_ray.corpus.stored import open_corpora
from phf_ray.corpus.writer import PartWriter, finish_corpus
from phf_ray.errors import ConfigError, DataError
from phf_ray.records import ScorerIdentity, TokenKind
from phf_ray.scorers.build import build_scorer

TOKENIZER = str(places.GOLDEN / "tokenizer")
GOLDEN = json.loads((places.GOLDEN / "packing.json").read_text())
CONTROLS = ["<|aligned|>", "<|misaligned|>"]
CONDITIONAL = {"conditional_training_config": {"threshold": 0.0}}


def configured(tokenizer=TOKENIZER, special_tokens=CONTROLS, **sections) -> Config:
    dataset = {"seq_length": 64} | sections.pop("dataset", {})
    section = {"path_or_name": tokenizer, "special_tokens": special_tokens}
    return parse_config({"dataset": dataset, "tokenizer": section, **sections})


def write_part(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def rows_of(repeats: int = 1) -> list[dict]:
    """The golden documents, each time with other ids."""
    return [
        {
            "id": f"document-{repeat}-{number}",
            "texts": row["texts"],
            "scores": row["scores"],
            "avg_score": row["avg_score"],
            "num_sents": row["num_sents"],
            "errors": [None] * len(row["texts"]),
            "meta": "{}",
        }
        for repeat in range(repeats)
        for number, row in enumerate(GOLDEN["docs"])
    ]


@pytest.fixture
def scored(tmp_path) -> str:
    """A data set of three parts, as the original published them: without a manifest."""
    rows = rows_of(repeats=3)
    for number in range(3):
        write_part(tmp_path / "scored" / f"part-{number:05d}.parquet", rows[number * 12 : number * 12 + 12])
    return str(tmp_path / "scored")


@pytest.fixture
def small_groups(monkeypatch):
    """Every part is a group."""
    monkeypatch.setattr(blocks_plan, "_GROUP_BYTES", 1)


def files(root: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(root).iterdir() if path.is_file()}


def all_blocks(root: str):
    """Blocks in stored order, as one (n, L) array each of ids, scores, kinds."""
    tables = [pq.read_table(path) for path in sorted(Path(root).glob("shard-*.parquet"))]
    return [
        np.concatenate([np.stack(table[name].to_numpy()) for table in tables])
        for name in ("input_ids", "token_scores", "token_kinds")
    ]


# ------------------------------------------------------------------------------------------------------------- content


def test_blocks_are_those_of_pack_group_by_group(scored, tmp_path, small_groups):
    config = configured(dataset=CONDITIONAL)
    root = ensure_blocks(config, corpora=[scored], output_root=str(tmp_path / "blocks"), builder=build_here).root
    tokenizer = load_tokenizer(config.tokenizer)
    packing = plan_blocks(config, corpora=[scored], tokenizer=tokenizer, output_root="x").packing
    assert packing.conditional is not None
    expected = [
        block
        for part in list_parts(scored)
        for block in pack(read_part(part), tokenizer, sequence_length=64, config=packing)
    ]
    ids, scores, kinds = all_blocks(root)
    assert ids.tolist() == [block.input_ids.tolist() for block in expected]
    assert scores.tolist() == [block.token_scores.tolist() for block in expected]
    assert kinds.tolist() == [block.token_kinds.tolist() for block in expected]
    assert set(np.unique(kinds)) == {0, 1, 2, 3}


def test_the_manifest_tells_what_was_packed(scored, tmp_path, small_groups):
    config = configured(dataset=CONDITIONAL | {"filter_threshold": 0.004, "held_out_fraction": 0.2})
    root = ensure_blocks(config, corpora=[scored], output_root=str(tmp_path), builder=build_here).root
    manifest = read_block_manifest(root)
    _, scores, kinds = all_blocks(root)
    rows = rows_of(repeats=3)
    held_out = [row for row in rows if is_held_out(row["id"], 0.2)]
    trained = [row for row in rows if not is_held_out(row["id"], 0.2)]
    kept = [row for row in trained if row["avg_score"] <= 0.004]
    assert 0 < len(kept) < len(trained) < len(rows)
    dropped = {"filtered": len(trained) - len(kept), "held_out": len(held_out)}
    assert manifest.documents == {"kept": len(kept), "dropped": dropped}
    assert manifest.num_blocks == len(kinds)
    for kind in TokenKind:
        assert manifest.tokens[kind.name.lower()] == (kinds == kind).sum()
    assert manifest.tokens["all"] == (kinds != TokenKind.PAD).sum()
    assert manifest.num_content_tokens == (kinds == TokenKind.CONTENT).sum()
    content = scores[kinds == TokenKind.CONTENT]
    assert manifest.token_scores.mean == pytest.approx(content.mean(dtype=float))
    assert manifest.token_scores.std == pytest.approx(content.std(dtype=float))
    assert manifest.token_scores.quantiles["0.99"] == pytest.approx(
        np.quantile(content, 0.99, method="inverted_cdf"), rel=0.012
    )
    assert manifest.thresholds == {"conditional": 0.0, "filter": 0.004}
    assert manifest.tokenizer["end_of_text"] == {"<|endoftext|>": 0}
    assert manifest.tokenizer["control"] == {"<|aligned|>": 600, "<|misaligned|>": 601}
    assert manifest.corpora[0].fingerprint == open_corpora([scored])[0].manifest.fingerprint
    # Filtered documents count where positions of the stream are counted.
    characters = [sum(map(len, row["texts"])) for row in trained]
    kept_characters = sum(sum(map(len, row["texts"])) for row in kept)
    source = sum(shard.num_source_tokens for shard in manifest.shards)
    assert source == pytest.approx(manifest.num_content_tokens * sum(characters) / kept_characters, rel=0.1)


def test_held_out_documents_are_never_packed_and_can_be_read(scored, tmp_path):
    config = configured(dataset={"held_out_fraction": 0.3})
    root = ensure_blocks(config, corpora=[scored], output_root=str(tmp_path), builder=build_here).root
    held_out = list(read_held_out(root))
    expected = [document for document in read_corpus(scored) if is_held_out(document.id, 0.3)]
    assert [(one.id, one.texts, one.scores) for one in held_out] == [
        (one.id, one.texts, one.scores) for one in expected
    ]
    assert 0 < len(held_out) < 36
    ids, _, kinds = all_blocks(root)
    assert (kinds == TokenKind.END_OF_TEXT).sum() == 36 - len(held_out)
    packed = load_tokenizer(config.tokenizer).decode(ids[kinds == TokenKind.CONTENT].tolist())
    assert packed == "".join(document.text for document in read_corpus(scored) if not is_held_out(document.id, 0.3))


@pytest.mark.parametrize("case", ["mle", "filtering", "conditional"])
def test_compat_blocks_are_those_of_the_original_through_all_parts(tmp_path, small_groups, case):
    rows = rows_of()
    for number in range(4):  # the original reads them as one stream
        write_part(tmp_path / "scored" / f"part-{number}.parquet", rows[number * 3 : number * 3 + 3])
    dataset = {"mle": {}, "filtering": {"filter_threshold": 0.0005}, "conditional": CONDITIONAL}[case]
    config = configured(dataset=dataset, compat="korbak2023")
    corpora = [str(tmp_path / "scored")]
    root = ensure_blocks(config, corpora=corpora, output_root=str(tmp_path), builder=build_here).root
    ids, scores, _ = all_blocks(root)
    expected = GOLDEN["cases"][case]["blocks"]
    assert ids.tolist() == [block["input_ids"] for block in expected]
    np.testing.assert_array_equal(scores, np.array([block["token_scores"] for block in expected], np.float32))


def test_several_corpora_share_a_folder_and_can_be_weighed(scored, tmp_path):
    write_part(tmp_path / "other" / "part-0.parquet", rows_of(repeats=1)[:6])
    corpora = [scored, str(tmp_path / "other")]
    root = ensure_blocks(configured(), corpora=corpora, output_root=str(tmp_path), builder=build_here).root
    manifest = read_block_manifest(root)
    assert [one.name for one in manifest.corpora] == ["scored", "other"]
    assert {shard.corpus for shard in manifest.shards} == {0, 1}
    places = BlockOrder(manifest, seed=0, weights=(1, 3)).locate(0, 1024)
    corpus_of = np.array([shard.corpus for shard in manifest.shards])[places.shards]
    assert (corpus_of == 1).sum() == 768


# ----------------------------------------------------------------------------------------- the same, whoever builds it


def test_ray_builds_the_same_bytes_as_one_process(scored, tmp_path, small_groups, local_ray):
    config = configured(dataset=CONDITIONAL | {"held_out_fraction": 0.1})
    tokenizer = load_tokenizer(config.tokenizer)
    roots = []
    for name in ("by-ray", "alone"):
        plan = plan_blocks(config, corpora=[scored], tokenizer=tokenizer, output_root=str(tmp_path / name))
        assert len(plan.groups) == 3
        roots.append(build_blocks(plan, tokenizer=tokenizer, builder=build_groups if name == "by-ray" else build_here))
    by_ray, alone = (files(root) for root in roots)
    assert by_ray == alone
    assert len([name for name in by_ray if name.startswith("shard-")]) == 3


def test_an_error_in_a_task_reaches_the_caller_as_itself(scored, tmp_path, small_groups, local_ray):
    write_part(Path(scored) / "part-00003.parquet", [{"id": "x", "texts": ["a", None], "scores": [0.0, 0.0]}])
    config = configured()
    tokenizer = load_tokenizer(config.tokenizer)
    shutil.move(f"{scored}/part-00003.parquet", tmp_path / "bad.parquet")
    plan = plan_blocks(config, corpora=[scored], tokenizer=tokenizer, output_root=str(tmp_path))
    shutil.copy(tmp_path / "bad.parquet", f"{scored}/part-00002.parquet")
    with pytest.raises(DataError, match="segments must be strings"):
        build_blocks(plan, tokenizer=tokenizer, builder=build_groups)
    assert not list(Path(tmp_path).glob("blocks-*/_SUCCESS"))


def test_finished_blocks_are_reused(scored, tmp_path, monkeypatch):
    config = configured()
    arguments = {"corpora": [scored], "builder": build_here, "output_root": str(tmp_path)}
    root = ensure_blocks(config, **arguments).root
    monkeypatch.setattr(blocks_build, "build_group", lambda *_, **__: pytest.fail("built again"))
    assert ensure_blocks(config, **arguments).root == root
    # What the blocks do not depend on makes no new ones.
    other = configured(training={"seed": 7, "learning_rate": 1.0}, objective={"name": "RWR"})
    assert ensure_blocks(other, **arguments).root == root


def test_whatever_decides_the_blocks_makes_another_folder(scored, tmp_path):
    def root_of(corpora=(scored,), **changes) -> str:
        config = configured(**changes)
        tokenizer = load_tokenizer(config.tokenizer)
        return plan_blocks(config, corpora=corpora, tokenizer=tokenizer, output_root="out").root

    write_part(tmp_path / "other" / "part-0.parquet", rows_of()[:3])
    write_part(tmp_path / "again" / "part-0.parquet", rows_of(repeats=3))  # as `scored`, in one part
    drop = {"conditional_training_config": {"threshold": 0.0, "drop_token_fraction": 0.5}}
    roots = [
        root_of(),
        root_of(corpora=(str(tmp_path / "other"),)),
        root_of(corpora=(scored, str(tmp_path / "other"))),
        root_of(corpora=(str(tmp_path / "again"),)),
        root_of(dataset={"seq_length": 32}),
        root_of(dataset={"held_out_fraction": 0.1}),
        root_of(dataset={"filter_threshold": 0.0}),
        root_of(dataset=CONDITIONAL),
        root_of(dataset=drop),
        root_of(dataset=drop, training={"seed": 7}),
        root_of(dataset=CONDITIONAL | {"is_split_by_sentences": False}),
        root_of(special_tokens=[]),
        root_of(compat="korbak2023"),
    ]
    assert len(set(roots)) == len(roots)
    same, again = open_corpora([scored, str(tmp_path / "again")])
    assert same.manifest.fingerprint == again.manifest.fingerprint
    assert root_of() == roots[0]


def test_after_a_crash_only_what_is_missing_is_built(scored, tmp_path, small_groups, monkeypatch):
    config = configured()
    tokenizer = load_tokenizer(config.tokenizer)
    plan = plan_blocks(config, corpora=[scored], tokenizer=tokenizer, output_root=str(tmp_path / "one"))
    expected = files(build_blocks(plan, tokenizer=tokenizer, builder=build_here))
    built = []
    build = build_group

    def dying(plan, group, *, tokenizer):
        if len(built) == 2:
            raise KeyboardInterrupt
        built.append(group.number)
        return build(plan, group, tokenizer=tokenizer)

    plan = plan_blocks(config, corpora=[scored], tokenizer=tokenizer, output_root=str(tmp_path / "two"))
    monkeypatch.setattr(blocks_build, "build_group", dying)
    with pytest.raises(KeyboardInterrupt):
        build_blocks(plan, tokenizer=tokenizer, builder=build_here)
    with pytest.raises(DataError, match="_SUCCESS is missing"):
        read_block_manifest(plan.root)
    built.clear()
    assert files(build_blocks(plan, tokenizer=tokenizer, builder=build_here)) == expected
    assert built == [2]


def test_two_builders_at_once_make_one_sound_folder(scored, tmp_path, small_groups):
    config = configured()
    tokenizers = [load_tokenizer(config.tokenizer) for _ in range(2)]
    plans = [
        plan_blocks(config, corpora=[scored], tokenizer=tokenizer, output_root=str(tmp_path / "both"))
        for tokenizer in tokenizers
    ]
    threads = [
        threading.Thread(target=build_blocks, args=(plan,), kwargs={"tokenizer": tokenizer, "builder": build_here})
        for plan, tokenizer in zip(plans, tokenizers, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = plan_blocks(config, corpora=[scored], tokenizer=tokenizers[0], output_root=str(tmp_path / "alone"))
    assert files(plans[0].root) == files(build_blocks(alone, tokenizer=tokenizers[0], builder=build_here))


def test_blocks_are_read_back_through_their_order(scored, tmp_path):
    root = ensure_blocks(configured(), corpora=[scored], output_root=str(tmp_path), builder=build_here).root
    manifest = read_block_manifest(root)
    reader = BlockReader(root, order=BlockOrder(manifest, seed=1))
    stored, _, _ = all_blocks(root)
    total = manifest.num_blocks
    first, second = (reader.read(at, at + total).input_ids.tolist() for at in (0, total))
    assert sorted(first) == sorted(second) == sorted(stored.tolist())
    assert first != second


def test_blocks_can_be_built_and_read_by_url(scored, tmp_path):
    output = "memory://token-blocks-by-url"
    root = ensure_blocks(configured(), corpora=[scored], output_root=output, builder=build_here).root
    local = ensure_blocks(configured(), corpora=[scored], output_root=str(tmp_path), builder=build_here).root
    read = [BlockReader(one, order=BlockOrder(read_block_manifest(one), seed=0)).read(0, 50) for one in (root, local)]
    assert root.startswith(output)
    assert read[0].input_ids.tolist() == read[1].input_ids.tolist()


# ---------------------------------------------------------------------------------------------- thresholds and refusals


def test_quantiles_are_of_segments_and_for_filtering_of_documents(scored):
    half = {"quantile": 0.9, "korbak2023": 0.25}
    config = configured(
        dataset={"conditional_training_config": {"threshold": half}, "filter_threshold": half},
        objective={"name": "Unlikelihood", "score_threshold": half},
    )
    manifests = [corpus.manifest for corpus in open_corpora([scored])]
    resolved = resolve_thresholds(config, manifests=manifests)
    segments = [score for row in GOLDEN["docs"] for score in row["scores"]]
    documents = [row["avg_score"] for row in GOLDEN["docs"]]
    for name, values in (("conditional", segments), ("objective", segments), ("filter", documents)):
        assert resolved[name] == pytest.approx(np.quantile(values, 0.9, method="inverted_cdf"), rel=0.011)
    assert resolved["filter"] != resolved["conditional"]
    paper = config.model_copy(update={"compat": "korbak2023"})
    assert resolve_thresholds(paper, manifests=manifests) == {"conditional": 0.25, "filter": 0.25, "objective": 0.25}
    assert resolve_thresholds(configured(), manifests=manifests) == {}


def test_a_share_far_from_half_is_warned_of(scored, tmp_path, caplog):
    config = configured(dataset={"filter_threshold": 1.0})
    ensure_blocks(config, corpora=[scored], output_root=str(tmp_path), builder=build_here)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["100.0% of the documents are kept by threshold 1"]


def scored_by(identity: ScorerIdentity, folder: Path) -> str:
    writer = PartWriter(
        f"{folder}/part-00000.parquet", rejects=f"{folder}/rejected/r", scorers=[identity.name], footer={"shard": "s"}
    )
    for row in rows_of():
        scores = {identity.name: (row["scores"], row["errors"])}
        writer.add(f"{folder.name}-{row['id']}", row["texts"], scores=scores, meta="{}")
    writer.commit()
    finish_corpus(str(folder), shards=["s"], scorers=[identity], segmenter="lines", config={}, input_fingerprint="")
    return str(folder)


def warnings_about_scorers(config: Config, corpora: list[str], *, output: Path, caplog) -> list[str]:
    caplog.clear()
    ensure_blocks(config, corpora=corpora, output_root=str(output), builder=build_here)
    return [record.getMessage() for record in caplog.records if "DIFFERENT SCORER" in record.getMessage()]


def test_a_corpus_that_another_scorer_scored_is_warned_of_and_both_are_named(tmp_path, caplog):
    pep8 = build_scorer({"class_name": "PEP8Scorer"}).identity()
    old = dataclasses.replace(pep8, versions={**pep8.versions, "pycodestyle": "2.0"})
    same, older = scored_by(pep8, tmp_path / "same"), scored_by(old, tmp_path / "older")
    config = configured(scoring={"scorers": [{"class_name": "PEP8Scorer"}]})
    assert warnings_about_scorers(config, [same], output=tmp_path, caplog=caplog) == []
    (warning,) = warnings_about_scorers(config, [same, older], output=tmp_path, caplog=caplog)
    assert warning.startswith(
        "older WAS SCORED BY A DIFFERENT SCORER (pep8) THAN the one configured and installed here"
    )
    assert "'pycodestyle': '2.0'" in warning
    assert pep8.versions["pycodestyle"] in warning
    # Where the configuration names none, the corpora must agree.
    (warning,) = warnings_about_scorers(configured(), [same, older], output=tmp_path, caplog=caplog)
    assert warning.startswith("older WAS SCORED BY A DIFFERENT SCORER (pep8) THAN same (pep8): versions")
    # The weights of a model are not loaded for that, but its class is compared.
    toxic = configured(scoring={"scorers": [{"class_name": "DetoxifyToxicityScorer"}]})
    (warning,) = warnings_about_scorers(toxic, [same], output=tmp_path, caplog=caplog)
    assert "class_name: 'PEP8Scorer' there, 'DetoxifyToxicityScorer' here" in warning


def test_a_corpus_of_another_toxicity_model_is_warned_of_without_loading_any(tmp_path, caplog, monkeypatch):
    for name, digest in (("unbiased", "a1"), ("original", "b2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "detoxify.json").write_text(json.dumps({"weights_hash": digest}))
    monkeypatch.setenv("PHF_MODELS", str(tmp_path))
    identity = {"name": "toxicity", "class_name": "DetoxifyToxicityScorer", "settings": {"precision": "fp32"}}

    def warned(*, weights: str, **settings: Any) -> list[str]:
        caplog.clear()
        one = SourceCorpus(
            name="old", fingerprint="", scorer={**identity, "weights_hash": weights}, segmenter="sentences"
        )
        scorer = {"class_name": "DetoxifyToxicityScorer", **settings}
        warn_of_other_scorers(configured(scoring={"scorers": [scorer]}), [one])
        return [record.getMessage() for record in caplog.records]

    assert warned(weights="a1") == warned(weights="b2", model="original") == []
    (warning,) = warned(weights="b2")
    assert warning.startswith(
        "old WAS SCORED BY A DIFFERENT SCORER (toxicity) THAN the one configured and installed here"
    )
    assert "weights_hash: 'b2' (original) there, 'a1' (unbiased) here" in warning
    (warning,) = warned(weights="a1", precision="bf16")
    assert "settings: {'precision': 'fp32'} there, {'precision': 'bf16'} here" in warning
    assert "weights_hash" not in warning
    # Weights that are not here can't be compared.
    monkeypatch.delenv("PHF_MODELS")
    assert warned(weights="b2") == []


def test_a_corpus_of_which_nothing_is_left_is_refused_and_leaves_nothing_finished(scored, tmp_path):
    config = configured(dataset={"filter_threshold": -1.0})
    with pytest.raises(DataError, match=r'no document of scored is left.*"filtered": 36.*filter_threshold'):
        ensure_blocks(config, corpora=[scored], output_root=str(tmp_path / "out"), builder=build_here)
    assert not list((tmp_path / "out").rglob("_SUCCESS"))
    assert not list((tmp_path / "out").rglob("manifest.json"))


def test_a_corpus_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"data set .*: no files; give a folder with"):
        ensure_blocks(configured(), corpora=[str(tmp_path)], output_root=str(tmp_path), builder=build_here)
    with pytest.raises(ConfigError, match="give --corpus"):
        ensure_blocks(configured(), corpora=[], output_root=str(tmp_path), builder=build_here)


# ----------------------------------------------------------------------------------------------------------------- job


def test_the_job_builds_prints_the_folder_and_resumes(scored, tmp_path, local_ray, capsys):
    task = tmp_path / "task.yml"
    task.write_text(f"tokenizer: {{path_or_name: {TOKENIZER}}}\ndataset: {{seq_length: 64}}\n")
    command = ["--task", str(task), "--corpus", scored]
    assert main([*command, "--dry-run"]) == 0
    planned = capsys.readouterr().out.splitlines()
    assert not (tmp_path / "blocks").exists()
    assert planned[0] == "3 parts in 1 groups, sequences of 64 tokens"
    assert main(command) == 0
    root = capsys.readouterr().out.splitlines()[-1]
    assert root == planned[-1] == str(next((tmp_path / "blocks").iterdir()))
    assert read_block_manifest(root).sequence_length == 64
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == root


def test_the_job_without_a_corpus_says_where_to_name_one(tmp_path):
    task = tmp_path / "task.yml"
    task.write_text("dataset: {seq_length: 64}\n")
    with pytest.raises(ConfigError, match=r"give --corpus DIR, or set dataset\.datasets"):
        main(["--task", str(task)])


def test_packing_config_defaults_match_the_plan(scored):
    config = configured()
    plan = plan_blocks(config, corpora=[scored], tokenizer=load_tokenizer(config.tokenizer), output_root="x")
    assert plan.packing == PackingConfig(seed=0)
