"""Asks servers for answers, several at once, and stores each as it comes."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

from phf_ray.characters import whole_characters
from phf_ray.errors import ServiceError
from phf_ray.evaluation.answers.plan import Decoding, SentRequest
from phf_ray.evaluation.answers.store import AnswerStore, DrawnAnswer
from phf_ray.evaluation.arms import Arm, Asks, client_of
from phf_ray.evaluation.asking import Outcome
from phf_ray.evaluation.requests import choices_of, completion_body, num_tokens_of, text_of
from phf_ray.http.client import RefusedError


@dataclass(frozen=True, slots=True)
class DrawAnswers:
    """`ServerWork`: sends some requests at once, and stores the answers."""

    takes_long: ClassVar[bool] = False

    arms: Mapping[str, Arm]
    decoding: Decoding
    output: str
    patience_s: float = 60.0

    @property
    def urls(self) -> list[str]:
        return [arm.url for arm in self.arms.values()]

    def run(self, requests: Sequence[SentRequest]) -> list[Outcome]:
        """Return one outcome per request: that it was stored, or why not."""
        names = {request.arm for request in requests}
        clients = {name: client_of(self.arms[name], patience_s=self.patience_s) for name in names}
        with ThreadPoolExecutor(max_workers=len(requests)) as threads:
            outcomes = threads.map(lambda request: self._one(request, clients[request.arm]), requests)
            # Answered requests first: they show that a refusal concerns one prompt, not everything.
            return sorted(outcomes, key=lambda outcome: bool(outcome["refused"]))

    def _one(self, sent: SentRequest, client: Asks) -> Outcome:
        arm, request = self.arms[sent.arm], sent.request
        outcome: Outcome = {
            "arm": sent.arm,
            "key": request.key,
            "num_samples": 0,
            "num_failed": 0,
            "refused": "",
            "prompt": "",
            "error": "",
        }
        body = completion_body(sent, self.decoding.kwargs, arm, count=1, seed=request.seed)
        try:
            choice = choices_of(client.post("/v1/completions", body), arm)[0]
            text = text_of(choice, arm)
        except ServiceError as error:
            of_prompt = isinstance(error, RefusedError) and error.status == 400
            refused = "prompt" if of_prompt else "all" if isinstance(error, RefusedError) else ""
            return outcome | {
                "num_failed": 1,
                "refused": refused,
                "prompt": request.prompt if of_prompt else "",
                "error": str(error),
            }
        answer = DrawnAnswer(
            key=request.key,
            prompt=sent.sent,
            seed=request.seed,
            text=whole_characters(text),
            finish_reason=choice.get("finish_reason"),
            num_tokens=num_tokens_of(choice),
        )
        AnswerStore(self.output).add(sent.arm, answer)
        return outcome | {"num_samples": 1}
