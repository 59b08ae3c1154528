"""The engine that asks another server, against a scripted one on a real socket."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tiny_models import BAD, GOOD, write_checkpoint

from phf_ray.errors import ConfigError, DataError
from phf_ray.generation.load import load_strings
from serve.chat_schemas import ChatCompletionRequest
from serve.engines.upstream import UpstreamModel, seed_of
from serve.errors import ApiError
from serve.schemas import CompletionRequest
from serve.settings import ServedModel, Upstream, parse_args


class Script:
    """What the server answers: status and body, or the parts of a stream; and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict] = []
        self.keys: list[str | None] = []
        self.status = 200
        self.content = b""
        self.parts: list[bytes] = []
        self.waits = False
        self.arrived, self.gone, self.released = threading.Event(), threading.Event(), threading.Event()


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            script.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            script.keys.append(self.headers["authorization"])
            script.arrived.set()
            if script.waits:
                if self.rfile.read(1) == b"":
                    script.gone.set()
                return
            self.send_response(script.status)
            self.end_headers()
            for part in script.parts or [script.content]:
                self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    script.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield script
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("upstream") / "cond", control="retag")


@pytest.fixture(scope="module")
def strings(checkpoint):
    return load_strings(checkpoint)


@pytest.fixture
def run(strings, checkpoint, script):
    """`run(fields)`: the answer; `run(fields, use=...)`: what `use(model, request)` returns."""

    async def complete(model: UpstreamModel, request: CompletionRequest):
        return await model.complete(request)

    def call(fields: dict, use: Callable = complete, *, url: str | None = None, max_waiting: int = 100, **upstream):
        async def main():
            served = ServedModel(
                name="cond",
                path=str(checkpoint),
                upstream=Upstream(url=url or script.url, **upstream),
                max_batch=1,
                max_waiting=max_waiting,
            )
            model = UpstreamModel(strings[0], strings[1], context=strings[2], served=served)
            return await use(model, CompletionRequest(**{"model": "cond", "prompt": "def", "seed": 7, **fields}))

        return asyncio.run(main())

    return call


def answer(*texts: str, num_tokens: int = 3, **fields) -> bytes:
    choices = [{"index": i, "text": text, "finish_reason": "stop", **fields} for i, text in enumerate(texts)]
    return json.dumps({"choices": choices, "usage": {"completion_tokens": num_tokens}}).encode()


def event(text: str, *, index: int = 0, finish_reason: str | None = None, **fields) -> bytes:
    choice = {"index": index, "text": text, "finish_reason": finish_reason, **fields}
    return b"data: " + json.dumps({"choices": [choice]}, ensure_ascii=False).encode() + b"\n\n"


USAGE = b'data: {"choices": [], "usage": {"completion_tokens": 5}}\n\n'
DONE = b"data: [DONE]\n\n"


async def streamed(model, request):
    return [piece async for piece in model.stream(request)]


@pytest.mark.parametrize(("control", "token"), [(None, GOOD), ("good", GOOD), ("bad", BAD), ("none", None)])
def test_the_control_token_is_put_into_the_prompt_and_counts_nowhere(run, script, strings, control, token):
    script.content = answer("x", num_tokens=2)
    completed = run({"control": control, "max_tokens": 5})
    ids, _ = strings[0].encode("def")
    inserted = [] if token is None else [strings[0].tokenizer.convert_tokens_to_ids(token)]
    assert script.asked[0]["prompt"] == [ids[0], *inserted, *ids[1:]]
    assert completed.usage.prompt_tokens == len(ids)
    assert completed.usage.completion_tokens == 2


def test_control_tokens_are_banned_whatever_the_client_wants(run, script, strings):
    script.content = answer("x")
    good, bad = strings[0].control_ids["good"], strings[0].control_ids["bad"]
    run({"logit_bias": {good: 100, 40: 3}})
    assert script.asked[0]["logit_bias"] == {str(good): -100, str(bad): -100, "40": 3}
    with pytest.raises(ApiError, match="can't retag; use ban") as caught:
        run({"control_policy": "retag"})
    assert (caught.value.status, caught.value.param) == (400, "control_policy")


