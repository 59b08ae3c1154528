import json
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from detoxify.detoxify import MODEL_URLS
from places import ROOT
from tiny_detoxify import CLASSES, load_original, mixed_texts, write_base, write_published

from jobs import fetch_models
from phf_ray.errors import ConfigError, DataError, ServiceError
from phf_ray.records import Scored
from phf_ray.scorers.build import SCORERS, SHORT_NAMES, build_scorer, on_cpu, scorer_class
from phf_ray.scorers.classifier import batches_by_tokens
from phf_ray.scorers.toxicity import PUBLISHED_FILES

AWKWARD = [
    "a",
    "",
    "\n",
    "\x00",
    "\t\x0c\r\n\u2028",
    "\u6587\u5b57",
    "\U0001f600\u200d",
    "((((((",
    "<s></s><mask>",
    "word " * 300,
    "x" * 100_000,
]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_base(tmp_path_factory.mktemp("roberta"))


@pytest.fixture(scope="module")
def checkpoint(base, tmp_path_factory) -> Path:
    return write_published(tmp_path_factory.mktemp("published"), base)


@pytest.fixture(scope="module")
def models(base, checkpoint, tmp_path_factory) -> Path:
    """The folder that jobs.fetch_models makes of the checkpoint, from a URL."""
    output = tmp_path_factory.mktemp("models")
    fetch_models.main(["--output", str(output), "--from", checkpoint.as_uri(), "--config", str(base)])
    return output


@pytest.fixture(scope="module")
def scorer(models):
    return build_scorer({"class_name": "DetoxifyToxicityScorer", "path": str(models / "unbiased"), "device": "cpu"})


@pytest.fixture(scope="module")
def reference(checkpoint, base, tmp_path_factory):
    return load_original(checkpoint, base, tmp_path_factory.mktemp("with_classes"))


def test_scores_equal_detoxify_one_text_at_a_time(scorer, reference):
    texts = mixed_texts(60) + AWKWARD
    expected = [reference.predict(text) for text in texts]
    found = scorer.class_scores(texts)
    for name in CLASSES:
        np.testing.assert_allclose([scores[name] for scores in found], [scores[name] for scores in expected], atol=1e-5)
    assert scorer.score_texts(texts) == [scores["toxicity"] for scores in found]
    assert np.std([scores["toxicity"] for scores in expected]) > 0.01


def test_all_classes_are_kept_in_their_order(scorer):
    [scores] = scorer.class_scores(["the cat"])
    assert list(scores) == CLASSES == scorer.class_names


def test_a_single_text_is_scored_as_among_others(scorer):
    texts = mixed_texts(20)
    together = scorer.score_texts(texts)
    alone = [scorer.score_texts([text])[0] for text in texts]
    backwards = scorer.score_texts(texts[::-1])[::-1]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together, backwards, atol=1e-5)
    assert scorer.score_all([]) == []


def test_texts_over_the_limit_of_the_model_are_counted(scorer):
    before = scorer.num_truncated
    # A byte that is in no word is a token of its own; the start and the end take two of the 64.
    limit = "z" * 62
    scorer.score_all([limit])
    assert scorer.num_truncated == before
    scorer.score_all(["the cat", limit + "z", "word " * 5000])
    assert scorer.num_truncated == before + 2


def test_a_lone_surrogate_has_a_reason_and_the_others_a_score(scorer):
    first, bad, last = scorer.score_all(["the cat", "\ud800", "a mat"])
    assert bad == Scored(None, "UnicodeEncodeError: the text has a lone surrogate")
    np.testing.assert_allclose([first.score, last.score], scorer.score_texts(["the cat", "a mat"]), atol=1e-5)
    assert scorer.class_scores(["\ud800"]) == [None]


def test_an_output_that_is_not_a_number_is_no_score(models):
    broken = build_scorer({"class_name": "DetoxifyToxicityScorer", "path": str(models / "unbiased"), "device": "cpu"})
    with torch.no_grad():
        broken._classifier._model.classifier.out_proj.bias.fill_(float("nan"))
    assert broken.score_all(["the"]) == [Scored(None, "not_finite: the model's output is not a number")]


def test_batches_hold_a_bounded_number_of_tokens_and_every_text():
    rng = random.Random(1)
    lengths = [rng.choice([1, 3, 10, 64]) for _ in range(500)] + [4000]
    batches = list(batches_by_tokens(lengths, tokens_per_batch=256))
    assert sorted(index for batch in batches for index in batch) == list(range(501))
    costs = [len(batch) * max(lengths[index] for index in batch) for batch in batches]
    assert costs[0] == 4000
    assert max(costs[1:]) <= 256
    assert sum(costs) < 1.1 * sum(lengths)
    assert list(batches_by_tokens([], tokens_per_batch=8)) == []


def test_a_text_that_would_be_mostly_padding_is_in_another_batch():
    assert list(batches_by_tokens([3, 200, 190, 500, 4], tokens_per_batch=1024)) == [[3], [1, 2], [4, 0]]


