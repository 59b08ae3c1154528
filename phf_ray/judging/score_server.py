"""What a served scorer is sent, and what its answer means: one score for each text, the lower the better.

Two protocols: phf-ray's `/v1/scores`, where higher is worse and the answer says who scored, and OpenRLHF's
`/get_reward`, where higher is better and nobody says who.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phf_ray.config import RewardServer, ScorerServer, ScoreServer
from phf_ray.config.rewards import GET_REWARD, SCORES
from phf_ray.errors import ServiceError
from phf_ray.feedback.values import finite_number
from phf_ray.http.keys import Endpoint
from phf_ray.judging.endpoint import MalformedAnswerError
from phf_ray.judging.question import Failure, Question
from phf_ray.storage.hashing import digest

UNSCORED = "unscored"
"""Kind of the failure of a text to which the server gave no score."""
_PLACE = re.compile(r"\{(instruction|answer)\}")
_SHOWN = 300
"""Characters of an answer that no one understands."""

Identity = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ScoreServerSettings:
    """How a served scorer is asked."""

    server: ScoreServer
    endpoint: Endpoint
    identity: Identity | None
    """What the server said of its scorer; None: its protocol doesn't say."""

    @property
    def judge(self) -> str:
        """The judge as its questions name it."""
        return scoring_judge(self.server, self.identity)


def scoring_judge(server: ScoreServer, identity: Identity | None) -> str:
    """Return whom a question names as its judge: URL and scorer, and a hash of what the server said of it."""
    if isinstance(server, ScorerServer):
        return f"{bare_url(server)}{SCORES} {server.name} {digest([identity], size=8)}"
    return f"{bare_url(server)}{GET_REWARD}"


def bare_url(server: ScoreServer) -> str:
    """Return the URL without the path of a protocol, which users may write, too."""
    return server.url.rstrip("/").removesuffix(SCORES).removesuffix(GET_REWARD).removesuffix("/v1").rstrip("/")


def scoring_question(judge: str, server: ScoreServer, *, instruction: str, answer: str) -> Question:
    """Return the question for the score of one answer."""
    if isinstance(server, RewardServer) and server.text is not None:
        values = {"instruction": instruction, "answer": answer}
        return _question(judge, None, _PLACE.sub(lambda place: values[place[1]], server.text))
    shows_prompt = isinstance(server, RewardServer) or (isinstance(server, ScorerServer) and server.prompts)
    return _question(judge, instruction if shows_prompt else None, answer)


def _question(judge: str, prompt: str | None, text: str) -> Question:
    return Question(judge, prompt=json.dumps([prompt, text]))


def path_of_scores(server: ScoreServer) -> str:
    return SCORES if isinstance(server, ScorerServer) else GET_REWARD


def body_of_scores(server: ScoreServer, questions: Sequence[Question]) -> dict[str, Any]:
    """Return the body of a request for the scores of these questions, all of one judge."""
    asked = [json.loads(question.prompt or "") for question in questions]
    prompts, texts = [prompt for prompt, _ in asked], [text for _, text in asked]
    has_prompts = None not in prompts
    if isinstance(server, ScorerServer):
        return scores_body(texts, prompts if has_prompts else None, scorer=server.name)
    if not has_prompts:
        return scores_body(texts, None, scorer=None)
    # OpenRLHF's queries are whole texts, and these are answers.
    return {**scores_body(texts, prompts, scorer=None), "joined": False}


def read_scores(settings: ScoreServerSettings, said: Mapping[str, Any], *, num: int) -> list[float | Failure]:
    """Return the scores in an answer; the lower is better.

    Raises MalformedAnswerError if it does not hold `num` of them, and ServiceError if another scorer gave them.
    """
    is_reward = isinstance(settings.server, RewardServer)
    if not is_reward:
        _check_identity(settings, said)
    return scores_in(said, num=num, is_reward=is_reward)


def scores_body(texts: Sequence[str], prompts: Sequence[str] | None, *, scorer: str | None) -> dict[str, Any]:
    """Return the body of a request: of `/v1/scores` with the name of a scorer, of `/get_reward` with None."""
    beside = {} if prompts is None else {"prompts": list(prompts)}
    if scorer is None:
        return {"query": list(texts), **beside}
    return {"scorer": scorer, "input": list(texts), **beside}


def scores_in(said: Mapping[str, Any], *, num: int, is_reward: bool) -> list[float | Failure]:
    """Return the scores in an answer of `/v1/scores`, or minus the rewards of `/get_reward`; the lower is better.

    Raises MalformedAnswerError if it does not hold `num` of them.
    """
    if is_reward:
        found, errors = said.get("rewards"), said.get("errors")
        reasons = errors if isinstance(errors, list) and len(errors) == num else [None] * num
    else:
        data = said.get("data")
        items = data if isinstance(data, list) and all(isinstance(one, Mapping) for one in data) else []
        if [one.get("index") for one in items] != list(range(num)):
            raise _malformed(said)
        found, reasons = [one.get("score") for one in items], [one.get("error") for one in items]
    if not isinstance(found, list) or len(found) != num:
        raise _malformed(said)
    sign = -1 if is_reward else 1
    return [_score(value, reason, sign=sign) for value, reason in zip(found, reasons, strict=True)]


def _score(value: Any, reason: Any, *, sign: int) -> float | Failure:
    # Servers of others wrap a reward in a list.
    if isinstance(value, list) and len(value) == 1:
        [value] = value
    if value is None:
        return Failure(f"{UNSCORED}: {reason or 'no_reason: the server gave none'}")
    number = finite_number(value)
    if number is None:
        return Failure(f"malformed: the server answered with {value!r:.60}, which is no score")
    return sign * number


def identity_in(said: Mapping[str, Any]) -> Identity:
    """Return what an answer of `/v1/scores` says of the scorer. Raises MalformedAnswerError if it says nothing."""
    found = said.get("scorer")
    if not isinstance(found, Mapping):
        raise _malformed(said)
    return dict(found)


def _check_identity(settings: ScoreServerSettings, said: Mapping[str, Any]) -> None:
    now = identity_in(said)
    if now != settings.identity:
        raise ServiceError(
            f"{settings.judge}: the server has another scorer than when this call began: {now}, before "
            f"{settings.identity}; start again, so that one scorer judges all pairs"
        )


def _malformed(said: Mapping[str, Any]) -> MalformedAnswerError:
    return MalformedAnswerError(f"the server answered with {str(dict(said))[:_SHOWN]}, which are no scores")
