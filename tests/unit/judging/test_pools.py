import logging

import pytest
import yaml
from judges import CHAT, REGEX, asked_pool, prompt_file, rules
from places import ROOT
from tiny_models import tiny_tokenizer

from phf_ray.errors import ConfigError
from phf_ray.judging.pairs import Pair
from phf_ray.judging.pool import load_pool

POOLS = sorted((ROOT / "configs" / "annotators").glob("*.yml"))
URL = {"url": "http://localhost:1/v1", "key_env": "SOME_KEY"}
PAIR = Pair("i", "", "a", "b")

# As ALPACA_COH has them: name, model, max_tokens, pairs in a prompt, whether it is a chat.
MEMBERS = {
    "gpt4_1": ("gpt-4-0314", 600, 4, True),
    "gpt4_2": ("gpt-4-0314", 250, 5, True),
    "gpt4_3": ("gpt-4-0314", 250, 5, True),
    "gpt4_4": ("gpt-4-0314", 20, 1, True),
    "gpt4_5": ("gpt-4-0314", 250, 5, True),
    "chatgpt_1": ("gpt-3.5-turbo-0301", 50, 1, True),
    "chatgpt_2": ("gpt-3.5-turbo-0301", 150, 1, True),
    "chatgpt_3": ("gpt-3.5-turbo-0301", 20, 1, True),
    "chatgpt_4": ("gpt-3.5-turbo-0301", 20, 1, True),
    "davinci003_1": ("text-davinci-003", 200, 4, False),
    "davinci003_2": ("text-davinci-003", 200, 1, False),
    "davinci003_3": ("text-davinci-003", 200, 5, False),
    "davinci003_4": ("text-davinci-003", 200, 1, False),
}


@pytest.mark.parametrize("path", POOLS, ids=lambda path: path.stem)
def test_every_pool_that_is_shipped_loads_by_its_name_and_can_be_asked(path):
    pool = load_pool(path.stem, over=URL)
    for name, annotator in pool.build().items():
        if name in pool.prompts:
            question = annotator.question([PAIR])
            assert question.judge in pool.endpoints
            assert question.decoding["max_tokens"] > 0


def test_alpaca_farms_pool_is_as_it_was():
    config = load_pool("alpaca_farm", over=URL).config
    assert {
        one.name: (one.judge.endpoint.model, one.decoding["max_tokens"], one.batch_size, one.judge.chat is not None)
        for one in config.annotators
    } == MEMBERS
    assert {one.decoding["temperature"] for one in config.annotators} == {1.0}
    assert {one.order for one in config.annotators} == {"random"}


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [
        (
            "gpt4_1",
            '{"reason": "x", "a is better": true}\n' * 3 + '{"reason": "y", "a is better": false}',
            [1, 1, 1, 2],
        ),
        ("gpt4_3", "Output (a)\nOutput (b)\nOutput (b)\nOutput (a)\nOutput (a)", [1, 2, 2, 1, 1]),
        ("chatgpt_2", '{"reason": "x", "a is better": false}', [2]),
        ("chatgpt_3", "I take Output (b).", [2]),
        ("davinci003_1", "(a) is shorter\n(b) is right\n(b)\n(a)", [1, 2, 2, 1]),
        ("davinci003_2", "\n(b)", [2]),
        ("davinci003_4", " (a)", [1]),
    ],
)
def test_an_answer_in_the_form_that_the_prompt_asks_for_is_read(name, answer, expected):
    from phf_ray.judging.parsers import read_verdicts
    from phf_ray.judging.question import Answer

    (annotator,) = [one for one in load_pool("alpaca_farm", over=URL).config.annotators if one.name == name]
    assert read_verdicts(annotator.parser, Answer(answer), num=annotator.batch_size) == expected


def test_a_file_of_ones_own_extends_a_shipped_pool(tmp_path):
    values = {"extends": "annotators/alpaca_farm", "url": "http://localhost:1", "models": {"gpt-4-0314": "mine"}}
    (tmp_path / "pool.yml").write_text(yaml.safe_dump(values))
    assert set(load_pool(tmp_path / "pool.yml").endpoints) == {
        "http://localhost:1 mine",
        "http://localhost:1 gpt-3.5-turbo-0301",
        "http://localhost:1 text-davinci-003",
    }


def test_the_key_of_the_pool_is_for_the_server_of_the_pool_alone(tmp_path):
    own = {"name": "own", "judge": CHAT, "prompt": prompt_file(tmp_path), "parser": REGEX}
    other = {**own, "name": "other", "judge": {"chat": {"model": "m"}}}
    pool = load_pool({"annotators": [own, other], "url": "http://localhost:2", "key_env": "POOLS"})
    keys = {server.url: server.key_env for server in pool.endpoints.values()}
    assert keys == {"http://localhost:1/v1": None, "http://localhost:2": "POOLS"}