def test_no_forward_pass_exceeds_the_token_budget(models):
    small = build_scorer(
        {
            "class_name": "DetoxifyToxicityScorer",
            "path": str(models / "unbiased"),
            "device": "cpu",
            "tokens_per_batch": 128,
        }
    )
    shapes = []
    small._classifier._model.register_forward_pre_hook(
        lambda module, arguments, named: shapes.append(named["input_ids"].shape), with_kwargs=True
    )
    small.score_all(mixed_texts(100))
    assert max(rows * columns for rows, columns in shapes) <= 128
    assert len(shapes) > 10


def test_texts_are_tokenized_while_the_model_computes(models, monkeypatch):
    scorer = build_scorer(
        {"class_name": "DetoxifyToxicityScorer", "path": str(models / "unbiased"), "device": "cpu"}
        | {"tokens_per_batch": 64}
    )
    texts = mixed_texts(60)
    alone = [scorer.score_texts([text])[0] for text in texts]
    second = threading.Event()
    tokenize, run = scorer._classifier._tokenize, scorer._classifier._run
    threads = []

    def tokenized(chunk):
        threads.append(threading.get_ident())
        if len(threads) == 2:
            second.set()
        return tokenize(chunk)

    def computed(token_ids):
        assert second.wait(10), "the second chunk is not tokenized before the first is computed"
        return run(token_ids)

    monkeypatch.setattr(scorer._classifier, "_tokenize", tokenized)
    monkeypatch.setattr(scorer._classifier, "_run", computed)
    np.testing.assert_allclose(scorer.score_texts(texts), alone, atol=1e-5)
    assert len(threads) > 2
    assert threading.get_ident() not in threads


def test_a_checkpoint_file_and_the_fetched_folder_are_one_scorer(checkpoint, base, scorer):
    direct = build_scorer(
        {"class_name": "DetoxifyToxicityScorer", "path": str(checkpoint), "config_path": str(base), "device": "cpu"}
    )
    assert direct.identity() == scorer.identity()
    assert direct.score_texts(["the cat sat"]) == scorer.score_texts(["the cat sat"])
    assert len(direct.identity().weights_hash) == 64


def test_other_weights_are_another_scorer(models, scorer):
    other = build_scorer(
        {"class_name": "DetoxifyToxicityScorer", "path": str(models / "unbiased"), "precision": "bf16"}
    )
    assert other.identity() != scorer.identity()
    np.testing.assert_allclose(other.score_texts(["the cat"]), scorer.score_texts(["the cat"]), atol=0.05)


def test_the_environment_names_the_models_for_configs_that_do_not(models, scorer, monkeypatch):
    monkeypatch.setenv("PHF_MODELS", str(models))
    found = build_scorer({"class_name": "DetoxifyToxicityScorer"})
    assert found.identity() == scorer.identity()


def test_without_weights_the_error_says_how_to_fetch_them(monkeypatch, tmp_path, checkpoint):
    monkeypatch.delenv("PHF_MODELS", raising=False)
    with pytest.raises(ConfigError, match=r"python -m jobs\.fetch_models --output DIR"):
        build_scorer({"class_name": "DetoxifyToxicityScorer"})
    with pytest.raises(ConfigError, match=r"python -m jobs\.fetch_models --output DIR"):
        build_scorer({"class_name": "DetoxifyToxicityScorer", "path": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match=r"python -m jobs\.fetch_models --output DIR"):
        build_scorer({"class_name": "DetoxifyToxicityScorer", "path": str(tmp_path)})
    with pytest.raises(ConfigError, match="set config_path"):
        build_scorer({"class_name": "DetoxifyToxicityScorer", "path": str(checkpoint)})


def test_changed_weights_are_refused(models, tmp_path):
    folder = tmp_path / "changed"
    folder.mkdir()
    for file in (models / "unbiased").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(DataError, match="fetch the model again"):
        build_scorer({"class_name": "DetoxifyToxicityScorer", "path": str(folder)})


class Payload:
    def __reduce__(self):
        return (print, ("code of the checkpoint runs",))


def test_a_checkpoint_that_holds_code_is_refused(tmp_path, base, capsys):
    torch.save({"config": Payload(), "state_dict": {}}, tmp_path / "bad.ckpt")
    with pytest.raises(DataError, match="plain tensors"):
        build_scorer(
            {"class_name": "DetoxifyToxicityScorer", "path": str(tmp_path / "bad.ckpt"), "config_path": str(base)}
        )
    assert "runs" not in capsys.readouterr().out


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, base):
    (tmp_path / "noise.ckpt").write_bytes(b"noise")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.ckpt")
    for name, message in [("noise.ckpt", "can't be read"), ("other.ckpt", "is not a Detoxify checkpoint")]:
        with pytest.raises(DataError, match=message):
            build_scorer(
                {"class_name": "DetoxifyToxicityScorer", "path": str(tmp_path / name), "config_path": str(base)}
            )


