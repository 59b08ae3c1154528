"""Waits for a coroutine from ordinary code, also inside a running event loop, as notebooks have one."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def wait_for(work: Coroutine[Any, Any, Result]) -> Result:
    """Run the coroutine to its end and return its result, or raise its error."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    # This thread's loop can't run another; a thread of its own can. It is a daemon, so that Ctrl-C ends the program.
    outcome: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001  raised again below, in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=run, name="phf-judging", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return outcome[0]
