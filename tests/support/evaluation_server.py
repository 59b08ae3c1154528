"""A small server for completions and scores over TCP, and a function that lets any application listen."""

import asyncio
import contextlib
import random
import socket
import threading
import time

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

IDENTITY = {
    "name": "pep8",
    "class_name": "PEP8Scorer",
    "unit": "violations per character",
    "versions": {"pycodestyle": "2"},
    "weights_hash": None,
    "settings": {},
}
WORDS = ["x", "=", "def", "(", ")", "return", "yield", "1", "\n", "class"]


@contextlib.contextmanager
def listening(app):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = True
        thread.join()


_OPENAIS = {"model", "prompt", "n", "max_tokens", "temperature", "top_p", "seed", "logprobs", "echo", "stop", "user"}


def strict(completions):
    """Return an application that has only OpenAI's models and completions, and refuses fields that OpenAI lacks.

    `completions`: list to which it adds the bodies of requests.
    """
    app = FastAPI()

    @app.get("/v1/models")
    async def list_models():
        return {"object": "list", "data": [{"id": "gpt", "object": "model", "created": 1, "owned_by": "openai"}]}

    @app.post("/v1/completions")
    async def complete(request: Request):
        body = await request.json()
        unknown = sorted(set(body) - _OPENAIS)
        if unknown:
            message = f"Unrecognized request argument supplied: {unknown[0]}"
            return JSONResponse({"error": {"message": message}}, status_code=400)
        completions.append(body)
        texts = [f"{body['prompt']} x {body['seed'] + number}" for number in range(body["n"])]
        return {
            "choices": [{"text": text, "index": index, "finish_reason": "length"} for index, text in enumerate(texts)]
        }

    return app


class Server:
    """Texts depend on (model, control, prompt, seed, choice); a text's score is its share of the letter x.

    If `write` is set, it makes the texts from the body and the choice's seed. The server calls `troubles` before each
    answer to a completion or chat; if that returns an answer, the server sends it instead.
    """

    def __init__(self):
        self.completions: list[dict] = []
        self.chats: list[dict] = []
        self.num_scored = 0
        self.keys: set[str | None] = set()
        self.troubles = lambda number, body: None
        self.brings_n = True
        self.delay_s = 0.0
        self.unscored = lambda text: None
        self.write = None
        self.models = {"mle": {}, "conditional": {"control": {"policy": "retag", "default": "good"}}}
        self.no_messages = 400
        """Status for a chat without messages; a server without chats has 404."""
        self.cards = {}
        """By model, the fields that only its own card has, not the list of models."""
        self._lock = threading.Lock()
        app = FastAPI()
        app.post("/v1/completions")(self.complete)
        app.post("/v1/chat/completions")(self.chat)
        app.post("/v1/scores")(self.scores)
        app.post("/tokenize")(self.tokenize)
        app.get("/tokenizer_info")(self.tokenizer_info)
        app.get("/v1/models")(self.list_models)
        app.get("/v1/models/{name}")(self.retrieve_model)
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self):
        self._server.should_exit = True
        self._thread.join()

    def catch_up(self):
        """Return when all that was sent before has been counted, also by clients that were killed."""
        for _ in range(3):
            httpx.get(f"{self.url}/v1/models", trust_env=False, timeout=60).raise_for_status()

    @property
    def num_asked(self) -> int:
        return sum(body["n"] for body in self.completions)

    async def list_models(self, request: Request):
        if request.headers.get("authorization") == "Bearer wrong":
            return JSONResponse({"error": {"message": "no such key"}}, status_code=401)
        return {
            "data": [
                {"id": name, "owned_by": "phf-ray", "max_model_len": 128, **card} for name, card in self.models.items()
            ]
        }

    async def retrieve_model(self, name: str):
        return {"id": name, "owned_by": "phf-ray", "max_model_len": 128, **self.cards[name]}

    async def tokenize(self, request: Request):
        body = await request.json()
        words = body["prompt"].split() or ["<eos>"] * body["add_special_tokens"]
        return {"tokens": [len(word) for word in words], "count": len(words)}

    async def tokenizer_info(self):
        return {"eos_token": "<eos>"}

    async def complete(self, request: Request):
        body = await request.json()
        if "prompt" not in body:
            return JSONResponse({"error": {"message": "prompt: field required"}}, status_code=400)
        self.keys.add(request.headers.get("authorization"))
        with self._lock:
            number = len(self.completions)
            trouble = self.troubles(number, body)
            if trouble is not None:
                return trouble
            self.completions.append(body)
        await asyncio.sleep(self.delay_s)
        return {
            "choices": [
                self._choice(body, choice) for choice in reversed(range(body.get("n", 1) if self.brings_n else 1))
            ]
        }

    def _choice(self, body, choice):
        seed = body.get("seed", 0) + choice
        rng = random.Random(f"{body['model']}{body.get('control')}{body['prompt']}{seed}")
        bad = 5 if body.get("control") == "bad" else 0
        bad += body["prompt"].count("x")
        words = rng.choices(WORDS + ["x"] * bad, k=rng.randint(body.get("min_tokens", 1), body["max_tokens"]))
        text = self.write(body, seed) if self.write else " ".join(words)
        return {"text": text, "index": choice, "finish_reason": "stop", "logprobs": {"tokens": words}}

    async def chat(self, request: Request):
        body = await request.json()
        if "max_tokens" in body and body["model"] == "newest":
            message = "Unsupported parameter: 'max_tokens'; use 'max_completion_tokens' instead."
            return JSONResponse({"error": {"message": message}}, status_code=400)
        if "messages" not in body:
            return JSONResponse({"error": {"message": "messages: field required"}}, status_code=self.no_messages)
        with self._lock:
            trouble = self.troubles(len(self.chats), body)
            if trouble is not None:
                return trouble
            self.chats.append(body)
        num = body["n"] if self.brings_n else 1
        return {"choices": [self._chat_choice(body, choice) for choice in reversed(range(num))]}

    def _chat_choice(self, body, choice):
        """Return the longest example with one x more, a refusal in words or in its own field, or an empty text."""
        [message] = body["messages"]
        examples = [line.partition(". ")[2] for line in message["content"].splitlines()[2:-1]]
        rng = random.Random(f"{message['content']}{body['seed'] + choice}")
        kind = rng.random()
        content = f"Here is one more:\n\n5. {max(examples, key=len, default='')} x{rng.randrange(100)}"
        if kind < 0.2:
            content = "I'm sorry, but I can't help with that."
        elif kind < 0.3:
            return {"index": choice, "message": {"content": None, "refusal": "No."}, "finish_reason": "stop"}
        elif kind < 0.4:
            content = ""
        return {"index": choice, "message": {"content": content}, "finish_reason": "stop"}

    async def scores(self, request: Request):
        body = await request.json()
        self.keys.add(request.headers.get("authorization"))
        if body["scorer"] != "pep8":
            return JSONResponse({"error": {"message": "no such scorer: try pep8"}}, status_code=404)
        self.num_scored += len(body["input"])
        data = []
        for index, text in enumerate(body["input"]):
            error = self.unscored(text)
            score = None if error else text.count("x") / max(1, len(text))
            data.append({"index": index, "score": score, "error": error, "segments": None})
        return {"scorer": IDENTITY, "data": data}
