"""Requests and answers of chats, in the shapes of OpenAI and vLLM, and `/tokenize`, which takes conversations too."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from serve.request_body import RequestBody
from serve.schemas import SamplingRequest, StrictRequest, Text, Usage

MAX_TOP_LOGPROBS = 20
ROLES = ("system", "developer", "user", "assistant")
"""`developer` is OpenAI's newer name for `system`."""
_TOOLS = "tools are not supported"


class ContentPart(RequestBody):
    """A part of a message. Of its kinds only text is served."""

    model_config = ConfigDict(extra="allow")

    type: str
    text: Text | None = None


class ChatMessage(StrictRequest):
    role: str
    """system, developer, user or assistant."""
    content: Text | list[ContentPart] | None = None
    """A text, or parts of the type `text`, which are joined by line breaks."""
    name: str | None = None
    """Refused: no template here has a place for it."""
    # What OpenAI's client writes into an answer that is sent back as a message; anything but null or empty is refused.
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None
    tool_call_id: Any = None
    audio: Any = None
    annotations: Any = None

    @model_validator(mode="after")
    def _is_text_of_a_known_role(self) -> "ChatMessage":
        for field in ("tool_calls", "function_call", "tool_call_id", "refusal", "audio", "annotations", "name"):
            if getattr(self, field):
                why = _TOOLS if field.startswith(("tool", "function")) else "it is not supported"
                raise ValueError(f"the message has a {field}, but {why}; leave it out")
        if self.role not in ROLES:
            why = f"{_TOOLS}; " if self.role in ("tool", "function") else ""
            raise ValueError(f"the role is {self.role!r}; {why}use one of {', '.join(ROLES)}")
        if self.content is None or self.content == []:
            raise ValueError(f"the message of the {self.role} has no content; give a text")
        for part in self.content if isinstance(self.content, list) else ():
            if part.type != "text" or part.text is None:
                raise ValueError(f"the content has a part of the type {part.type!r}; only parts with a text are served")
        return self

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            # As in vLLM.
            return "\n".join(part.text or "" for part in self.content)
        return self.content or ""


Messages = list[ChatMessage]


def _some(messages: Messages) -> Messages:
    if not messages:
        raise ValueError("there are no messages; give at least one")
    return messages


class ChatCompletionRequest(SamplingRequest):
    """`POST /v1/chat/completions`."""

    messages: Messages
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """None: as many as the context has room for."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """OpenAI's newer name for `max_tokens`."""
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """Number of alternatives per token; needs `logprobs`."""
    add_generation_prompt: bool | None = None
    """Whether the assistant's turn is opened; null: yes, unless the last message is continued."""
    continue_final_message: bool = False
    """Go on with the last message, which is the assistant's."""
    tools: Any = None
    """Refused, like the next four."""
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    """Refused, but for the type `text`."""

    _has_messages = field_validator("messages")(_some)


class TokenizeRequest(StrictRequest):
    """`POST /tokenize`: a text, or a conversation, whose tokens are those that a chat completion begins with."""

    prompt: Text | None = None
    messages: Messages | None = None
    model: str | None = None
    add_special_tokens: bool | None = None
    """Whether to put before the tokens what the tokenizer puts there; null: yes for a prompt. A conversation has what
    its template, and the model's training, put there."""
    return_token_strs: bool = False
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    control: Literal["good", "bad", "none"] | None = None
    """For a template that reads it."""

    _has_messages = field_validator("messages")(_some)


class AnsweredMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class TokenAlternative(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None
    """UTF-8 of the token; null for a part of a character."""


class ChatTokenLogprob(TokenAlternative):
    top_logprobs: list[TokenAlternative]


class ChatLogprobs(BaseModel):
    content: list[ChatTokenLogprob]


class ChatChoice(BaseModel):
    index: int
    message: AnsweredMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    token_ids: list[int] | None = None
    """Generated tokens, including end of text, if the request asked for them."""


class ChatCompletionResponse(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
