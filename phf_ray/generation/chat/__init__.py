"""Prompts put into the words that a model is given: chat templates, and template files with two keys.

In: a prompt (a text, messages, or an instruction with its input) and perhaps an answer. Out: the text before the answer
and the text of the answer, apart. `prompts.py` says what a prompt is, `templates.py` finds and renders a template. This
room loads no torch, and Jinja only for a template written in it. Open `prompts.py` first.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {
    "ChatPrompt": "prompts",
    "Ending": "templates",
    "InstructionPrompt": "prompts",
    "Message": "prompts",
    "Prompt": "prompts",
    "PromptError": "prompts",
    "PromptTemplate": "templates",
    "RenderedExample": "prompts",
    "TextPrompt": "prompts",
    "TextPiece": "prompts",
    "TokenRow": "token_rows",
    "as_messages": "prompts",
    "load_template": "templates",
    "prompt_text": "prompts",
    "stored_template": "templates",
    "template_source": "templates",
    "token_row": "token_rows",
    "with_markers": "templates",
}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)
