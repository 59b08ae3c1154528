"""lm-eval 0.4.13 as its users run it, against a served checkpoint, with the tasks of configs/lm_eval."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch
from lm_eval_tasks import load_tasks
from places import ROOT
from server_process import Server
from tiny_models import write_checkpoint, write_detoxify
from transformers import AutoModelForCausalLM, AutoTokenizer

CLIENTS = Path(sys.prefix) / "clients"
CONTEXT = 96
KEY = "a-secret"

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not (CLIENTS / ".installed").is_file(),
        reason="lm-eval is not installed; `make clients` does, where a package registry can be reached",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("lm_eval")


@pytest.fixture(scope="module")
def checkpoints(folder) -> dict[str, Path]:
    return {
        "mle": write_checkpoint(folder / "mle", seed=1, padded=False),
        "cond": write_checkpoint(folder / "cond", control="retag", seed=2),
    }


@pytest.fixture(scope="module")
def server(folder, checkpoints):
    write_detoxify(folder / "models" / "unbiased")
    models = [part for name, path in checkpoints.items() for part in ("--model", f"{name}={path}")]
    settings = {"PHF_MODELS": str(folder / "models"), "PHF_API_KEYS": KEY}
    server = Server(*models, "--chat-template", "mle=plain", "--scorers", "pep8,toxicity", "--port", "0", **settings)
    yield server
    assert server.stop() == 0


def lm_eval(folder: Path, *arguments: str, **environment: str) -> tuple[dict, dict[str, list[dict]]]:
    """Results and samples, by task. In an empty directory, so that nothing of ours is found by accident."""
    output = folder / f"run-{len(list(folder.glob('run-*')))}"
    output.mkdir()
    command = [sys.executable, "-m", "lm_eval", "run", *arguments, "--include_path", str(ROOT / "configs" / "lm_eval")]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PHF_", "PERSPECTIVE_"))}
    done = subprocess.run(
        [*command, "--output_path", str(output), "--log_samples"],
        cwd=output,
        env={
            **inherited,
            "PYTHONPATH": str(CLIENTS),
            "HF_HOME": str(folder / "huggingface"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            # lm-eval's for completions, and that of our tasks for scores; for the tokenizer it takes an argument.
            "OPENAI_API_KEY": KEY,
            "PHF_SCORES_KEY": KEY,
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (results,) = output.rglob("results_*.json")
    samples = {}
    for path in output.rglob("samples_*.jsonl"):
        task = path.name.removeprefix("samples_").rpartition("_")[0]
        lines = sorted(map(json.loads, path.read_text().splitlines()), key=lambda sample: sample["doc_id"])
        samples[task] = lines
    return json.loads(results.read_text())["results"], samples


PAIRS = ("--tasks", "phf_pep8_pairs")
# Short headers: where the prompt must be cut, lm-eval's two models cut it at different places.
FUNCTIONS = (
    *("--tasks", "phf_functions", "--gen_kwargs", "max_gen_toks=16"),
    *("--samples", json.dumps({"phf_functions": [4, 5, 6, 7, 8, 9]})),
)


def over_http(folder: Path, server: Server, model: str, *arguments: str) -> tuple[dict, dict[str, list[dict]]]:
    """As a checkpoint is evaluated by someone who has no file of it. Each of the two models has its own tokenizer, so
    the URL names the one that is meant."""
    base_url = f"{server.url}/models/{model.partition(':')[0]}/v1/completions"
    settings = f"model={model},base_url={base_url},tokenizer_backend=remote,auth_token={KEY}"
    settings += f",max_length={CONTEXT},num_concurrent=4"
    return lm_eval(
        folder,
        *("--model", "local-completions", "--model_args", settings, *arguments),
        PHF_SCORES_URL=server.url,
    )


def at_home(folder: Path, server: Server, checkpoint: Path, *arguments: str) -> tuple[dict, dict[str, list[dict]]]:
    settings = f"pretrained={checkpoint},dtype=float32,max_length={CONTEXT}"
    return lm_eval(
        folder,
        *("--model", "hf", "--model_args", settings, "--device", "cpu", "--batch_size", "8", *arguments),
        PHF_SCORES_URL=server.url,
    )


def loglikelihoods(samples: dict[str, list[dict]]) -> list[tuple[float, bool]]:
    """Of every choice of every pair: logarithm of its probability, and whether it is what greedy decoding gives."""
    return [
        (float(logprob), greedy == "True")
        for sample in samples["phf_pep8_pairs"]
        for ((logprob, greedy),) in sample["resps"]
    ]


@pytest.fixture(scope="module")
def plain(folder, server):
    return over_http(folder, server, "cond:none", *PAIRS)


def test_loglikelihoods_over_http_are_those_of_the_checkpoint_itself(folder, server, checkpoints, plain):
    results, samples = plain
    expected_results, expected_samples = at_home(folder, server, checkpoints["cond"], *PAIRS)
    found, expected = loglikelihoods(samples), loglikelihoods(expected_samples)
    assert len(found) == 48
    assert [logprob for logprob, _ in found] == pytest.approx([logprob for logprob, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert results["phf_pep8_pairs"]["acc,none"] == expected_results["phf_pep8_pairs"]["acc,none"]


def test_generations_over_http_are_those_of_the_checkpoint_itself(folder, server, checkpoints):
    results, samples = over_http(folder, server, "mle", *FUNCTIONS)
    expected_results, expected_samples = at_home(folder, server, checkpoints["mle"], *FUNCTIONS)
    found, expected = (
        [text for sample in drawn["phf_functions"] for ((text,),) in [sample["resps"]]]
        for drawn in (samples, expected_samples)
    )
    assert found == expected
    assert len(set(found)) > 1
    violations = results["phf_functions"]["score_mean,greedy"]
    assert violations == expected_results["phf_functions"]["score_mean,greedy"] > 0


def test_chats_over_http_are_the_completions_of_their_templates_words(folder, server):
    settings = f"model=mle,base_url={server.url}/v1/chat/completions,auth_token={KEY},num_concurrent=4"
    _, samples = lm_eval(
        *(folder, "--model", "local-chat-completions", "--model_args", settings, "--apply_chat_template", *FUNCTIONS),
        PHF_SCORES_URL=server.url,
    )
    headers = {"Authorization": f"Bearer {KEY}"}
    for sample in samples["phf_functions"]:
        ((text,),) = sample["resps"]
        stop = ["\ndef ", "\nclass "]
        body = {"model": "mle", "prompt": sample["doc"]["text"], "temperature": 0, "max_tokens": 16, "stop": stop}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=60).json()
        assert text == answer["choices"][0]["text"]
    assert len(samples["phf_functions"]) == 6


ROLLING = """
import json, sys
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

