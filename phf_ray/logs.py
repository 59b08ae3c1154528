"""Structured logs: one JSON object per line, with the stage (the job) and the run, in all of a job's processes.

The job passes both names in environment variables, to the processes that Ray starts for it and to their children.
"""

import datetime
import json
import logging
import os
import sys

STAGE, RUN = "PHF_LOG_STAGE", "PHF_LOG_RUN"


class JsonLines(logging.Formatter):
    def __init__(self, *, stage: str, run: str | None) -> None:
        super().__init__()
        self.names = {"stage": stage, "run": run}

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        values = {"time": time, "level": record.levelname, "logger": record.name, **self.names}
        values["message"] = record.getMessage()
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values)


def name_lines(formatter: JsonLines) -> None:
    """Set the names in the environment, for processes that this one starts directly or through Ray."""
    os.environ.update({STAGE: str(formatter.names["stage"]), RUN: formatter.names["run"] or ""})


def runtime_env() -> dict[str, object]:
    """Return the Ray runtime environment that calls `set_up_worker` in workers; empty without structured logs."""
    names = {name: os.environ[name] for name in (STAGE, RUN) if name in os.environ}
    return {"worker_process_setup_hook": f"{__name__}.set_up_worker", "env_vars": names} if names else {}


def set_up_worker() -> None:
    """Add the job's names to the warnings and errors of this process, which logging would write without names."""
    if STAGE in os.environ:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines(stage=os.environ[STAGE], run=os.environ.get(RUN) or None))
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
