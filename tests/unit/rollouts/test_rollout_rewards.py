"""Rewards by every kind of spec: higher is better, a failure has a reason, and the policy's words reach the judge."""

import json
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_server import listening
from judge_server import judge_server
from tiny_models import tiny_sentencepiece, write_checkpoint
from tiny_rewards import write_reward_model

from phf_ray.errors import ConfigError
from phf_ray.generation.chat.prompts import InstructionPrompt, TextPrompt
from phf_ray.generation.chat.templates import load_template
from phf_ray.judging.question import Failure
from phf_ray.rollouts.prompts import rollout_prompt
from phf_ray.rollouts.rewards import AnsweredPrompt, build_rewarder, build_rewarders, check_spec, named_rewards
from phf_ray.rollouts.rewards.identities import spec_identity
from phf_ray.runs.directory import RunDirectory
from phf_ray.scorers.build import build_scorer
from serve.api.application import build_app
from serve.backends import Backend
from serve.engines.scorer import LocalScorer
from serve.keys import KeyRing
from serve.schemas import HealthResponse
from serve.settings import ServedScorer

ADD = rollout_prompt(InstructionPrompt("Add", "1 2"), template=load_template("alpaca"))
SING = rollout_prompt(InstructionPrompt("Sing"), template=load_template("alpaca"))


def answered(*texts, prompt=ADD):
    return [AnsweredPrompt(prompt, text, "stop") for text in texts]


def rewarder(text):
    [spec] = named_rewards(text, option="--reward")
    check_spec(spec, option="--reward")
    return build_rewarder(spec)


@pytest.mark.parametrize(("rule", "rewards"), [("longer", [3.0, 5.0]), ("shorter", [-3.0, -5.0])])
def test_rules(rule, rewards):
    assert rewarder(rule).rewards(answered("abc", "abcde")) == rewards


def test_a_scorer_enters_as_minus_its_score():
    bad, good = "import os, sys\nx=1\n", "import os\n"
    scores = build_scorer({"class_name": "PEP8Scorer"}).score_texts([bad, good])
    assert scores[0] > 0
    assert rewarder("pep8").rewards(answered(bad, good)) == [-scores[0], 0.0]
    assert str(rewarder("pep8").rewards(answered(good))[0]) == "0.0"


def test_a_scorer_may_see_the_prompt_and_the_answer_as_one_text():
    prompt = rollout_prompt(TextPrompt("def f(a):\n"), template=None)
    text = "{scorer: {class_name: 'fakes:LengthScorer'}, use_prompt_for_scoring: %s}"
    assert rewarder(text % "true").rewards(answered("  pass", prompt=prompt)) == [-16.0]
    assert rewarder(text % "false").rewards(answered("  pass", prompt=prompt)) == [-6.0]


def test_a_text_that_breaks_the_scorer_fails_alone():
    said = rewarder("{scorer: {class_name: 'fakes:LengthScorer'}}").rewards(answered("a", "RAISE", "FAIL", "abc"))
    assert [said[0], said[3]] == [-1.0, -3.0]
    assert said[1] == Failure("RuntimeError: the scorer has a bug")
    assert said[2] == Failure("unlucky: the text says FAIL")


def test_a_reward_model_puts_the_instruction_into_its_own_words(tmp_path):
    folder = str(write_reward_model(tmp_path / "reward", template="plain"))
    scorer = build_scorer({"class_name": "RewardModelScorer", "path": folder, "device": "cpu"})
    wanted = -scorer.score_answers([("Add\n\n1 2", "Three")])[0].score
    # The policy's words are another template's.
    assert rewarder(folder).rewards(answered("Three")) == [wanted]


