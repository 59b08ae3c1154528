"""From comparisons in a file to an SFT model and a DPO model: one worker in this process, without Ray."""

import math
import shutil

import pytest
from feedback_runs import WORDS, make_config, train, write_feedback
from tiny_models import tiny_tokenizer
from train_runs import metrics

from phf_ray.blocks.manifest import read_block_manifest
from phf_ray.blocks.plan import plan_blocks
from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.config import parse_config
from phf_ray.errors import ConfigError
from phf_ray.generation.engine import generate
from phf_ray.generation.load import load_engine
from phf_ray.generation.requests import GenerationRequest
from phf_ray.training.start import initial_model
from phf_ray.training.token_count import count_tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_feedback(tmp_path_factory.mktemp("feedback"))


@pytest.fixture(scope="module")
def sft(folder):
    """The checkpoint of a model that was finetuned on the better answers."""
    run, start = train(
        folder,
        "sft",
        make_config(folder, objective={"name": "MLE"}, num_epochs=24, learning_rate=0.02),
        corpus="examples",
    )
    start()
    return run


def preference_config(folder, name="DPO", **training):
    return make_config(folder, objective={"name": name, "beta": 0.1}, num_epochs=2, learning_rate=1e-3, **training)


PREFERENCES = pytest.mark.parametrize(("name", "corpus"), [("DPO", "pairs"), ("KTO", "labelled")])


def test_sft_learns_answers_and_measures_them_on_held_out_prompts(folder, sft):
    rows = [row for row in metrics(sft.path) if "eval/perplexity" in row]
    assert rows[-1]["eval/perplexity"] < 5
    manifest = read_block_manifest(next((folder / "blocks").glob("blocks-*")).as_posix())
    kept, held_out = manifest.documents["kept"], manifest.documents["dropped"]["held_out"]
    assert kept + held_out == len(WORDS) ** 2
    assert 10 < held_out < 50
    request = GenerationRequest(prompt="fox and house: ", max_tokens=20, temperature=0)
    (answer,) = generate(load_engine(sft.latest_checkpoint()), [request])
    assert "again" in answer.text
    assert answer.finish_reason == "stop"


def test_dpo_starts_at_its_reference_and_learns_the_preference(folder, sft):
    config = preference_config(folder)
    run, start = train(folder, "dpo", config, corpus="pairs", checkpoint_path=str(sft.latest_checkpoint()))
    start()
    rows = metrics(run.path)
    first = next(row for row in rows if "train/loss" in row)
    # Without dropout, which the configuration has: the policy is its reference.
    assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["objective/train/rewards/margins"] == pytest.approx(0, abs=1e-5)
    last = next(row for row in reversed(rows) if "objective/eval/rewards/accuracies" in row)
    assert last["objective/eval/rewards/accuracies"] > 0.9
    assert last["objective/eval/rewards/margins"] > 0.3


def test_kto_starts_at_its_reference_and_learns_which_answers_are_good(folder, sft):
    config = preference_config(folder, "KTO")
    run, start = train(folder, "kto", config, corpus="labelled", checkpoint_path=str(sft.latest_checkpoint()))
    start()
    rows = metrics(run.path)
    first = next(row for row in rows if "train/loss" in row)
    assert first["train/loss"] == pytest.approx(0.5, abs=1e-5)
    assert first["objective/train/kl"] == pytest.approx(0, abs=1e-4)
    last = next(row for row in reversed(rows) if "objective/eval/rewards/margins" in row)
    assert last["objective/eval/rewards/margins"] > 0.3
    assert last["objective/eval/kl"] >= 0
    assert "eval/perplexity" not in last


