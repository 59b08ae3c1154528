"""`/tokenize`, `/detokenize` and `/tokenizer_info`."""

from typing import Any

from fastapi import FastAPI

from serve.api.lookup import chosen_model
from serve.backends import Backend
from serve.chat_schemas import TokenizeRequest
from serve.errors import ApiError
from serve.schemas import DetokenizeRequest, DetokenizeResponse, TokenizeResponse


def add_tokenization(app: FastAPI, backend: Backend) -> None:
    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> TokenizeResponse:
        """The tokens of a text (`prompt`), or those that the chat of `messages` begins with, as in vLLM."""
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "give a prompt or messages, one of both", "prompt")
        model = await chosen_model(backend, body.model)
        if body.prompt is None:
            ids, strings = await model.tokenize_messages(body)
        else:
            ids, strings = await model.tokenize(body.prompt, add_special_tokens=body.add_special_tokens is not False)
        limit = (await model.describe()).max_model_len
        return TokenizeResponse(
            count=len(ids),
            max_model_len=limit,
            tokens=ids,
            token_strs=strings if body.return_token_strs else None,
        )

    @app.post("/models/{model_id:path}/tokenize")
    async def tokenize_of_model(model_id: str, body: TokenizeRequest) -> TokenizeResponse:
        return await tokenize(body.model_copy(update={"model": model_id}))

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> DetokenizeResponse:
        return DetokenizeResponse(prompt=await (await chosen_model(backend, body.model)).detokenize(body.tokens))

    @app.post("/models/{model_id:path}/detokenize")
    async def detokenize_of_model(model_id: str, body: DetokenizeRequest) -> DetokenizeResponse:
        return await detokenize(body.model_copy(update={"model": model_id}))

    @app.get("/tokenizer_info")
    async def tokenizer_info(model: str | None = None) -> dict[str, Any]:
        return await (await chosen_model(backend, model)).tokenizer_info()

    @app.get("/models/{model_id:path}/tokenizer_info")
    async def tokenizer_info_of_model(model_id: str) -> dict[str, Any]:
        return await tokenizer_info(model_id)
