"""The feedback markers of Chain of Hindsight: the words that say whether a good or a bad answer follows."""

from pydantic import BaseModel, ConfigDict


class Markers(BaseModel):
    """What the template `coh` puts before what the user says, and before an answer."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    user: str = "User:"
    good: str = "A good answer:"
    """Before answers like those that people preferred."""
    bad: str = "A bad answer:"

    @property
    def values(self) -> dict[str, str]:
        """By the names that templates know them by."""
        return {"user_marker": self.user, "good_marker": self.good, "bad_marker": self.bad}