model = LocalCompletionsAPI(
    base_url=sys.argv[1], model="mle", tokenizer_backend="remote", auth_token=sys.argv[2], max_length=int(sys.argv[3]),
    num_concurrent=4,
)
requests = [Instance("loglikelihood_rolling", {}, (text,), number) for number, text in enumerate(json.load(sys.stdin))]
print(json.dumps({"length": model.max_length, "sums": model.loglikelihood_rolling(requests, disable_tqdm=True)}))
"""


def test_a_text_longer_than_the_context_has_the_loglikelihood_of_its_windows(server, checkpoints):
    sources = [Path(json.__file__).with_name(name).read_text() for name in ("decoder.py", "scanner.py", "tool.py")]
    texts = [sources[0][:1500], sources[1][:700], sources[2][:900], "x = 1"]
    done = subprocess.run(
        [sys.executable, "-c", ROLLING, f"{server.url}/models/mle/v1/completions", KEY, str(CONTEXT)],
        env={**os.environ, "PYTHONPATH": str(CLIENTS), "OPENAI_API_KEY": KEY, "HF_HUB_OFFLINE": "1"},
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    model = AutoModelForCausalLM.from_pretrained(checkpoints["mle"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["mle"])
    window = found["length"] - 1
    assert 1 < window < CONTEXT
    expected, lengths = [], []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        lengths.append(len(ids))
        total = 0.0
        for begin in range(0, len(ids), window):
            end = min(begin + window, len(ids))
            # Each window sees the token before it; the last is moved back, and only its new tokens count.
            given = ids[max(0, end - window - 1) : end] if begin else [tokenizer.eos_token_id, *ids[:end]]
            with torch.inference_mode():
                logprobs = model(torch.tensor([given])).logits[0].log_softmax(-1)
            total += sum(
                float(logprobs[place - 1, given[place]]) for place in range(len(given) - (end - begin), len(given))
            )
        expected.append(total)
    assert found["sums"] == pytest.approx(expected, abs=2e-3, rel=1e-5)
    assert lengths[0] > 3 * CONTEXT
    assert lengths[3] < CONTEXT


def test_good_token_changes_likelihoods_and_toxicity_is_the_maximum_of_25_samples(folder, server, plain, monkeypatch):
    results, samples = over_http(
        *(folder, server, "cond:good", "--tasks", "phf_pep8_pairs", "phf_toxicity"),
        *("--samples", json.dumps({"phf_toxicity": [0, 1, 2], "phf_pep8_pairs": list(range(24))})),
        # The samples have no seed: none of them may be empty, and so unscored, by chance.
        *("--gen_kwargs", "min_tokens=8"),
    )
    without, good = loglikelihoods(plain[1]), loglikelihoods(samples)
    assert all(abs(first - second) > 1e-3 for (first, _), (second, _) in zip(without, good, strict=True))

    monkeypatch.setenv("PERSPECTIVE_URL", server.url)
    monkeypatch.setenv("PHF_SCORES_KEY", KEY)
    ours = httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
    maxima = []
    for sample in samples["phf_toxicity"]:
        (texts,) = sample["resps"]
        assert len(texts) == 25
        assert len(set(texts)) > 20
        body = {"scorer": "toxicity", "input": texts}
        scores = [entry["score"] for entry in ours.post("/v1/scores", json=body).json()["data"]]
        assert sample["score_max"] == pytest.approx(max(scores), abs=1e-5)
        assert sample["score_mean"] == pytest.approx(sum(scores) / 25, abs=1e-5)
        assert sample["flagged"] == float(max(scores) >= 0.5)
        assert load_tasks().scores("toxicity", texts) == pytest.approx(scores, abs=1e-5)
        maxima.append(max(scores))
    found = results["phf_toxicity"]
    assert found["score_max,samples"] == pytest.approx(sum(maxima) / 3, abs=1e-5)
    assert found["unscored,samples"] == 0
