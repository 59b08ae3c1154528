"""Lines are added whole, or not at all."""

import os
import resource

import pytest

from phf_ray.errors import DataError
from phf_ray.storage.append import append_line


def test_a_line_that_the_disk_does_not_take_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_line(path, "first")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    child = os.fork()
    if not child:  # the limit must not hit pytest's own files; its signal is ignored by Python
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
        try:
            append_line(path, "x" * 100)
        except DataError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert path.read_text() == "first\n"
    append_line(path, "second")
    assert path.read_text() == "first\nsecond\n"


def test_none_makes_the_file_alone(tmp_path):
    append_line(tmp_path / "lines.jsonl", None)
    assert (tmp_path / "lines.jsonl").read_bytes() == b""
    with pytest.raises(OSError, match="No such file"):
        append_line(tmp_path / "no" / "lines.jsonl", None)
