"""A local model behind OpenAI's completions or chats: log-probabilities of what it draws, and no echo of prompts.

The model's vocabulary is a few letters and the end-of-text token, so every text it can write is known, with its exact
probability.
"""

import itertools
import math

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from tiny_models import END_OF_TEXT
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from phf_ray.generation.bodies import requests_from_body
from phf_ray.generation.engine import Engine, generate

LETTERS = "abc\u00e9"


def letters_engine(*, seed):
    """Return a random GPT-2 whose tokens are single letters, so that a text has one spelling only."""
    vocabulary = {END_OF_TEXT: 0, **{letter: number + 1 for number, letter in enumerate(LETTERS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=END_OF_TEXT))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT)
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(vocabulary),
        n_positions=16,
        n_embd=16,
        n_layer=1,
        n_head=2,
        initializer_range=0.25,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return Engine(GPT2LMHeadModel(config).eval(), fast)


@torch.no_grad()
def exact_kl(reference, model, *, length, with_end):
    """Return KL(reference || model) in nats per text of at most `length` tokens, from all logits.

    `with_end`: whether the end-of-text token counts as one of the text; if not, empty texts are left out.
    """
    total = weight = 0.0
    for ids in _every_text(length):
        ended = len(ids) < length or ids[-1] == 0
        p, q = (_steps(engine, ids) for engine in (reference, model))
        drop = 1 if ended and not with_end else 0
        if len(p) == drop:
            continue
        probability = math.exp(sum(p))
        weight += probability
        total += probability * (sum(p[: len(p) - drop]) - sum(q[: len(q) - drop]))
    return total / weight


def _every_text(length):
    for size in range(length):
        for letters in itertools.product(range(1, len(LETTERS) + 1), repeat=size):
            yield [*letters, 0]
    yield from (list(ids) for ids in itertools.product(range(1, len(LETTERS) + 1), repeat=length))


def _steps(engine, ids):
    logits_SV = engine.model(input_ids=torch.tensor([[0, *ids]])).logits[0, :-1]
    logprobs_SV = logits_SV.double().log_softmax(-1)
    return [float(logprobs_SV[step, id_]) for step, id_ in enumerate(ids)]


_FIELDS = {"model", "n", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "logprobs"}


class LogprobServer:
    """`app` refuses what OpenAI refuses: unknown fields, `echo` with `logprobs`, and completions of a chat model.

    `alter` changes a choice before it is sent. `bodies` holds what was asked of the model.
    """

    def __init__(self, engine, *, chat=False):
        self.bodies = []
        self.num_listed = 0
        self.keys = set()
        self.alter = lambda choice: choice
        self.trouble = lambda number: None
        self._engine, self._chat = engine, chat
        self.app = FastAPI()
        self.app.get("/v1/models")(self.list_models)
        self.app.post("/v1/completions")(self.complete)
        self.app.post("/v1/chat/completions")(self.converse)

    async def list_models(self):
        self.num_listed += 1
        return {"object": "list", "data": [{"id": "gpt", "object": "model", "created": 1, "owned_by": "openai"}]}

    async def complete(self, request: Request):
        if self._chat:
            return _refused("This is a chat model and not supported in the v1/completions endpoint.", 404)
        body = await request.json()
        if body.get("echo") and body.get("logprobs") is not None:
            return _refused("Setting 'echo' and 'logprobs' at the same time is not supported for this model.")
        return self._answer(request, body, field="prompt", form=_completion)

    async def converse(self, request: Request):
        if not self._chat:
            return _refused("This is not a chat model.", 404)
        return self._answer(request, await request.json(), field="messages", form=_reply)

    def _answer(self, request, body, *, field, form):
        unknown = sorted(set(body) - _FIELDS - {field})
        if unknown:
            return _refused(f"Unrecognized request argument supplied: {unknown[0]}")
        trouble = self.trouble(len(self.bodies))
        if trouble is not None:
            return trouble
        self.bodies.append(body)
        self.keys.add(request.headers.get("authorization"))
        own = {"prompt": [0], "n": body["n"], "max_tokens": body["max_tokens"], "seed": body["seed"], "logprobs": 1}
        drawn = generate(self._engine, requests_from_body(own))
        return {"choices": [self.alter(form(one, index)) for index, one in enumerate(drawn)]}


def _refused(message, status=400):
    return JSONResponse({"error": {"message": message}}, status_code=status)


def _completion(drawn, index):
    """Return a choice like vLLM's and the old completions': its log-probabilities include the end of the text."""
    records = drawn.logprobs
    tokens = {"tokens": [one.token for one in records], "token_logprobs": [one.logprob for one in records]}
    return {"index": index, "text": drawn.text, "finish_reason": drawn.finish_reason, "logprobs": tokens}


def _reply(drawn, index):
    """Return a choice like that of OpenAI's chats: bytes beside each token, and nothing about the end."""
    records = drawn.logprobs[: len(drawn.text)]
    content = [
        {"token": one.token, "logprob": one.logprob, "bytes": list(one.token.encode()), "top_logprobs": []}
        for one in records
    ]
    return {
        "index": index,
        "message": {"role": "assistant", "content": drawn.text, "refusal": None},
        "finish_reason": drawn.finish_reason,
        "logprobs": {"content": content, "refusal": None},
    }