def test_usage_in_every_piece_is_refused_because_the_other_server_tells_it_at_the_end(run):
    with pytest.raises(ApiError, match="usage comes at the end; leave continuous_usage_stats out") as caught:
        run({"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}})
    assert (caught.value.status, caught.value.param) == (400, "stream_options.continuous_usage_stats")


def test_parameters_arrive_and_unknown_ones_are_left_out_unless_wanted(run, script, monkeypatch):
    script.content = answer("x", "y")
    wanted = {"max_tokens": 4, "temperature": 0.5, "top_p": 0.8, "stop": ["a"], "n": 2, "logprobs": 1}
    run(wanted, model="theirs")
    (asked,) = script.asked
    assert asked["model"] == "theirs"
    assert {name: asked[name] for name in wanted} == wanted
    extensions = {
        "top_k": 5, "min_tokens": 2, "ignore_eos": True, "return_token_ids": True, "stop_token_ids": [40],
        "repetition_penalty": 1.5, "presence_penalty": -0.5, "frequency_penalty": 1.0,
    }  # fmt: skip
    assert not {*extensions, "echo", "control"} & set(asked)
    run(extensions | {"n": 2})
    assert {name: script.asked[1][name] for name in extensions} == extensions


def test_the_key_of_the_upstream_is_sent_and_must_be_set(run, script, monkeypatch):
    script.content = answer("x")
    with pytest.raises(ConfigError, match="THEIR_KEY holds no key"):
        run({}, key_env="THEIR_KEY")
    monkeypatch.setenv("THEIR_KEY", "secret-of-theirs")
    run({}, key_env="THEIR_KEY")
    assert script.keys == ["Bearer secret-of-theirs"]


def test_equal_prompts_of_a_call_get_different_seeds(run, script):
    script.content = answer("x")
    completed = run({"prompt": ["def", "def", "def"], "seed": 2**64 - 1})
    assert [choice.index for choice in completed.choices] == [0, 1, 2]
    seeds = {asked["seed"] for asked in script.asked}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(7, 0) == 7


@pytest.mark.parametrize(
    ("status", "content", "expected"),
    [
        (400, b'{"error": {"message": "too long"}}', (400, "refused the request: too long")),
        (413, b'{"message": "old shape"}', (413, "old shape")),
        (422, b"<html>", (400, "no reason given")),
        (401, b'{"error": {"message": "wrong key sk-123"}}', (502, "configuration")),
        (404, b"{}", (502, "configuration")),
        (429, b"{}", (429, "queue")),
        (500, b'{"error": {"message": "/their/path broke"}}', (503, "status 500; try again")),
        (503, b"", (503, "try again")),
        (200, b"nonsense", (502, "other than a completion")),
        (200, answer("x", "y"), (502, "2 choices instead of 1")),
        (200, b'{"choices": [{"index": 0, "text": "a", "finish_reason": "stop"}]}', (502, "no usage")),
        (200, answer("x").replace(b'"stop"', b'"abort"'), (502, "'abort'")),
        (200, answer("x").replace(b'"stop"', b"null"), (502, "without a finish_reason")),
    ],
)
def test_failures_of_the_upstream_become_errors_of_ours(run, script, status, content, expected):
    script.status, script.content = status, content
    with pytest.raises(ApiError) as caught:
        run({})
    assert caught.value.status == expected[0]
    assert expected[1] in caught.value.message
    assert "sk-123" not in caught.value.message
    assert "/their/path" not in caught.value.message


def test_an_upstream_that_is_away_or_hangs_is_an_error_in_time(run, script):
    with pytest.raises(ApiError, match="can't be reached") as caught:
        run({}, url="http://127.0.0.1:1/v1")
    assert caught.value.status == 503
    script.waits = True
    with pytest.raises(ApiError, match=r"did not answer within 0\.2 s") as caught:
        run({}, timeout_s=0.2)
    assert caught.value.status == 504


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_leaves_frees_its_place_upstream(run, script, is_stream):
    script.waits = True

    async def leave(model, request):
        task = asyncio.create_task(streamed(model, request) if is_stream else model.complete(request))
        assert await asyncio.to_thread(script.arrived.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(script.gone.wait, 30)
        return model.num_unfinished

    assert run({}, leave) == 0


def test_more_than_may_wait_is_429(run, script):
    script.waits = True

    async def crowd(model, request):
        first = asyncio.create_task(model.complete(request))
        assert await asyncio.to_thread(script.arrived.wait, 30)
        with pytest.raises(ApiError, match="in the model's queue") as caught:
            await model.complete(request.model_copy(update={"n": 2}))
        first.cancel()
        return caught.value.status

    assert run({}, crowd, max_waiting=1) == 429


def test_streams_are_passed_on_piece_by_piece(run, script):
    # U+2028 and a form feed end lines elsewhere, but not in server-sent events.
    script.parts = [event("a\u2028"), event("b\x0c")[:9], event("b\x0c")[9:], event("", finish_reason="length")]
    script.parts += [USAGE, DONE]
    pieces = run({}, streamed)
    choices = [choice for piece in pieces for choice in piece.choices]
    assert [choice.text for choice in choices] == ["a\u2028", "b\x0c", ""]
    assert [choice.finish_reason for choice in choices] == [None, None, "length"]
    assert pieces[-1].usage.completion_tokens == 5
    assert script.asked[0]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([event("a")], (503, "broke the stream off")),
        ([event("a"), DONE], (503, "broke the stream off")),
        ([event("a"), b'data: {"error": {"message": "out of memory"}}\n\n'], (503, "gave up: out of memory")),
        ([event("a"), b"data: {}\n\n"], (502, "other than a completion")),
        ([event("a", finish_reason="stop"), event("b")], (502, "finished or unknown")),
        ([event("a", finish_reason="stop"), DONE], (502, "no usage")),
    ],
)
def test_a_stream_that_goes_wrong_ends_in_an_error(run, script, parts, expected):
    script.parts = parts
    seen = []

    async def read(model, request):
        async for piece in model.stream(request):
            seen.append(piece)

    with pytest.raises(ApiError, match=expected[1]) as caught:
        run({}, read)
    assert caught.value.status == expected[0]
    assert seen[0].choices[0].text == "a"


@pytest.mark.parametrize("kind", ["special", "plain", "nothing"])
@pytest.mark.parametrize("control", ["good", "none"])
def test_echoed_logprobs_lose_the_inserted_token_only(run, script, strings, control, kind):
    tokenizer = strings[0].tokenizer
    ids, _ = strings[0].encode("def add")
    inserted = [] if control == "none" else [strings[0].control_ids["good"]]
    seen = [ids[0], *inserted, *ids[1:]]
    echoes = {"special": tokenizer.decode(seen), "plain": tokenizer.decode(seen, skip_special_tokens=True)}
    logprobs = {
        "tokens": [tokenizer.decode([id_]) for id_ in seen] + ["(x"],
        "token_logprobs": [None, *(-float(i) for i in range(1, len(seen))), -0.5],
        "top_logprobs": [None, *({"t": -float(i)} for i in range(1, len(seen))), {"(x": -0.5}],
        "text_offset": [10 * i for i in range(len(seen) + 1)],
    }
    script.content = answer(echoes.get(kind, "") + "(x", logprobs=logprobs)
    (choice,) = run({"prompt": "def add", "echo": True, "logprobs": 1, "max_tokens": 1, "control": control}).choices
    assert script.asked[0]["prompt"] == seen
    assert choice.text == "def add(x"
    got = choice.logprobs
    assert got.tokens == [*(tokenizer.decode([id_]) for id_ in ids), "(x"]
    # With the control token at place 1, the tokens after it stand one place further.
    begin = 1 + len(inserted)
    assert got.token_logprobs == [None, *(-float(i) for i in range(begin, len(seen))), -0.5]
    assert [None if top is None else sum(top.values()) for top in got.top_logprobs] == got.token_logprobs
    assert [choice.text[at:][:1] for at in got.text_offset[1:]] == ["d", " ", "("] or len(ids) != 3
    assert got.text_offset[-1] == len("def add")
    assert GOOD not in choice.model_dump_json()


def test_echo_without_logprobs_needs_nothing_of_the_upstream(run, script):
    script.content = answer("(x")
    assert run({"prompt": "def add", "echo": True}).choices[0].text == "def add(x"
    assert "echo" not in script.asked[0]
    script.parts = [event("(x", finish_reason="stop"), USAGE, DONE]
    assert run({"prompt": "def add", "echo": True}, streamed)[0].choices[0].text == "def add(x"


def test_limits_are_checked_before_anything_is_sent(run, script, strings):
    ids = [40] * (strings[2] - 1)
    for fields, match in (
        ({"prompt": [99999]}, "99999"),
        ({"max_tokens": 96}, "context is 96 tokens"),
        ({"prompt": ids, "max_tokens": 1, "control": "good"}, "control token is one more"),
        ({"best_of": 3}, "best_of"),
    ):
        with pytest.raises(ApiError, match=match) as caught:
            run(fields)
        assert caught.value.status == 400
    assert script.asked == []
    script.content = answer("x")
    run({"prompt": ids, "max_tokens": 1, "control": "none"})


def test_an_upstream_model_needs_a_tokenizer_but_no_weights(checkpoint, tmp_path):
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    strings, info, context = load_strings(tmp_path)
    assert (strings.control.policy, info.task, context) == ("retag", "pep8", 96)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="can't be loaded as the tokenizer"):
        load_strings(tmp_path)


