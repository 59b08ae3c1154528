"""Finds a judge in the user's own module, named `my_module:MyJudge` in a pool."""

from collections.abc import Mapping, Sequence
from typing import Any

from phf_ray.errors import ConfigError
from phf_ray.judging.judges.base import Judge
from phf_ray.judging.pairs import Pair, Preference
from phf_ray.judging.question import Failure
from phf_ray.scorers.outside import derived_in_module


def outside_judge(name: str, settings: Mapping[str, Any]) -> Judge:
    """Build `my_module:MyJudge` with `settings`. Raises ConfigError if it does not take them."""
    try:
        return _Checked(judge_class(name)(**settings), name=name)
    except TypeError as error:
        raise ConfigError(f"judge class_name {name!r}: {error}; check `settings` and the class's methods") from error


def judge_class(name: str) -> type[Judge]:
    """Import and return the class `my_module:MyJudge`. The import runs the module's code.

    Raises ConfigError that says what is missing: the module, or the class in it.
    """
    found: type[Judge] = derived_in_module(name, Judge, kind="judge", home="phf_ray.judging.Judge")
    return found


class _Checked(Judge):
    """A judge whose answers are looked at: a preference of 0 or too few of them would be wrong labels."""

    def __init__(self, judge: Judge, *, name: str):
        self._judge = judge
        self._name = name

    def prefer(self, pairs: Sequence[Pair]) -> list[Preference | Failure]:
        said = list(self._judge.prefer(pairs))
        if len(said) != len(pairs):
            raise ConfigError(f"judge {self._name}: prefer() returned {len(said)} preferences for {len(pairs)} pairs")
        return [self._checked(one) for one in said]

    def _checked(self, said: Any) -> Preference | Failure:
        if isinstance(said, Failure):
            return said
        if said is None:
            return Failure("no_preference: the judge said None")
        try:
            number = float(said)
        except (TypeError, ValueError):
            number = float("nan")
        if not 1 <= number <= 2:
            raise ConfigError(
                f"judge {self._name}: prefer() returned {said!r:.80}; return 1 (the first answer) to 2, or a Failure"
            )
        return number
