"""The base class of judges that need no server."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from phf_ray.judging.pairs import Pair, Preference
from phf_ray.judging.question import Failure


class Judge(ABC):
    """Prefers one answer of each pair. A judge of your own derives from this: `class_name: my_module:MyJudge`."""

    @abstractmethod
    def prefer(self, pairs: Sequence[Pair]) -> Sequence[Preference | Failure]:
        """Return a preference for each pair as it is shown: 1 (the first answer) to 2 (the second), 1.5 for a tie.

        Where there is none, return a Failure with a reason. Neither the order of pairs nor the other pairs may change a
        preference.
        """