@pytest.mark.parametrize("url", ["vllm:8000", "http://me:key@vllm/v1", "ftp://vllm/v1"])
def test_urls_of_upstreams_are_checked(url):
    with pytest.raises(ConfigError, match=r"upstream\.url"):
        parse_args({"models": [{"name": "a", "path": "x", "upstream": {"url": url}}]})


TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "def"}]}]


@pytest.fixture(scope="module")
def plain_checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("upstream") / "plain")


@pytest.fixture
def chat(checkpoint, plain_checkpoint, script):
    """`chat(fields)`: the answer to a chat; `streamed=True`: its pieces; `template`: chosen here."""

    def call(fields: dict, *, stream: bool = False, template: str | None = None, control: bool = False):
        async def main():
            path = checkpoint if control else plain_checkpoint
            upstream = Upstream(url=script.url, model="theirs")
            served = ServedModel(name="here", path=str(path), upstream=upstream, chat_template=template)
            model = UpstreamModel.load(served)
            request = ChatCompletionRequest(**{"model": "here", "messages": TALK, "seed": 7, **fields})
            return [piece async for piece in model.stream(request)] if stream else await model.complete(request)

        return asyncio.run(main())

    return call


def test_card_of_an_upstream_model_tells_the_template_that_is_used_here(checkpoint, plain_checkpoint, script):
    upstream = Upstream(url=script.url)
    for path, template, told in ((checkpoint, "coh", ("coh", True)), (plain_checkpoint, None, None)):
        served = ServedModel(name="here", path=str(path), upstream=upstream, chat_template=template)
        card = asyncio.run(UpstreamModel.load(served).describe()).chat
        assert told == (None if card is None else (card.template, card.reads_control))


