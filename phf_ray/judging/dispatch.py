"""Sends each question to the asker of its judge, for pools whose judges are behind several URLs."""

from collections.abc import Mapping

from phf_ray.judging.question import Answer, Asker, Failure, Question


class AskerByJudge:
    """An `Asker` of all judges of a pool."""

    def __init__(self, askers: Mapping[str, Asker]):
        """`askers`: by the name that a question has for its judge, as in `Pool.endpoints`."""
        self._askers = dict(askers)

    async def ask(self, question: Question) -> Answer | Failure:
        return await self._askers[question.judge].ask(question)