def test_weights_that_do_not_fit_the_config_are_refused(checkpoint, base, tmp_path):
    config = transformers.RobertaConfig.from_pretrained(base, num_hidden_layers=3)
    config.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((base / name).read_bytes())
    with pytest.raises(DataError, match=r"RobertaForSequenceClassification.*the weights lack"):
        build_scorer({"class_name": "DetoxifyToxicityScorer", "path": str(checkpoint), "config_path": str(tmp_path)})


def test_a_checkpoint_with_a_wrapper_s_names_is_the_same_scorer(checkpoint, base, scorer, tmp_path):
    stored = torch.load(checkpoint, weights_only=True)
    stored["state_dict"] = {f"module.{name}": weight for name, weight in stored["state_dict"].items()}
    torch.save(stored, tmp_path / "wrapped.ckpt")
    config = {"class_name": "DetoxifyToxicityScorer", "config_path": str(base), "device": "cpu"}
    assert build_scorer({**config, "path": str(tmp_path / "wrapped.ckpt")}).identity() == scorer.identity()
    next(iter(stored["state_dict"].values()))[0] = float("nan")
    torch.save(stored, tmp_path / "nan.ckpt")
    with pytest.raises(DataError, match="NaN or infinite"):
        build_scorer({**config, "path": str(tmp_path / "nan.ckpt")})


def test_the_fetched_folder_says_where_it_came_from(models, checkpoint):
    description = json.loads((models / "unbiased" / "detoxify.json").read_text())
    assert description["class_names"] == CLASSES
    assert description["sha256"].startswith(checkpoint.stem.rsplit("-", 1)[1])
    assert description["source"] == checkpoint.as_uri()
    assert [file.name for file in models.iterdir()] == ["unbiased"]
    assert (models / "unbiased" / "model.safetensors").is_file()


def test_fetching_again_keeps_what_is_there(models, base, capsys):
    before = (models / "unbiased" / "model.safetensors").stat().st_mtime_ns
    fetch_models.main(["--output", str(models), "--from", "file:///no/such/file", "--config", str(base)])
    assert (models / "unbiased" / "model.safetensors").stat().st_mtime_ns == before


def test_a_damaged_download_leaves_nothing(checkpoint, base, tmp_path):
    damaged = tmp_path / "toxic_debiased-00000000.ckpt"
    damaged.write_bytes(checkpoint.read_bytes())
    with pytest.raises(DataError, match="its name says 00000000"):
        fetch_models.main(["--output", str(tmp_path / "out"), "--from", str(damaged), "--config", str(base)])
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_that_is_not_there_is_one_clear_error(tmp_path, base):
    with pytest.raises(ServiceError, match="--from FILE --config FOLDER"):
        fetch_models.main(["--output", str(tmp_path / "out"), "--from", str(tmp_path / "none.ckpt")])


def test_without_internet_the_job_ends_with_one_line(checkpoint, tmp_path):
    # The checkpoint names roberta-base, whose config is on the hub.
    command = [sys.executable, "-m", "jobs.fetch_models", "--output", str(tmp_path / "out"), "--from", str(checkpoint)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == ServiceError.exit_code
    assert "name a folder that has both by --config FOLDER" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_dry_run_names_the_published_file(tmp_path, capsys):
    fetch_models.main(["--output", str(tmp_path / "out"), "--dry-run"])
    assert "toxic_debiased-c7548aa0.ckpt" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_one_file_can_not_be_two_models(tmp_path):
    with pytest.raises(ConfigError, match="name one with --models"):
        fetch_models.main(["--output", str(tmp_path), "--models", "unbiased", "original", "--from", "x.ckpt"])


def test_every_short_name_is_a_scorer():
    assert set(SHORT_NAMES.values()) <= set(SCORERS)


def test_all_scorers_that_run_on_devices_can_be_told_to_run_on_a_cpu():
    on_devices = {name for name in SCORERS if "device" in scorer_class(name).Settings.model_fields}
    told = {name for name in SCORERS if on_cpu({"class_name": name}) == {"class_name": name, "device": "cpu"}}
    assert told == on_devices
    assert on_devices == {"DetoxifyToxicityScorer", "RewardModelScorer", "SequenceClassifierScorer"}


def test_weights_that_detoxify_has_downloaded_are_found(checkpoint, base, scorer, tmp_path, monkeypatch):
    monkeypatch.delenv("PHF_MODELS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    config = {"class_name": "DetoxifyToxicityScorer", "device": "cpu"}
    with pytest.raises(
        ConfigError, match=r"hub/checkpoints/toxic_debiased-c7548aa0\.ckpt does not exist; let `Detoxify"
    ):
        build_scorer(config)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True)
    stored = torch.load(checkpoint, weights_only=True)
    # Detoxify's own cache has config and tokenizer under their name on the hub.
    stored["config"]["arch"]["args"]["model_type"] = str(base)
    torch.save(stored, folder / PUBLISHED_FILES["unbiased"])
    assert build_scorer(config).identity() == scorer.identity()


def test_published_files_have_detoxify_s_names():
    assert {name: url.rpartition("/")[2] for name, url in MODEL_URLS.items()} == PUBLISHED_FILES