def test_a_run_stands_for_its_newest_checkpoint(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.prepare(config={"model": {}}, plan={})
    folder = run.commit_checkpoint(3, lambda to: write_reward_model(to, template="plain") and None, keep=None)
    asked = answered("abc", "abcde")
    assert rewarder(str(run.path)).rewards(asked) == rewarder(str(folder)).rewards(asked)


def test_a_reward_model_that_knows_no_template_is_shown_the_policys_words(tmp_path):
    folder = write_reward_model(tmp_path / "reward")
    (folder / "phf.json").unlink()
    scorer = build_scorer({"class_name": "RewardModelScorer", "path": str(folder), "device": "cpu"})
    [wanted] = scorer.score_texts([ADD.text + "Three"])
    assert rewarder(str(folder)).rewards(answered("Three")) == [-wanted]


def test_a_reward_model_with_another_tokenizer_encodes_the_text_again(tmp_path, monkeypatch):
    monkeypatch.setattr("tiny_rewards.tiny_tokenizer", tiny_sentencepiece)
    folder = str(write_reward_model(tmp_path / "reward", template="plain"))
    monkeypatch.undo()
    scorer = build_scorer({"class_name": "RewardModelScorer", "path": folder, "device": "cpu"})
    assert scorer._tokenizer.eos_token == "</s>", "the reward model has a tokenizer of its own"
    text = "def add(first):"
    wanted = -scorer.score_answers([("Add\n\n1 2", text)])[0].score
    found = build_rewarders(named_rewards(folder, option="--reward")).rewards(answered(text))
    assert found[0].reward == pytest.approx(wanted)


def test_the_identity_of_a_reward_model_tells_its_weights_wherever_they_lie(tmp_path):
    first = write_reward_model(tmp_path / "first")
    identity = build_rewarder(*named_rewards(str(first), option="")).identity
    first.rename(tmp_path / "second")
    assert build_rewarder(*named_rewards(str(tmp_path / "second"), option="")).identity == identity
    other = write_reward_model(tmp_path / "other", length=32)
    assert build_rewarder(*named_rewards(str(other), option="")).identity != identity


def test_an_own_rewarder_and_what_it_must_not_say():
    specs = named_rewards("{class_name: 'own_rewarders:WordRewarder', settings: {word: a}, name: words}", option="")
    said = build_rewarders(specs).rewards(answered("a b a", "nan", "FAIL", "None"))
    assert [one.reward for one in said] == [2.0, None, None, None]
    assert [one.error for one in said[1:]] == [
        "words: not_finite: the reward is nan",
        "words: unlucky: the answer says FAIL",
        "words: no_reward: the rewarder said None",
    ]
    short = build_rewarders(named_rewards("own_rewarders:ShortRewarder", option=""))
    with pytest.raises(ConfigError, match="returned 1 rewards for 2 answers"):
        short.rewards(answered("a", "b"))
    with pytest.raises(ConfigError, match=r"its rewarders are DyingRewarder, ShortRewarder"):
        rewarder("own_rewarders:NotOne")
    with pytest.raises(ConfigError, match="unexpected keyword argument 'wort'"):
        rewarder("{class_name: 'own_rewarders:WordRewarder', settings: {wort: a}}")


def test_several_rewards_add_up_by_weight_and_gold_does_not_enter():
    specs = named_rewards(
        "[{rule: longer, weight: 0.5}, {class_name: 'own_rewarders:WordRewarder', name: words, weight: 2}]", option=""
    )
    both = build_rewarders(specs, *named_rewards("shorter", option=""))
    first, second = both.rewards(answered("the end", "the FAIL"))
    assert (first.reward, first.gold, first.error) == (0.5 * 7 + 2 * 1, -7.0, None)
    assert first.by_name == {"longer": 7.0, "words": 1.0}
    assert second.by_name == {"longer": 8.0, "words": None}
    assert (second.reward, second.gold) == (None, -8.0)


def test_a_sum_that_is_no_number_is_a_failure_with_its_reason():
    specs = named_rewards("[{rule: longer, weight: 1.7e308}, {rule: shorter, weight: -1.7e308}]", option="")
    one, two = build_rewarders(specs).rewards(answered("a", "aa"))
    # Each is finite for one character, and their sum is not.
    assert (one.reward, one.by_name) == (None, {"longer": 1.0, "shorter": -1.0})
    assert one.error.startswith("weighted sum: not_finite: ")
    assert (two.reward, two.error.partition(":")[0]) == (None, "weighted sum")
    opposed = named_rewards("[{rule: longer, weight: 1.7e308}, {rule: shorter, weight: 1.7e308}]", option="")
    assert build_rewarders(opposed).rewards(answered("aa"))[0].reward is None, "inf and -inf have no sum"


def test_the_stored_identity_of_an_own_rewarder_shows_no_setting():
    spec = "{class_name: 'own_rewarders:WordRewarder', settings: {word: %s}}"
    first, second = (spec_identity(*named_rewards(spec % word, option="")) for word in ("sk-hidden", "other"))
    assert "sk-hidden" not in json.dumps(first)
    assert first != second
    assert first == spec_identity(*named_rewards(spec % "sk-hidden", option=""))


def test_how_a_judges_server_is_asked_is_no_part_of_what_it_is(tmp_path):
    (tmp_path / "reference.json").write_text(
        json.dumps([{"instruction": "Add", "input": "1 2", "output": "three", "generator": "base"}])
    )
    pool = "{annotators: [{name: a, judge: {scorer: {url: 'http://127.0.0.1:1', name: %s, max_in_flight: %d}}}]}"
    spec = "{annotators: {pool: %s, reference: %s, cache: %s}}"

    def told(name, number):
        files = (tmp_path / "reference.json", tmp_path / "cache")
        (found,) = named_rewards(spec % (pool % (name, number), *files), option="")
        identity = build_rewarder(found).identity
        assert identity.items() <= spec_identity(found).items()
        return identity

    assert told("pep8", 4) == told("pep8", 8)
    assert told("pep8", 4) != told("pii", 4)


def test_a_judge_prefers_ours_to_a_fixed_answer(tmp_path):
    (tmp_path / "reference.json").write_text(
        json.dumps([{"instruction": "Add", "input": "1 2", "output": "three", "generator": "base"}])
    )
    spec = "{annotators: {pool: {annotators: [{name: l, judge: {rule: longer}}]}, reference: %s, cache: %s}}"
    judge = rewarder(spec % (tmp_path / "reference.json", tmp_path / "cache"))
    said = judge.rewards([*answered("it is three", "3", "three", "it is three", "seven"), *answered("la", prompt=SING)])
    assert said[:5] == [1.0, 0.0, 0.5, 1.0, 0.5]
    assert said[5].kind == "no_reference"


def test_a_reference_without_an_answer_is_no_empty_answer_that_every_text_beats(tmp_path):
    rows = [
        {"instruction": "Sing", "input": "", "output": None, "error": "refused: no", "generator": "base"},
        {"instruction": "Add", "input": "1 2", "output": "three", "generator": "base"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "reference.parquet")
    spec = "{annotators: {pool: {annotators: [{name: l, judge: {rule: longer}}]}, reference: %s, cache: %s}}"
    text = spec % (tmp_path / "reference.parquet", tmp_path / "cache")
    judge = rewarder(text)
    assert judge.rewards(answered("la", prompt=SING))[0].kind == "no_reference"
    assert judge.rewards(answered("it is three")) == [1.0]
    # A table is no text, and still decides what a run is.
    assert spec_identity(*named_rewards(text, option=""))["reference"] == judge.identity["reference"]
    pq.write_table(pa.Table.from_pylist(rows[:1]), tmp_path / "reference.parquet")
    with pytest.raises(ConfigError, match="answered no prompt"):
        rewarder(text)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = str(write_reward_model(tmp_path_factory.mktemp("reward"), template="alpaca"))
    settings = {"class_name": "RewardModelScorer", "path": folder, "device": "cpu"}
    scorers = {
        "reward": LocalScorer(ServedScorer(scorer=settings, max_text_chars=400)),
        "pep8": LocalScorer(ServedScorer(scorer={"class_name": "PEP8Scorer"})),
    }

    async def health() -> HealthResponse:
        return HealthResponse(status="ok", deployments={})

    backend = Backend({}, scorers, health, reward="reward")
    with listening(build_app(backend, keys=KeyRing(frozenset()), access_log=False)) as url:
        yield url, build_scorer(settings)
    for scorer in scorers.values():
        scorer.close()


def test_a_served_reward_model_is_asked_as_openrlhf_asks_and_batches_do_not_show(server):
    url, scorer = server
    texts = [f"{number} and more" for number in range(5)]
    wanted = [-score for score in scorer.score_texts([ADD.text + text for text in texts])]
    asked = rewarder(f"{{url: {{url: '{url}/get_reward', batch_size: 2}}}}")
    assert asked.rewards(answered(*texts)) == pytest.approx(wanted, abs=1e-5)


def test_an_answer_that_the_server_refuses_fails_alone(server):
    url, _ = server
    said = rewarder(url).rewards(answered("short", "x" * 1000))
    assert isinstance(said[0], float)
    assert said[1].kind in ("refused", "too_long"), said[1]


def test_a_served_scorer_enters_as_minus_its_score_and_may_get_the_prompt(server):
    url, scorer = server
    pep8 = rewarder(f"{{url: {{url: '{url}/v1/scores', scorer: pep8}}}}")
    assert pep8.rewards(answered("x=1\n")) == [-build_scorer({"class_name": "PEP8Scorer"}).score_texts(["x=1\n"])[0]]
    model = rewarder(f"{{url: {{url: '{url}/v1/scores', scorer: reward, send_prompts: true}}}}")
    [wanted] = scorer.score_answers([("Add\n\n1 2", "Three")])
    assert model.rewards(answered("Three")) == [pytest.approx(-wanted.score, abs=1e-5)]


def test_a_server_that_is_down_is_a_failure_with_its_reason():
    spec = "{url: {url: 'http://127.0.0.1:9', patience_s: 0.5, batch_size: 1, max_in_flight: 1}}"
    begin = time.monotonic()
    said = rewarder(spec).rewards(answered(*["a"] * 50))
    assert {one.kind for one in said} == {"unanswered"}
    assert time.monotonic() - begin < 50 * 0.5 / 2, "every batch waited for itself"


def test_a_batch_that_is_too_large_is_halved_and_what_is_no_number_fails_alone():
    def script(body, count):
        if len(body["query"]) > 2:
            return 413, {}, {"error": {"message": "too large"}}
        values = [
            {"nan": float("nan"), "huge": 10**400, "none": None}.get(text[-4:].strip(), [2.0]) for text in body["query"]
        ]
        return 200, {}, {"rewards": values}

    with judge_server() as server:
        server.script = script
        said = rewarder(f"{{url: {{url: '{server.url}'}}}}").rewards(answered("a", "b nan", "c", "huge", "none"))
    assert [said[0], said[2]] == [2.0, 2.0], "servers of others wrap a reward in a list"
    assert [said[place].reason for place in (1, 4)] == [
        "malformed: the server answered with nan, which is no score",
        "no_reason: the server gave none",
    ]
    assert said[3].kind == "malformed"


@pytest.mark.parametrize(
    ("path", "said"),
    [("/get_reward", {"rewards": [1.0]}), ("/v1/scores", {"data": 5}), ("/v1/scores", {"data": [{"index": []}] * 2})],
)
def test_an_answer_of_another_kind_is_a_failure_of_its_batch(path, said):
    scorer = ", scorer: pep8" if path == "/v1/scores" else ""
    with judge_server() as server:
        server.script = lambda body, count: (200, {}, said)
        found = rewarder(f"{{url: {{url: '{server.url}{path}'{scorer}}}}}").rewards(answered("a", "b"))
    assert {one.kind for one in found} == {"malformed"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{rule: longer, model: x}", "names model, rule; name one of"),
        ("{weight: 1.0}", "names no reward"),
        ("[]", "there is no reward"),
        ("3", "--reward: 3 names no reward"),
        ("[longer]", "--reward: 0"),
        ("[{rule: longer}, {rule: longer}]", "2 rewards are called 'longer'; give each a `name`"),
        ("{rule: longer, name: a b}", "can't be part of a column's name"),
        ("{rule: longest}", "--reward: 0.rule"),
        ("{rules: longer}", "unknown key; a reward has the keys model"),
        ("{rule: longer, settings: {a: 1}}", "settings are those of a rewarder"),
        ("{rule: longer, use_prompt_for_scoring: true}", "is for a scorer"),
        ("{url: 'http://x/v1/scores'}", "needs `scorer`"),
        ("{url: 'x/get_reward'}", "is no URL"),
        ("no/such-folder/here", "--reward: "),
        ("{rule: ", "is not valid YAML"),
        ("missing.yml", "No such file"),
        ("binary.yml", "is no text in UTF-8"),
        ("{scorer: {class_name: PEP9Scorer}}", "unknown scorer class_name"),
        ("{annotators: {pool: offline, reference: nothing.json}}", "nothing.json"),
    ],
)
def test_a_wrong_spec_is_refused_before_anything_is_loaded(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no").mkdir()
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        [check_spec(spec, option="--reward") for spec in named_rewards(text, option="--reward")]


def test_a_language_model_is_no_reward_model(tmp_path):
    [spec] = named_rewards(str(write_checkpoint(tmp_path / "model")), option="--reward")
    with pytest.raises(ConfigError, match=r"--reward: .* holds a language model, and no reward model"):
        check_spec(spec, option="--reward")


def test_a_damaged_description_of_a_model_is_no_traceback(tmp_path):
    write_checkpoint(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{")
    [spec] = named_rewards(str(tmp_path / "model"), option="--reward")
    with pytest.raises(ConfigError, match=r"--reward: .*model: config\.json can't be read: .*; fetch it again"):
        check_spec(spec, option="--reward")