@PREFERENCES
def test_a_stopped_run_resumes_bit_for_bit(folder, sft, name, corpus):
    config = preference_config(folder, name, save_steps=3)
    checkpoint = str(sft.latest_checkpoint())
    whole, start_whole = train(folder, f"whole-{name}", config, corpus=corpus, checkpoint_path=checkpoint)
    start_whole()
    parts, start_parts = train(folder, f"parts-{name}", config, corpus=corpus, checkpoint_path=checkpoint)
    start_parts()
    newest = parts.latest_checkpoint()
    for path in sorted(parts.checkpoints.iterdir())[1:]:
        shutil.rmtree(path)
    (parts.path / "summary.json").unlink()
    start_parts()
    assert parts.latest_checkpoint() == newest
    weights = [(run.latest_checkpoint() / "model.safetensors").read_bytes() for run in (whole, parts)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("corpus", "changes"),
    [("pairs", {}), ("pairs", {"reference_free": True, "length_normalised": True}), ("labelled", {"name": "KTO"})],
)
def test_text_is_measured_beside_preferences_without_a_loss(folder, sft, corpus, changes):
    (folder / "text").mkdir(exist_ok=True)
    for number in range(4):
        (folder / "text" / f"{number}.txt").write_text("The quick brown fox. " * 10)
    values = preference_config(folder).model_dump()
    values["objective"] = {"name": "DPO", **changes}
    values["training"]["num_epochs"] = 0.5
    config = parse_config(values | {"dataset": values["dataset"] | {"eval_datasets": {"text": str(folder / "text")}}})
    name = f"measured-{corpus}-{len(changes)}"
    run, start = train(folder, name, config, corpus=corpus, checkpoint_path=str(sft.latest_checkpoint()))
    start()
    (row,) = [row for row in metrics(run.path) if "eval/text/bits_per_byte" in row]
    assert row["eval/text/bits_per_byte"] > 0
    assert row["eval/text/loss"] is None or math.isnan(row["eval/text/loss"])


def test_a_dry_run_counts_the_blocks_that_are_built(folder, sft):
    config = make_config(folder, objective={"name": "MLE"})
    tokenizer = load_tokenizer(config.tokenizer)
    planned = plan_blocks(
        config, corpora=[str(folder / "examples")], tokenizer=tokenizer, output_root=str(folder / "elsewhere")
    )
    counted = count_tokens(planned, tokenizer=tokenizer)
    built = read_block_manifest(str(folder / "blocks" / planned.root.rpartition("/")[2]))
    assert (counted.is_exact, counted.num_blocks) == (True, built.num_blocks)


@pytest.mark.parametrize(
    ("objective", "corpus", "changes", "says"),
    [
        ({"name": "MLE"}, ["pairs"], {}, "objective MLE learns from examples, but .*pairs holds comparisons"),
        ({"name": "DPO"}, ["examples"], {}, "objective DPO learns from comparisons, but .*examples holds examples"),
        ({"name": "RWR"}, ["examples"], {}, "RWR needs scores, which feedback"),
        ({"name": "DPO"}, ["tokenizer"], {}, "tokenizer is no feedback corpus; make one"),
        ({"name": "MLE"}, ["examples", "tokenizer"], {}, "tokenizer is no feedback corpus, but others are"),
        ({"name": "MLE"}, ["examples", "pairs"], {}, "several kinds"),
        ({"name": "DPO"}, ["pairs"], {"dataset": {"max_length": 50}}, "50 x 2 answers do not fit .* seq_length to 100"),
        ({"name": "DPO"}, ["pairs"], {"dataset": {"prompt_template": "nowhere"}}, "template nowhere does not exist"),
        ({"name": "DPO"}, ["pairs"], {"training": {"document_mask": False}}, "none may see another"),
    ],
)
def test_feedback_that_the_objective_cannot_learn_from_is_refused(folder, objective, corpus, changes, says):
    values = make_config(folder, objective=objective).model_dump()
    for section, keys in changes.items():
        values[section] |= keys
    config = parse_config(values)
    with pytest.raises(ConfigError, match=says):
        plan_blocks(
            config,
            corpora=[str(folder / name) for name in corpus],
            tokenizer=load_tokenizer(config.tokenizer),
            output_root=str(folder / "elsewhere"),
        )


def test_a_tokenizer_that_is_not_the_models_own_is_refused(folder, sft):
    tiny_tokenizer(vocab_size=290).save_pretrained(folder / "other")
    config = make_config(folder, objective={"name": "MLE"})
    values = config.model_dump()
    values["tokenizer"]["path_or_name"] = str(folder / "other")
    with pytest.raises(ConfigError, match=r"another tokenizer than that of .*remove tokenizer\.path_or_name"):
        initial_model(
            parse_config(values),
            checkpoint_path=str(sft.latest_checkpoint()),
            tokenizer=load_tokenizer(parse_config(values).tokenizer),
        )


def test_without_a_tokenizer_the_models_own_is_taken(folder, sft):
    config = parse_config({"model": {"from_scratch": False, "path_or_name": "somebody/model"}})
    assert config.with_tokenizer_of("somebody/model", revision="abc").tokenizer.path_or_name == "somebody/model"
    assert config.with_tokenizer_of("somebody/model", revision="abc").tokenizer.revision == "abc"
    assert config.with_tokenizer_of(None) == config
    named = make_config(folder, objective={"name": "MLE"})
    assert named.with_tokenizer_of("somebody/model") == named
