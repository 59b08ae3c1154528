"""Record batches of Arrow files: IPC streams, as `datasets` saves them, IPC files, and Feather, which is IPC too."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.feather

from phf_ray.storage.files import is_local, open_filesystem

ARROW = (".arrow", ".feather")


@contextlib.contextmanager
def open_arrow(name: str) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """Yield the schema and the batches of a file. Its first bytes, not its name, tell the format.

    Raises pa.ArrowException if the file is damaged, from the batches too.
    """
    filesystem, path = open_filesystem(name)
    with filesystem.open(path, "rb") as stream:
        magic = stream.read(6)
        stream.seek(0)
        source = pa.memory_map(path) if is_local(filesystem) else stream
        if magic == b"ARROW1":
            file = pa.ipc.open_file(source)
            yield file.schema, _sound(file.get_batch(index) for index in range(file.num_record_batches))
        elif magic.startswith(b"FEA1"):
            table = pyarrow.feather.read_table(source)
            yield table.schema, _sound(table.to_batches())
        else:
            reader = pa.ipc.open_stream(source)
            yield reader.schema, _sound(reader)


def _sound(batches: Any) -> Iterator[pa.RecordBatch]:
    """Yield the batches. Raises pa.ArrowInvalid before a batch whose offsets point out of its buffers.

    Arrow trusts them, so reading such a batch would end the process. Cells that are not UTF-8 are left to their reader.
    """
    for batch in batches:
        for column in batch.columns:
            try:
                column.validate(full=True)
            except pa.ArrowInvalid as error:
                if "Invalid UTF8" not in str(error):
                    raise
        yield batch
