"""Chat: a page to talk to one or two models behind URLs, and to say which answer is better.

In: an OpenAI-compatible server. Out: answers as they come, coloured by their scores; judgements and conversations that
`phf prepare-feedback` reads. `conversation.py` says what a conversation is, `server.py` asks, `answering.py` asks for
all answers of a turn at once, `judgements.py` stores what a person said, `transcript.py` draws, and `session.py` joins
them for one tab. `page/` alone needs Gradio. Open `conversation.py` first.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {
    "ChatArm": "conversation",
    "ChatServer": "server",
    "Conversation": "conversation",
    "JudgementFiles": "judgements",
}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)
