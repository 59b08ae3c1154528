"""How a figure says that it is not defined, where its type leaves no room for a reason."""


class UndefinedFigureWarning(RuntimeWarning):
    """A figure came out as NaN; the message is the reason.

    Reports call the functions that return the reason as a value (`fit_bradley_terry`, `fit_length_control`), which warn
    of nothing.
    """
