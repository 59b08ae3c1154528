"""Kills of a run in this process, at a chosen call of a function."""


class Killed(BaseException):
    """What no code catches."""


def killed_after(monkeypatch, owner, name, *, call):
    """Let the `call`-th call of a function do its work and then kill the run."""
    original, calls = getattr(owner, name), []

    def wrapped(*arguments, **named):
        result = original(*arguments, **named)
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, wrapped)


def count_calls(monkeypatch, owner, name):
    original, calls = getattr(owner, name), []

    def wrapped(*arguments, **named):
        calls.append(1)
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, wrapped)
    return calls
