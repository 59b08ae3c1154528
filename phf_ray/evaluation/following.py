"""Follows requests for samples as they are answered, and decides when too many have failed."""

import logging
import time
from collections import Counter
from collections.abc import Iterable

from phf_ray.errors import ServiceError
from phf_ray.evaluation.asking import Outcome

log = logging.getLogger(__name__)


def follow_outcomes(
    outcomes: Iterable[Outcome], *, num_to_draw: int, num_planned: int, max_failed: int, limit: str
) -> Counter[str]:
    """Log progress until all outcomes are there; return the number of failed samples by reason.

    A refused prompt counts as failed if other prompts were answered, now or in an earlier call. The first refusal may
    come before any answer. A second refused prompt before any answer, or no answer at all, shows that the server
    refuses every request: raises ServiceError. `limit`: what says that `max_failed` may fail, for the error.
    """
    failures: Counter[str] = Counter()
    num_drawn = 0
    refusals: dict[str, str] = {}
    started = said = time.monotonic()
    for outcome in outcomes:
        num_drawn += int(outcome["num_samples"])
        if outcome["refused"] == "prompt":
            refusals[str(outcome["prompt"])] = str(outcome["error"])
        is_answered = num_planned - num_to_draw + num_drawn > 0
        if outcome["refused"] == "all" or (len(refusals) > 1 and not is_answered):
            raise ServiceError(str(outcome["error"]))
        if outcome["num_failed"]:
            failures[str(outcome["error"])] += int(outcome["num_failed"])
            log.warning("%d samples failed: %s", outcome["num_failed"], outcome["error"])
            if failures.total() > max_failed:
                raise ServiceError(
                    f"{failures.total()} of {num_to_draw} samples could not be drawn, more than {limit} allows "
                    f"({outcome['error']}); drawn samples are kept, and the same command resumes"
                )
        now = time.monotonic()
        if now - said > 5 or num_drawn == num_to_draw:
            log.info("drawn %d of %d samples (%.1f/s)", num_drawn, num_to_draw, num_drawn / (now - started))
            said = now
    if refusals and num_planned - num_to_draw + num_drawn == 0:
        raise ServiceError(next(iter(refusals.values())))
    return failures
