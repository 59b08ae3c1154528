"""Tells an error that would come again from the death of a worker, after which a restart helps."""

import errno
import logging
import re
import shutil
import traceback
from pathlib import Path

from phf_ray.errors import IncompleteError, PhfError
from phf_ray.runs.directory import RunDirectory

log = logging.getLogger(__name__)

# The code's or its input's fault. What a dying peer or node causes is a RuntimeError, an OSError or one of Ray's own.
_LASTING = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
    ValueError,
)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
# safetensors and tokenizers, which are written in Rust, put the number into the text.
_RUST_NUMBER = re.compile(r"\(os error (\d+)\)")


def lasting_error(error: Exception, *, run: RunDirectory) -> PhfError | None:
    """Return the error to end the run with, or None if a restart may help."""
    if isinstance(error, PhfError):
        return error
    number = _number_of(error)
    if number in _FULL:
        return IncompleteError(
            f"the disk of {run.path} is full or its quota is used up ({_said(error)}); free space and give the same "
            f"command again: {_what_is_kept(run)}"
        )
    if number in _REFUSED:
        return IncompleteError(
            f"{run.path} can't be written ({_said(error)}); correct its permissions and give the same command again: "
            f"{_what_is_kept(run)}"
        )
    if isinstance(error, _LASTING):
        log.error("a worker failed", exc_info=error)
        return PhfError(
            f"{_said(error)}, raised at {_place_of(error)}; the workers were not restarted, because it would come "
            f"again; the traceback is in the worker's log, and {_what_is_kept(run)}"
        )
    return None


def refuse_without_room(run: RunDirectory, *, num_parameters: int) -> None:
    """Raise IncompleteError if the disk has no room for one checkpoint: fp32 weights and Adam's two moments."""
    needed, disk = 12 * num_parameters, shutil.disk_usage(run.path)
    # Some file systems in object stores report no size.
    if disk.total and disk.free < needed:
        raise IncompleteError(
            f"{run.path} has room for {disk.free / 1e9:.2f} GB, but a checkpoint takes {needed / 1e9:.2f} GB, and the "
            "one before is removed only after that; free space and give the same command again"
        )


def _number_of(error: BaseException | None) -> int | None:
    """Return the error number of the operating system, which may be that of an earlier error in the chain."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if found := _RUST_NUMBER.search(str(error)):
            return int(found[1])
        error = error.__cause__ or error.__context__
    return None


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _place_of(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else "an unknown place"


def _what_is_kept(run: RunDirectory) -> str:
    latest = run.latest_checkpoint()
    return "there is no checkpoint yet" if latest is None else f"the newest checkpoint is {latest.name}"
