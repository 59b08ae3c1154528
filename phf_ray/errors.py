"""Exceptions of the project.

    PhfError
    |- ConfigError       the user's input is wrong: a config file, an override, an argument
    |- DataError         a file's content is wrong
    |- ServiceError      a server refused, failed or did not answer
    |- IncompleteError   a job stopped with part of its work done; the same command resumes it

Pass every argument to `super().__init__`: exceptions cross process boundaries by pickle, and an exception that can't be
rebuilt hides the real error from the driver.
"""


class PhfError(Exception):
    """Base of all errors whose message is meant for the user."""

    exit_code = 1


class ConfigError(PhfError):
    """The user's input can't be used; the message says what to write instead."""

    exit_code = 2


class DataError(PhfError):
    """A file's content can't be used; the message names the file and the place."""

    exit_code = 3


class ServiceError(PhfError):
    """A server refused, failed or did not answer."""

    exit_code = 4


class IncompleteError(PhfError):
    """A job ended with part of its work missing; the finished part is sound."""

    exit_code = 5