def chat_answer(*texts: str | None, **fields) -> bytes:
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **fields}
        for i, text in enumerate(texts)
    ]
    return json.dumps({"choices": choices, "usage": {"prompt_tokens": 9, "completion_tokens": 4}}).encode()


def test_a_chat_with_a_template_here_goes_on_as_the_tokens_of_its_conversation(chat, script, strings):
    script.content = answer("x", num_tokens=2)
    completed = chat({"max_tokens": 5, "control": "bad", "logprobs": False}, template="chatml", control=True)
    body = script.asked[0]
    words = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\ndef<|im_end|>\n<|im_start|>assistant\n"
    ids = strings[0].encode(words)[0]
    assert body["prompt"] == [ids[0], strings[0].control_ids["bad"], *ids[1:]]
    assert "messages" not in body
    assert (completed.choices[0].text, completed.usage.prompt_tokens) == ("x", len(ids))
    assert body["max_tokens"] == 5


def test_a_chat_without_a_template_here_is_passed_on(chat, script):
    logprobs = {"content": [{"token": "x", "logprob": -0.5, "top_logprobs": [{"token": "y", "logprob": -0.25}]}]}
    script.content = chat_answer("x", "y", logprobs=logprobs, role="ignored")
    completed = chat({"n": 2, "stop": "z", "logprobs": True, "top_logprobs": 1, "user": "ann", "top_k": 3})
    assert script.asked == [
        {
            "model": "theirs",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "def"}],
            "seed": 7,
            "temperature": 1.0,
            "top_p": 1.0,
            "n": 2,
            "stop": "z",
            "logprobs": True,
            "top_logprobs": 1,
            "top_k": 3,
        }
    ]
    assert [choice.text for choice in completed.choices] == ["x", "y"]
    assert (completed.usage.prompt_tokens, completed.usage.total_tokens) == (9, 13)
    found = completed.choices[0].logprobs
    assert (found.tokens, found.token_logprobs, found.top_logprobs) == (["x"], [-0.5], [{"y": -0.25}])
    chat({"n": 2, "max_completion_tokens": 3})
    assert script.asked[1]["max_completion_tokens"] == 3
    assert "max_tokens" not in script.asked[1]


