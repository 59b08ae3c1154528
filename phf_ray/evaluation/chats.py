"""Chat models in an evaluation: conversations as prompts, and requests for the answers."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from phf_ray.checkpoint import ControlChoice
from phf_ray.config import Scenario
from phf_ray.errors import ConfigError, DataError
from phf_ray.evaluation.arms import Arm
from phf_ray.evaluation.probe import Probe
from phf_ray.evaluation.prompts import prompt_records
from phf_ray.generation.chat.prompts import ASSISTANT, USER, ChatPrompt, Message, prompt_text
from phf_ray.http.client import RefusedError
from phf_ray.http.keys import is_openai

PATH = "/v1/chat/completions"
ROLES = ("system", "developer", USER, ASSISTANT)


class ChatProbe(Probe):
    """Like `Probe`, for a model that is asked for answers. A prompt is a conversation: the JSON of its messages."""

    def read(self, path: str) -> list[str]:
        found = [json.dumps(conversation_of(record, where=where)) for where, record in prompt_records(path)]
        if not found:
            raise DataError(f"{path} holds no conversations; write lines like {{'messages': [...]}}")
        return found

    def shown(self, prompt: str) -> str:
        return prompt_text(ChatPrompt(tuple(Message(one["role"], one["content"]) for one in json.loads(prompt))))

    def prepare(self, prompt: str, scenario: Scenario) -> tuple[str, ControlChoice | None, int]:
        control, kwargs = self.arm.control, scenario.generate_kwargs
        if kwargs.max_new_tokens is not None and math.isinf(self.context):
            return prompt, control, kwargs.max_new_tokens
        num_before = int(self.inserts(control)) + self._count_messages(prompt, control)
        return prompt, control, self._most_new(scenario, num_before)

    def _count_messages(self, prompt: str, control: ControlChoice | None) -> int:
        key = f"{control} {prompt}"
        if key not in self._counts:
            body: dict[str, Any] = {"model": self.arm.model, "messages": json.loads(prompt)}
            if self.reads_control and control is not None:
                body["control"] = control
            try:
                self._counts[key] = len(self._client.post("/tokenize", body)["tokens"])
            except (RefusedError, KeyError) as error:
                raise ConfigError(
                    f"{self.arm.url} does not count the tokens of a conversation ({error}); use a server whose POST "
                    "/tokenize takes messages, such as jobs.serve or vLLM, and a model with a chat template"
                ) from None
        return self._counts[key]

    @property
    def reads_control(self) -> bool:
        """Whether the template on the server is told good, bad or none."""
        return bool((self._card.get("chat") or {}).get("reads_control"))


def check_scenarios(scenarios: Sequence[Scenario]) -> None:
    """Raise ConfigError for a scenario that can't be asked of a chat."""
    for scenario in scenarios:
        if scenario.prompts_path is None:
            raise ConfigError(
                f"scenario {scenario.name} has no prompts_path, and a chat answers something; give conversations, or "
                "leave out --api chat"
            )
        if scenario.prefix is not None:
            raise ConfigError(
                f"scenario {scenario.name} has a prefix, which goes before texts; leave it out, and choose control "
                "by arm, as NAME:good"
            )
        if scenario.execute:
            raise ConfigError(
                f"scenario {scenario.name} runs programs, and an answer completes none; leave out --api chat"
            )


def conversation_of(record: Any, *, where: str) -> list[dict[str, str]]:
    """Return the messages up to the answer that is asked for: `messages`, or a text as one message of the user.

    Raises DataError, with the place, if there are none.
    """
    found = record if isinstance(record, dict) else {}
    value = next((found[name] for name in ("messages", "prompt", "text") if found.get(name) is not None), None)
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        value = value["text"]
    if isinstance(value, str):
        return [{"role": USER, "content": value}]
    turns: list[Any] = value if isinstance(value, list) else []
    problem = _problem_of(turns)
    if problem is not None:
        raise DataError(
            f"{where}: {problem}; write {{'messages': [{{'role': 'user', 'content': ...}}, ...]}}, or {{'text': ...}}"
        )
    messages = [{"role": one["role"], "content": one["content"]} for one in turns]
    while messages and messages[-1]["role"] == ASSISTANT:
        messages.pop()
    if not messages:
        raise DataError(f"{where}: the conversation has no message before an answer; remove it")
    return messages


def _problem_of(turns: Sequence[Any]) -> str | None:
    if not turns:
        return "no conversation"
    for one in turns:
        if not isinstance(one, dict) or not isinstance(one.get("content"), str):
            return f"{one!r:.80} is no message with a text"
        if one.get("role") not in ROLES:
            return f"the role {one.get('role')!r} is none of {', '.join(ROLES)}"
    return None


def chat_body(sampling: Mapping[str, Any], messages: str, arm: Arm, *, max_tokens: int) -> dict[str, Any]:
    """Return the request for answers to a conversation. `sampling`: what completions and chats have in common."""
    # OpenAI's newer models refuse the older name, and other servers do not know the newer one.
    limit = "max_completion_tokens" if is_openai(arm.url) else "max_tokens"
    return {**sampling, "messages": json.loads(messages), limit: max_tokens, "logprobs": True}


def answer_of(choice: Mapping[str, Any], arm: Arm) -> str:
    """Return the text of an answer. Raises RefusedError if it has none: the server refuses the conversation."""
    message = choice.get("message")
    text = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(text, str):
        raise RefusedError(f"{arm.url} answered a chat with a choice without a text: {message!r:.100}", status=400)
    return text


def num_answer_tokens(choice: Mapping[str, Any]) -> int | None:
    """Return how many tokens the answer has; None if the server does not say."""
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    return len(content) if isinstance(content, list) else None
