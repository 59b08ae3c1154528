"""Which tokens of a server's answer a log-probability sums over; and what OpenAI's own API is asked."""

import json

import pytest

from phf_ray.evaluation.arms import Arm
from phf_ray.evaluation.kl.ask_drawn import Drawing, api_of, draw_samples, kept_samples
from phf_ray.evaluation.kl.drawn import text_of_choice
from phf_ray.evaluation.kl.rows import kl_rows
from phf_ray.evaluation.report.records import KLInfo
from phf_ray.http.client import RefusedError

E, SUN = "\u00e9", "\u2600"


def completion(text, tokens, logprobs=None, *, finish="length"):
    values = [-1.0] * len(tokens) if logprobs is None else logprobs
    return text_of_choice(
        {"text": text, "finish_reason": finish, "logprobs": {"tokens": tokens, "token_logprobs": values}}
    )


def chat(text, tokens, *, finish="length", **message):
    content = [
        {"token": token, "bytes": None if spelled is None else list(spelled), "logprob": -1.0}
        for token, spelled in tokens
    ]
    return text_of_choice(
        {"message": {"content": text, **message}, "finish_reason": finish, "logprobs": {"content": content}}
    )


@pytest.mark.parametrize(
    ("drawn", "text", "num_tokens", "has_end"),
    [
        (completion("a b", ["a", " b"]), "a b", 2, False),
        (completion("a b", ["a", " b"], finish="stop"), "a b", 2, False),
        (completion("a b", ["a", " b", "<|endoftext|>"], finish="stop"), "a b", 3, True),
        (completion("a b", ["a", " b", ""], finish="stop"), "a b", 3, True),
        (completion("", ["</s>"], finish="stop"), "", 1, True),
        (completion(f"a{E}", ["a", r"bytes:\xc3", r"bytes:\xa9"]), f"a{E}", 3, False),
        (completion(f"a{E}b", ["a", "\ufffd", "\ufffd", "b"]), f"a{E}b", 4, False),
        (completion(f"a{E}", ["a", "\ufffd", "\ufffd"]), f"a{E}", 3, False),
        (completion("a\ufffd", ["a", r"bytes:\xe2", r"bytes:\x98"]), "a", 1, False),
        (completion("a\ufffd", ["a", "\ufffd", "\ufffd"]), "a", 1, False),
        (completion("a", ["a", r"bytes:\xe2"]), "a", 1, False),
        (chat(f"a{SUN}", [("a", b"a"), ("\ufffd", b"\xe2\x98"), ("\ufffd", b"\x80")]), f"a{SUN}", 3, False),
        (chat("a", [("a", b"a"), ("<|im_end|>", b"<|im_end|>")], finish="stop"), "a", 2, True),
        (chat("a", [("a", None)]), "a", 1, False),
    ],
)  # fmt: skip
def test_the_tokens_of_the_text_count_and_its_end_if_it_is_there(drawn, text, num_tokens, has_end):
    assert drawn.error is None
    assert (drawn.text, drawn.num_tokens, drawn.has_end, drawn.logprob) == (text, num_tokens, has_end, -num_tokens)


@pytest.mark.parametrize(
    ("drawn", "reason"),
    [
        (completion("ab", ["a", "b"], [-1.0, None]), "the log-probability None"),
        (completion("ab", ["a", "b"], [-1.0, -9999.0]), "the log-probability -9999.0"),
        (completion("ab", ["a", "b"], [-1.0, float("nan")]), "the log-probability nan"),
        (completion("ab", ["a", "b"], [-1.0]), "no log-probabilities"),
        (text_of_choice({"text": "a", "logprobs": None}), "no log-probabilities"),
        (text_of_choice({"text": "a", "logprobs": {"tokens": ["a"]}}), "no log-probabilities"),
        (completion("abc", ["a", "b"]), "do not spell"),
        (completion("a", ["a", "b"]), "do not spell"),
        (completion(f"a{E}b", ["a", "\ufffd", "c"]), "do not spell"),
        (completion("", [], finish="stop"), "empty, without"),
        (completion("a", ["a"], finish="content_filter"), "cut the text short"),
        (chat(None, [], refusal="No."), "the model refused"),
    ],
)
def test_a_text_without_a_whole_log_probability_has_a_reason(drawn, reason):
    assert drawn.logprob is None
    assert reason in drawn.error