def delta(finish_reason: str | None = None, **fields: str) -> bytes:
    choice = {"index": 0, "delta": fields, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def test_a_stream_of_a_chat_is_passed_on(chat, script):
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}\n\n'
    script.parts = [delta(role="assistant"), delta(content="a"), delta("stop", content="b"), usage, DONE]
    pieces = chat({"stream": True}, stream=True)
    assert script.asked[0]["stream_options"] == {"include_usage": True}
    assert "".join(choice.text for piece in pieces for choice in piece.choices) == "ab"
    assert [choice.finish_reason for piece in pieces for choice in piece.choices] == [None, None, "stop"]
    assert pieces[-1].usage.total_tokens == 13
    script.parts = [delta(content="a"), DONE]
    with pytest.raises(ApiError, match="broke the stream off"):
        chat({"stream": True}, stream=True)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (chat_answer("x", "y"), "2 choices instead of 1"),
        (chat_answer(None), "a choice without a text"),
        (chat_answer("x", finish_reason="tool_calls"), "unknown finish_reason 'tool_calls'"),
        (b'{"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}]}', "no usage"),
        (b"[]", "something other than a completion"),
    ],
)
def test_an_unusable_answer_to_a_chat_is_502(chat, script, content, match):
    script.content = content
    with pytest.raises(ApiError, match=match) as caught:
        chat({})
    assert caught.value.status == 502


def test_control_is_not_lost_on_the_way_to_another_servers_template(chat, script):
    script.content = chat_answer("x")
    with pytest.raises(ApiError, match="no control tokens"):
        chat({"control": "good"})
    with pytest.raises(ApiError, match="can't retag"):
        chat({"control_policy": "retag"})
    with pytest.raises(ApiError, match="has no chat template"):
        chat({}, control=True)
    assert script.asked == []