@pytest.mark.parametrize(
    ("annotator", "message"),
    [
        (
            {"judge": {"class_name": "gone:Mine"}},
            "annotator n: judge class_name 'gone:Mine': the module 'gone' can't be",
        ),
        (
            {"judge": "longer"},
            r"annotators\.0\.judge: 'longer' names no kind of judge; write for example \{rule: longer\}",
        ),
        ({"judge": {"rul": "longer"}}, r"judge\.rul: unknown key; did you mean 'rule'\?"),
        ({"judge": {"rule": "longest"}}, r"judge\.rule: .*'longer', 'shorter', 'random' or 'constant', got 'longest'"),
        ({"judge": {}}, "names no judge; name one of chat, completion, reward_model, scorer, biased_scorer, rule"),
        ({"judge": {"rule": "longer", "reward_model": "x"}}, "names reward_model, rule; name one of"),
        ({"judge": {"scorer": {"class_name": "PEP9"}}}, "annotator n: unknown scorer class_name 'PEP9'; choose one of"),
        (
            {"judge": {"biased_scorer": {"scorer": {"class_name": "PEP8Scorer", "x": 1}}}},
            "annotator n: PEP8Scorer: x: unk",
        ),
        (
            {"judge": {"rule": "longer"}, "prompt": "x", "batch_size": 2},
            "n: batch_size, prompt: only a chat or completion",
        ),
        ({"judge": CHAT}, "n: a judge behind a URL needs a prompt and a parser"),
        (
            {"judge": CHAT, "prompt": "p", "parser": {}},
            "names no parser; name one of regex, ranking, json_field, logpro",
        ),
        (
            {"judge": CHAT, "prompt": "p", "parser": {"regex": {1: "a"}}},
            r"regex has verdicts \[1\]; write one for 1 and",
        ),
        (
            {"judge": CHAT, "prompt": "p", "parser": {"json_field": {"key": "k", "values": {1: "a", 2: "A "}}}},
            "json_field has equal values for both verdicts, 'a' and 'A '",
        ),
        ({"judge": CHAT, "prompt": "p", "parser": {"regex": {1: "a(", 2: "b"}}}, "'a\\(' is no regular expression"),
        ({"judge": CHAT, "prompt": "p", "parser": {"regex": {1: "a*", 2: "b"}}}, "'a\\*' matches an empty text"),
        (
            {"judge": CHAT, "prompt": "p", "parser": {"ranking": {}}, "batch_size": 2},
            "batch_size 2, but the parser reads",
        ),
        ({"judge": {"chat": {"model": "m"}}, "prompt": "p", "parser": REGEX}, "n: no url; set it in the pool's file"),
        ({"judge": {"chat": {"url": "http://x"}}, "prompt": "p", "parser": REGEX}, "n: no model; set it in the pool's"),
        ({"judge": {"rule": "longer"}, "oder": "both"}, r"annotators\.0\.oder: unknown key; did you mean 'order'\?"),
    ],
)
def test_a_pool_that_cannot_be_used_says_why(annotator, message):
    with pytest.raises(ConfigError, match=message):
        load_pool({"annotators": [{"name": "n", **annotator}]})


def test_pools_without_annotators_or_with_two_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="annotators is empty; write at least one"):
        load_pool({"annotators": []})
    with pytest.raises(ConfigError, match="two annotators are named 'longer'; names must differ"):
        load_pool(rules("longer", "longer"))
    with pytest.raises(ConfigError, match=r"no annotator pool 'ofline' \(did you mean offline\?\)"):
        load_pool("ofline")


@pytest.mark.parametrize("pool", [None, 3])
def test_what_is_no_pool_is_refused(pool):
    with pytest.raises(ConfigError, match=f"annotators are {pool}; give the name of a shipped pool, a file"):
        load_pool(pool)


def test_a_list_of_annotators_is_a_pool():
    assert load_pool(rules("longer", "random")["annotators"]).names == ("longer", "random")


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError, match=r"2 problem\(s\)"):
        load_pool({"annotators": [{"name": "", "judge": {"rule": "longer"}}, {"name": "b", "judge": {"rule": "x"}}]})


def test_words_become_biases_of_their_tokens(tmp_path, caplog):
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (single,), several = tokenizer.encode("e"), tokenizer.encode("zebra Q")
    assert len(several) > 1
    pool = asked_pool(
        tmp_path,
        tokens_to_avoid=["e", "zebra Q", 7],
        tokens_to_favor=["zebra Q"],
        tokenizer=str(tmp_path / "tokenizer"),
        decoding={"max_tokens": 5},
    )
    with caplog.at_level(logging.WARNING):
        decoding = load_pool(pool).build()["asked"].question([PAIR]).decoding
    assert decoding == {
        "max_tokens": 5,
        "logit_bias": {**dict.fromkeys(map(str, several), 7), str(single): -100, "7": -100},
    }
    assert f"'zebra Q' is {len(several)} tokens and is not avoided" in caplog.text


