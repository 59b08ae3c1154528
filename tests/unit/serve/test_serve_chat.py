"""`/v1/chat/completions`: every answer is that of `/v1/completions` on the tokens of the conversation."""

import json
import re

import pytest
from served import sender
from tiny_models import BAD, END_OF_TEXT, GOOD, tiny_gpt2, tiny_tokenizer

from phf_ray.checkpoint import CheckpointInfo, Control, RowInfo
from phf_ray.generation.conversations import conversations_of
from phf_ray.generation.engine import Engine
from serve.api.application import build_app
from serve.backends import Backend
from serve.engines.local import LocalModel
from serve.settings import Limits

OWN = (
    "{% for message in messages %}{% if message['role'] == 'system' and message['content'] == 'fail' %}"
    "{{ raise_exception('no system here') }}{% endif %}{{ '<' + message['role'] + '>' + message['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "def add("},
    {"role": "assistant", "content": "a, b):"},
    {"role": "user", "content": [{"type": "text", "text": "import"}, {"type": "text", "text": "os"}]},
]
PLAIN_TALK = [*TALK[:3], {"role": "user", "content": "import\nos"}]
ASK = [{"role": "user", "content": "def add("}]


def model_of(*, seed, control=False, own=False, info=None, **chosen):
    tokenizer = tiny_tokenizer(control=control)
    tokenizer.chat_template = OWN if own else None
    if control:
        info = CheckpointInfo(control=Control(good=GOOD, bad=BAD, policy="ban"))
    engine = Engine(tiny_gpt2(tokenizer, seed=seed), tokenizer, info=info)
    return LocalModel(engine, max_waiting=8, conversations=conversations_of(engine.strings, info, **chosen))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    phrases = tmp_path_factory.mktemp("phrases") / "own.yml"
    phrases.write_text("markers: {good: 'Good:', bad: 'Bad:'}\n")
    rows = RowInfo(template="mine", template_text="{{ 'Q ' + messages[0].content + ' A' }}", length=64)
    found = {
        "own": model_of(seed=1, own=True),
        "cond": model_of(seed=2, control=True, chosen="hh"),
        "coh": model_of(seed=3, chosen="coh", phrases=str(phrases)),
        "trained": model_of(seed=4, info=CheckpointInfo(rows=rows)),
        "plain": model_of(seed=5, chosen="plain"),
        "mute": model_of(seed=6),
    }
    yield found
    for model in found.values():
        model.thread.close()


@pytest.fixture(scope="module")
def send(models):
    return sender(build_app(Backend(models, {}, None), access_log=False))


@pytest.fixture(scope="module")
def call(send):
    return lambda path, body: send("POST", path, json=body)


def chat(call, model="own", messages=TALK, **fields):
    body = {"model": model, "messages": messages, "seed": 1, "max_tokens": 12, **fields}
    answer = call("/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def complete(call, ids, model="own", **fields):
    body = {"model": model, "prompt": ids, "seed": 1, "max_tokens": 12, **fields}
    return call("/v1/completions", body).json()


def tokens(call, model="own", messages=TALK, **fields):
    return call("/tokenize", {"model": model, "messages": messages, **fields}).json()["tokens"]


def refusal(answer, status=400):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["param"], error["message"]


def test_chat_is_the_completion_of_what_apply_chat_template_makes(call, models):
    tokenizer = models["own"].strings.tokenizer
    ids = tokenizer.apply_chat_template(PLAIN_TALK, add_generation_prompt=True, return_dict=False)
    answer, expected = chat(call, n=2), complete(call, ids, n=2)
    assert [choice["message"] for choice in answer["choices"]] == [
        {"role": "assistant", "content": choice["text"]} for choice in expected["choices"]
    ]
    assert [one["finish_reason"] for one in answer["choices"]] == [one["finish_reason"] for one in expected["choices"]]
    assert answer["usage"] == expected["usage"]
    assert answer["usage"]["prompt_tokens"] == len(ids)
    assert (answer["object"], answer["model"], answer["id"][:9]) == ("chat.completion", "own", "chatcmpl-")
    assert len({choice["message"]["content"] for choice in answer["choices"]}) == 2
    assert tokens(call) == ids
    developer = [{**TALK[0], "role": "developer"}, *TALK[1:]]
    assert tokens(call, messages=developer) == ids


@pytest.mark.parametrize("answer", ["a, b", "a, b ", ""])
def test_last_answer_is_continued_as_transformers_has_it(call, models, answer):
    tokenizer = models["own"].strings.tokenizer
    messages = [*ASK, {"role": "assistant", "content": answer}]
    ids = tokenizer.apply_chat_template(messages, continue_final_message=True, return_dict=False)
    assert tokens(call, messages=messages, continue_final_message=True) == ids
    content = chat(call, messages=messages, continue_final_message=True)["choices"][0]["message"]["content"]
    assert content == complete(call, ids)["choices"][0]["text"]
    closed = tokenizer.apply_chat_template(messages, return_dict=False)
    assert tokens(call, messages=messages, add_generation_prompt=False) == closed != ids


def test_models_of_ours_begin_after_the_end_of_text_as_in_training(call, models):
    trained = models["trained"].strings
    assert tokens(call, "trained", ASK) == trained.encode("Q def add( A")[0]
    assert trained.tokenizer.decode(tokens(call, "trained", ASK)).startswith(END_OF_TEXT)
    assert models["plain"].strings.tokenizer.decode(tokens(call, "plain", ASK)) == "def add("


def test_control_chooses_the_token_or_the_marker(call, models):
    told = {control: chat(call, "cond", ASK, control=control)["choices"] for control in ("good", "bad", "none")}
    ids = tokens(call, "cond", ASK)
    assert "def add(" in models["cond"].strings.tokenizer.decode(ids)
    for control, choices in told.items():
        assert chat(call, f"cond:{control}", ASK)["choices"] == choices
        text = choices[0]["message"]["content"]
        assert text == complete(call, ids, "cond", control=control)["choices"][0]["text"]
    assert chat(call, "cond", ASK)["choices"] == told["good"] != told["bad"]

    marked = {"good": " Good:", "bad": " Bad:", "none": ""}
    for control, marker in marked.items():
        ids = tokens(call, "coh", ASK, control=control)
        assert models["coh"].strings.tokenizer.decode(ids) == f"User: def add({marker}"
        expected = complete(call, ids, "coh")["choices"][0]["text"]
        assert chat(call, f"coh:{control}", ASK)["choices"][0]["message"]["content"] == expected
        assert chat(call, "coh", ASK, control=control)["choices"][0]["message"]["content"] == expected
    assert chat(call, "coh", ASK)["choices"] == chat(call, "coh:good", ASK)["choices"]
    body = {"messages": ASK, "model": "own:good"}
    assert "no control tokens" in refusal(call("/v1/chat/completions", body))[1]
    body = {"messages": ASK, "model": "coh:good", "control": "bad"}
    assert "contradict" in refusal(call("/v1/chat/completions", body))[1]
    for model, status in (("coh", 400), ("own", 400), ("cond", 200)):
        body = {"messages": ASK, "model": model, "control_policy": "retag", "max_tokens": 2}
        answer = call("/v1/chat/completions", body)
        assert answer.status_code == status
        if status == 400:
            assert refusal(answer)[0] == "control_policy"


@pytest.mark.parametrize("place", [1, 2])
def test_a_late_system_message_is_refused_with_what_the_template_coh_takes(call, place):
    messages = [{"role": "system", "content": "Be brief."}, *ASK]
    assert call("/tokenize", {"model": "coh", "messages": messages}).status_code == 200
    messages.insert(place, {"role": "system", "content": "Be kind."})
    param, message = refusal(call("/v1/chat/completions", {"model": "coh", "messages": messages}))
    assert param == "messages"
    assert f"messages[{place}] is a system message; it takes one, at the beginning" in message


def test_url_of_one_model_answers_chats(call):
    answer = call("/models/cond:bad/v1/chat/completions", {"model": "cond", "messages": ASK, "seed": 1})
    assert (
        answer.json()["choices"]
        == call("/v1/chat/completions", {"model": "cond:bad", "messages": ASK, "seed": 1}).json()["choices"]
    )
    other = call("/models/cond/v1/chat/completions", {"model": "own", "messages": ASK})
    assert "contradict" in refusal(other)[1]
    assert call("/models/own/tokenize", {"messages": ASK}).json()["tokens"] == tokens(call, messages=ASK)


def test_without_a_limit_an_answer_has_the_room_of_the_context(call):
    for model, stop in (("own", 96), ("cond", 95)):
        body = {"model": model, "messages": ASK, "seed": 1, "ignore_eos": True}
        answer = call("/v1/chat/completions", body).json()
        # An inserted control token takes one position, and counts nowhere.
        assert answer["usage"]["total_tokens"] == stop
        assert answer["choices"][0]["finish_reason"] == "length"


def test_logprobs_are_those_of_the_completion(call):
    fields = {"logprobs": True, "top_logprobs": 3, "temperature": 0.7}
    content = chat(call, **fields)["choices"][0]["logprobs"]["content"]
    expected = complete(call, tokens(call), logprobs=3, temperature=0.7)["choices"][0]["logprobs"]
    assert [one["token"] for one in content] == expected["tokens"]
    assert [one["logprob"] for one in content] == expected["token_logprobs"]
    for one, top in zip(content, expected["top_logprobs"], strict=True):
        best = sorted(top.values(), reverse=True)[:3]
        assert [alternative["logprob"] for alternative in one["top_logprobs"]] == best
        assert bytes(one["bytes"]).decode() == one["token"] if one["bytes"] is not None else "\ufffd" in one["token"]
    assert any(one["bytes"] is not None for one in content)
    many = chat(call, logprobs=True, top_logprobs=20)["choices"][0]["logprobs"]["content"]
    assert {len(one["top_logprobs"]) for one in many} == {20}
    none = chat(call, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert all(one["top_logprobs"] == [] for one in none)
    assert chat(call)["choices"][0]["logprobs"] is None


def events_of(response):
    assert response.headers["content-type"].startswith("text/event-stream")
    *lines, last = [line for line in response.text.split("\n\n") if line]
    assert last == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_stream_joins_to_the_plain_answer(call):
    fields = {"n": 2, "max_tokens": 15, "logprobs": True, "top_logprobs": 2, "stop": "zzz", "return_token_ids": True}
    plain = chat(call, **fields)
    body = {"model": "own", "messages": TALK, "seed": 1, **fields, "stream": True}
    *events, last = events_of(call("/v1/chat/completions", {**body, "stream_options": {"include_usage": True}}))
    assert (last["choices"], last["usage"]) == ([], plain["usage"])
    assert all(event["usage"] is None for event in events)
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in [*events, last]}) == 1
    for choice in plain["choices"]:
        first, *mine = [e["choices"][0] for e in events if e["choices"][0]["index"] == choice["index"]]
        assert first["delta"] == {"role": "assistant", "content": ""}
        assert all("role" not in piece["delta"] for piece in mine)
        assert "".join(piece["delta"].get("content", "") for piece in mine) == choice["message"]["content"]
        assert [piece["finish_reason"] for piece in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
        described = [one for piece in mine if piece["logprobs"] for one in piece["logprobs"]["content"]]
        assert described == choice["logprobs"]["content"]
        assert len(choice["token_ids"]) == len(described)
    assert len(events) > 6
    assert events_of(call("/v1/chat/completions", body))[-1]["choices"] != []


def test_stop_seed_and_other_fields_mean_what_they_mean_in_completions(call):
    ids = tokens(call)
    for fields in (
        {"stop": ["e", "\n"]},
        {"temperature": 0},
        {"top_p": 0.5, "seed": 7},
        {"min_tokens": 9, "top_k": 5},
        {"logit_bias": {"20": 50}},
        {"presence_penalty": 1.5, "ignore_eos": True},
    ):
        expected = complete(call, ids, **fields)["choices"][0]
        got = chat(call, **fields)["choices"][0]
        assert (got["message"]["content"], got["finish_reason"]) == (expected["text"], expected["finish_reason"])
    limited = chat(call, max_tokens=None, max_completion_tokens=5, ignore_eos=True)
    assert limited["usage"]["completion_tokens"] == 5


MESSAGE = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("fields", "param", "match"),
    [
        ({"messages": []}, "messages", "no messages; give at least one"),
        ({"messages": "Hi"}, "messages", "list"),
        ({"messages": [{"role": "user"}]}, "messages", r"messages\[0\]: the message of the user has no content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages", "has no content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages", "has no content"),
        ({"messages": [MESSAGE, {"role": "narrator", "content": "x"}]}, "messages", r"messages\[1\].*'narrator'; use"),
        ({"messages": [MESSAGE, {"role": "tool", "content": "x"}]}, "messages", "'tool'; tools are not supported"),
        ({"messages": [{**MESSAGE, "tool_calls": [{}]}]}, "messages", "tool_calls, but tools are not supported"),
        ({"messages": [{**MESSAGE, "name": "Ann"}]}, "messages", "a name"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "'image_url'; only"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "messages", "lone surrogate"),
        ({"messages": [{"role": "user", "content": "x" * 60_000}]}, "messages", "the model's context is 96 tokens"),
        ({"messages": [{"role": "user", "content": "x " * 100}]}, "messages", "the model's context is 96 tokens"),
        ({"messages": [MESSAGE, {"role": "assistant", "content": "Ho"}]}, "messages", "set continue_final_message"),
        ({"messages": [{"role": "system", "content": "fail"}, MESSAGE]}, "messages", "TemplateError: no system here"),
        ({"continue_final_message": True}, "continue_final_message", "the last message is the user's"),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
            "exclude each other",
        ),
        ({"tools": [{"type": "function"}]}, "tools", "tools is not supported"),
        ({"tool_choice": "required"}, "tool_choice", "not supported"),
        ({"functions": [{}]}, "functions", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"chat_template": "x"}, "chat_template", "unknown field"),
        ({"top_logprobs": 2}, "logprobs", "top_logprobs needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens", "contradict"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 96}, "max_tokens", "context is 96"),
        ({"max_completion_tokens": 96}, "max_completion_tokens", "context is 96"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens", "above max_tokens"),
        ({"n": 5000}, "n", "2048"),
        ({"model": "mute"}, "model", "no chat template; start the server with --chat-template"),
        ({"stop_token_ids": [99999]}, "stop_token_ids", "99999"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_can_not_be_served_is_refused_with_the_field_and_what_to_do(send, fields, param, match, stream):
    body = {"model": "own", "messages": [MESSAGE], "stream": stream, **fields}
    answer = send(
        "POST", "/v1/chat/completions", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    found, message = refusal(answer)
    assert found == param
    assert re.search(match, message), message


def test_an_unknown_model_is_404_and_harmless_fields_pass(call):
    assert refusal(call("/v1/chat/completions", {"model": "none", "messages": ASK}), 404)[0] == "model"
    harmless = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "user": "ann"}
    assert chat(call, **harmless)["choices"] == chat(call)["choices"]
    # An answer as OpenAI's client writes it down.
    sent_back = {"role": "assistant", "content": "a, b):", "refusal": None, "tool_calls": None, "annotations": []}
    assert chat(call, messages=[*TALK[:2], sent_back, TALK[3]])["choices"] == chat(call)["choices"]


def test_tokenize_takes_a_prompt_or_messages(call, models):
    body = {"model": "own", "messages": ASK, "return_token_strs": True}
    answer = call("/tokenize", body).json()
    assert "".join(answer["token_strs"]) == "<user>def add(\n<assistant>"
    assert answer["count"] == len(answer["tokens"])
    assert "one of both" in refusal(call("/tokenize", {"model": "own", "prompt": "x", "messages": ASK}))[1]
    assert "one of both" in refusal(call("/tokenize", {"model": "own"}))[1]
    ended = [*ASK, {"role": "assistant", "content": "x"}]
    assert refusal(call("/tokenize", {"model": "own", "messages": ended}))[0] == "messages"
    long = [{"role": "user", "content": "x " * 500}]
    assert call("/tokenize", {"model": "own", "messages": long}).json()["count"] > 500
    assert "no chat template" in refusal(call("/tokenize", {"model": "mute", "messages": ASK}))[1]
    begun = call("/tokenize", {"model": "trained", "messages": ASK, "add_special_tokens": True}).json()["tokens"]
    assert begun == tokens(call, "trained", ASK)


def test_card_of_a_model_tells_its_template(send):
    cards = {card["id"]: card["chat"] for card in send("GET", "/v1/models").json()["data"]}
    told = {name: card and (card["template"], card["reads_control"]) for name, card in cards.items()}
    assert told == {
        "own": ("tokenizer", False),
        "cond": ("hh", False),
        "coh": ("coh", True),
        "trained": ("mine", False),
        "plain": ("plain", False),
        "mute": None,
    }


def test_a_chat_counts_in_metrics_and_limits_like_a_completion(models):
    app = build_app(Backend(models, {}, None), access_log=False, limits=Limits(body_bytes=4096, concurrent_streams=1))
    send = sender(app)
    big = {"model": "own", "messages": [{"role": "user", "content": "x" * 5000}]}
    assert refusal(send("POST", "/v1/chat/completions", json=big), 413)
    answer = send("POST", "/v1/chat/completions", json={"model": "own", "messages": ASK, "max_tokens": 3}).json()
    metrics = send("GET", "/metrics").text
    assert 'phf_http_requests_total{path="/v1/chat/completions",status="200"} 1.0' in metrics
    count = float(answer["usage"]["completion_tokens"])
    assert f'phf_tokens_total{{kind="completion",model="own"}} {count}' in metrics
