"""What each model is asked, fixed before anything is sent.

The random numbers of an answer follow from the seed and the instruction alone: all models get the same, and another
order of the instructions changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from phf_ray.checkpoint import ControlChoice
from phf_ray.config import GenerateKwargs, Scenario
from phf_ray.evaluation.answers.templates import Words
from phf_ray.evaluation.arms import Arm
from phf_ray.evaluation.probe import Probe
from phf_ray.generation.chat.prompts import InstructionPrompt, PromptError
from phf_ray.storage.hashing import digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How answers are drawn; the defaults are AlpacaFarm's."""

    temperature: float = 0.7
    top_p: float = 0.9
    max_tokens: int = 300
    seed: int = 0

    @property
    def kwargs(self) -> GenerateKwargs:
        return GenerateKwargs(
            max_length=None, max_new_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p
        )


@dataclass(frozen=True, slots=True)
class Answerer:
    """A model that answers, and what puts instructions into its words."""

    arm: Arm
    """Its fingerprint is known, so that answers of other weights are never taken for its own."""
    words: Words


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    key: str
    """Hash of everything that decides the answer: answers are stored by it."""
    prompt: str
    """The instruction in the template's words."""
    seed: int


@dataclass(frozen=True, slots=True)
class SentRequest:
    """A request as it is sent."""

    arm: str
    request: AnswerRequest
    sent: str
    control: ControlChoice | None
    max_tokens: int


def plan_answers(
    prompts: Sequence[InstructionPrompt], answerer: Answerer, decoding: Decoding
) -> list[AnswerRequest | str]:
    """Return one request for each instruction, or why the template can't hold it. Equal instructions have equal keys.

    Asks no server.
    """
    arm = answerer.arm
    planned: list[AnswerRequest | str] = []
    for prompt in prompts:
        seed = int(digest([decoding.seed, prompt.instruction, prompt.input]), 16) % (1 << 31)
        try:
            text = answerer.words(prompt)
        except PromptError as error:
            planned.append(f"template: {error}")
            continue
        asked = [arm.fingerprint, arm.control, text, decoding.temperature, decoding.top_p, decoding.max_tokens, seed]
        planned.append(AnswerRequest(digest(asked, size=16), text, seed))
    return planned


def prepare(request: AnswerRequest, probe: Probe, decoding: Decoding) -> SentRequest | str:
    """Return the request as it is sent, or why the model can't answer it. May ask the server to count tokens."""
    scenario = Scenario(name="answers", generate_kwargs=decoding.kwargs)
    sent, control, max_tokens = probe.prepare(request.prompt, scenario)
    if max_tokens < 1:
        return f"too_long: the prompt leaves no room for an answer in the model's {probe.context:g} positions"
    return SentRequest(probe.arm.name, request, sent, control, max_tokens)