class OpenAI:
    """Answers chats as OpenAI's newer models do."""

    def __init__(self):
        self.asked = []

    def get(self, path):
        return {"data": [{"id": "gpt-4o", "owned_by": "system"}]}

    def post(self, path, body):
        self.asked.append((path, body))
        if path != "/v1/chat/completions":
            raise RefusedError("status 404: This is a chat model")
        one = {"token": "a", "bytes": [97], "logprob": -0.5}
        choice = {"message": {"content": "a"}, "finish_reason": "length", "logprobs": {"content": [one]}}
        return {"choices": [{**choice, "index": index} for index in range(body["n"])]}


def test_openais_own_api_is_asked_in_its_own_words_and_its_kl_has_the_originals_name(tmp_path):
    server = OpenAI()
    reference = Arm("gpt-4o", "https://api.openai.com/v1", "gpt-4o", source="https://api.openai.com/v1", client=server)
    api = api_of(reference)
    assert api == "chat"
    assert [path for path, _ in server.asked] == ["/v1/completions", "/v1/chat/completions"], "no /tokenize, no echo"
    drawing = Drawing(3, 7, prompt="Write.")
    samples = draw_samples(reference, api, drawing, cache=str(tmp_path))
    body = server.asked[-1][1]
    assert body["max_completion_tokens"] == 7
    assert body["messages"] == [{"role": "user", "content": "Write."}]
    assert "max_tokens" not in body
    assert samples.is_openai
    assert kept_samples(reference, drawing, cache=str(tmp_path)) == samples
    for other in (Drawing(4, 7, prompt="Write."), Drawing(3, 8, prompt="Write."), Drawing(3, 7)):
        assert kept_samples(reference, other, cache=str(tmp_path)) is None
    [file] = tmp_path.iterdir()
    assert json.loads(file.read_text().partition("\n")[0])["prompt"] == "Write."


class Completions(OpenAI):
    """Answers completions as OpenAI's older models do."""

    def post(self, path, body):
        one = {"tokens": ["a"], "token_logprobs": [-0.5]}
        return {"choices": [{"index": 0, "text": "a", "finish_reason": "length", "logprobs": one}] * body["n"]}


def test_the_prompt_that_texts_continue_is_kept_with_them(tmp_path):
    url = "https://api.openai.com/v1"
    reference = Arm("gpt-4o", url, "gpt-4o", source=url, client=Completions())
    samples = draw_samples(reference, "completions", Drawing(2, 7, prompt="def "), cache=str(tmp_path))
    assert (samples.prompt, samples.is_chat) == ("def ", False)
    assert samples.first(1).prompt == "def "
    assert kept_samples(reference, Drawing(2, 7, prompt="def "), cache=str(tmp_path)) == samples
    # End-of-text is no prompt: the texts start from nothing.
    assert draw_samples(reference, "completions", Drawing(2, 7), cache=str(tmp_path)).prompt == ""
    chat = Arm("gpt-4o", url, "gpt-4o", source=url, client=OpenAI())
    assert draw_samples(chat, "chat", Drawing(2, 7), cache=str(tmp_path)).is_chat


@pytest.mark.parametrize("is_openai", [True, False])
def test_only_a_reference_of_openais_has_the_originals_name(is_openai):
    info = KLInfo(
        reference="gpt",
        num_samples=2,
        num_impossible=0,
        per_sequence=(3.0, 0.1),
        per_token=None,
        per_byte=(0.5, 0.01),
        failures={"no text": 2},
        is_openai=is_openai,
    )
    expected = {
        "KL/gpt/num_impossible": 0,
        "KL/gpt/num_failed": 2,
        "KL/gpt/per_sequence": 3.0,
        "KL/gpt/per_sequence_error": 0.1,
        "KL/gpt/per_byte": 0.5,
        "KL/gpt/per_byte_error": 0.01,
    }
    assert kl_rows(info) == expected | ({"KL/KL(GPT3, model)": 3.0} if is_openai else {})
