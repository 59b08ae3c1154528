"""What a prompt is: a text, the messages of a conversation, or an instruction with its input."""

from dataclasses import dataclass

from phf_ray.errors import DataError

USER, ASSISTANT = "user", "assistant"


class PromptError(DataError):
    """A template can't put this prompt or conversation into words; other prompts are not concerned."""


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class TextPrompt:
    text: str


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages of a conversation, of which the answer is the next."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class InstructionPrompt:
    instruction: str
    input: str = ""
    """What the instruction is about; empty if it needs nothing."""


Prompt = TextPrompt | ChatPrompt | InstructionPrompt


@dataclass(frozen=True, slots=True)
class RenderedExample:
    """The words of a prompt and of its answer. Joined, they are the text to learn from."""

    prompt: str
    """Ends where the assistant begins to speak."""
    completion: str


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Part of the text of a conversation."""

    text: str
    is_answer: bool
    """Whether the assistant says it. What a template puts after an answer, such as the end of a turn, belongs to it."""


def prompt_text(prompt: Prompt) -> str:
    """Return the prompt as one text without a template: to show it, to hash it, to compare it with others."""
    if isinstance(prompt, TextPrompt):
        return prompt.text
    if isinstance(prompt, InstructionPrompt):
        return f"{prompt.instruction}\n\n{prompt.input}" if prompt.input else prompt.instruction
    return "\n\n".join(f"{message.role}: {message.content}" for message in prompt.messages)


def as_messages(prompt: Prompt) -> tuple[Message, ...]:
    """Return the prompt as messages: a text or an instruction becomes one message of the user."""
    return prompt.messages if isinstance(prompt, ChatPrompt) else (Message(USER, prompt_text(prompt)),)
