"""One command at a time in an output folder: the kernel's lock on the folder, which ends with the process."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from phf_ray.errors import ConfigError
from phf_ray.storage.files import is_local, open_filesystem, store_errors


@contextmanager
def only_command(output: str) -> Iterator[bool]:
    """Hold the folder `output` while the body works on it, and say whether it is held. Raises ConfigError if another
    command holds it.

    A folder that is missing is made, and removed if the body leaves nothing in it. Object stores and some network file
    systems have no such locks: there, nothing is held.
    """
    filesystem, inner = open_filesystem(output)
    if not is_local(filesystem):
        yield False
        return
    # A lock on the folder itself leaves no file behind, which could be taken for somebody's data.
    is_new = not Path(inner).exists()
    with store_errors(f"--output {output}"):
        try:
            Path(inner).mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(f"--output {output} is a file, or is below one; give a folder") from None
        descriptor = os.open(inner, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _lock(descriptor, output)
    finally:
        # While it is held: a command that gets the lock must not find its folder gone.
        if is_new:
            with suppress(OSError):  # it is not empty
                Path(inner).rmdir()
        os.close(descriptor)


def _lock(descriptor: int, output: str) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"--output {output}: another command is working on it; wait until it ends, or stop it, and give this "
            "command again; or give another --output"
        ) from None
    except OSError:
        return False
    return True
