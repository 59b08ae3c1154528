"""Exceptions of the project.

    PhfError
    |- ConfigError       what the user wrote: a config file, an override, an argument
    |- DataError         what a file contained
    |- ServiceError      what a server answered, or that it did not
    |- IncompleteError   a job stopped with part of its work done; the same command resumes it

Every argument goes to `super().__init__`: exceptions cross process borders by pickle, and one that can't be rebuilt
hides the real error from the driver.
"""


class PhfError(Exception):
    """Base of all errors whose message is meant for the user."""

    exit_code = 1


class ConfigError(PhfError):
    """What the user wrote can't be used; the message says what to write instead."""

    exit_code = 2


class DataError(PhfError):
    """A file's content can't be used; the message names the file and the place."""

    exit_code = 3


class ServiceError(PhfError):
    """A server refused, failed or did not answer."""

    exit_code = 4


class IncompleteError(PhfError):
    """A job ended with part of its work missing; what is there is sound."""

    exit_code = 5