def test_words_without_a_tokenizer_are_a_warning_and_ids_need_none(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        built = load_pool(asked_pool(tmp_path, tokens_to_avoid=["Both", 3])).build()
    assert built["asked"].question([PAIR]).decoding == {"logit_bias": {"3": -100}}
    assert "no effect on 'Both': set `tokenizer:`" in caplog.text
    with pytest.raises(ConfigError, match=r"annotator asked: tokenizer .*gone can't be loaded"):
        load_pool(asked_pool(tmp_path, tokens_to_avoid=["B"], tokenizer=str(tmp_path / "gone"))).build()


@pytest.mark.parametrize(
    ("kind", "asked"), [("chat", {"logprobs": True, "top_logprobs": 20}), ("completion", {"logprobs": 20})]
)
def test_log_probabilities_are_asked_for_as_the_endpoint_understands_it(kind, asked, tmp_path):
    judge = {kind: CHAT["chat"]}
    pool = asked_pool(tmp_path, judge=judge, parser={"logprobs": {1: ["a"], 2: ["b"]}})
    question = load_pool({**pool, "num_top_logprobs": 20}).build()["asked"].question([PAIR])
    assert question.decoding == asked
    assert (question.messages is None) == (kind == "completion")


def test_seeds_of_call_and_annotator_are_sent_and_make_another_question(tmp_path):
    pool = load_pool(asked_pool(tmp_path, seed=5))
    first, second = (pool.build(seed=seed)["asked"].question([PAIR]) for seed in (0, 1))
    assert (first.seed, second.seed) == (5, 6)
    assert first.key != second.key


def test_a_mapping_may_extend_a_file_and_have_verdicts_as_json_writes_them(tmp_path):
    pool = asked_pool(tmp_path, parser={"regex": {"1": "a", "2": "b"}})
    assert load_pool(pool).config.annotators[0].parser.regex == {1: "a", 2: "b"}
    extending = load_pool({"extends": "annotators/greedy", "url": "http://localhost:1"})
    assert list(extending.endpoints) == ["http://localhost:1 gpt-4-0314"]


PRICED = {"url": "http://localhost:1", "prices": {"mine": {"input": 1.0, "output": 2.0}}}


def asked_and_paid(pool):
    return {
        server.model: server.price and (server.price.input, server.price.output) for server in pool.endpoints.values()
    }


@pytest.mark.parametrize("named", [{"model": "mine"}, {"models": {"gpt-4-0314": "mine"}}])
@pytest.mark.parametrize("name", ["greedy", "both-orders"])
def test_a_file_that_extends_a_shipped_pool_names_its_model_and_the_price(name, named):
    pool = load_pool({"extends": f"annotators/{name}", **PRICED, **named})
    assert asked_and_paid(pool) == {"mine": (1.0, 2.0)}


def test_a_price_of_its_own_comes_first_and_a_price_for_nobody_is_refused(tmp_path):
    own = {"chat": {"model": "mine", "price": {"input": 3.0, "output": 4.0}}}
    assert asked_and_paid(load_pool({**asked_pool(tmp_path, judge=own), **PRICED})) == {"mine": (3.0, 4.0)}
    with pytest.raises(ConfigError, match="prices names 'mine', a model that no judge asks; they ask gpt-4-0314"):
        load_pool({"extends": "annotators/greedy", **PRICED})


def test_a_model_that_is_given_comes_before_the_names_in_the_file():
    pool = load_pool("alpaca_farm", over={**URL, "model": "mine"})
    assert asked_and_paid(pool) == {"mine": None}
    renamed = {"extends": "annotators/alpaca_farm", "models": {"gpt-4-0314": "large"}}
    assert set(asked_and_paid(load_pool(renamed, over={**URL, "model": "mine"}))) == {"large", "mine"}


def test_a_model_that_no_judge_takes_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="model 'mine': no judge of offline takes it: it asks no server"):
        load_pool("offline", over={"model": "mine"})
    with pytest.raises(ConfigError, match=r"model 'mine': no judge of .* takes it: its judges ask m, on servers of"):
        load_pool(asked_pool(tmp_path), over={"model": "mine"})
    with pytest.raises(ConfigError, match="model 'mine' is for judges that name none, and there are none; rename"):
        load_pool({"extends": "annotators/alpaca_farm", "url": "http://localhost:1", "model": "mine"})
