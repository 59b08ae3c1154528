"""A Ray of three nodes, two of which a test can lose, and jobs that work on it as a user starts them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from places import ROOT, SUPPORT, TESTS

PATIENCE_S = 420

CALL = """
import sys
sys.path[:0] = {folders!r}
import {module}
{module}.{call}
"""


class Machines:
    """A head without CPUs and two nodes with two each; a lost node is replaced, as an autoscaler would."""

    def __init__(self, *, shared: Path) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 << 20}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes = [self._add(), self._add()]
        self.environment = {
            **os.environ,
            "RAY_ADDRESS": self._cluster.address,
            "PHF_SHARED_ROOTS": str(shared),
            "OMP_NUM_THREADS": "1",
        }
        # Asks the cluster's own table from a process of its own: this one may hold another Ray.
        command = python(__name__, f"answer_questions({self._cluster.address!r})")
        self._observer = subprocess.Popen(
            command,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def _add(self) -> Any:
        return self._cluster.add_node(num_cpus=2, object_store_memory=100 << 20)

    def actors(self, name: str) -> dict[int, str]:
        """Process -> node id of the living actors whose class name has `name` in it."""
        assert self._observer.stdin is not None
        assert self._observer.stdout is not None
        self._observer.stdin.write("\n")
        self._observer.stdin.flush()
        found = json.loads(self._observer.stdout.readline())
        return {pid: node for class_name, pid, node in found if name in class_name}

    def of_workers(self) -> set[str]:
        """Ids of the nodes that can be lost: all but the head."""
        return {node.node_id for node in self._nodes}

    def kill(self, node_id: str) -> None:
        """The node's raylet is killed, and its workers with it."""
        known = [node.node_id for node in self._nodes]
        assert node_id in known, f"{node_id} is not one of the nodes {known}"
        victim = self._nodes[known.index(node_id)]
        self._cluster.remove_node(victim, allow_graceful=False)
        self._nodes.remove(victim)
        self._nodes.append(self._add())

    def shutdown(self) -> None:
        self._observer.kill()
        self._observer.wait()
        self._cluster.shutdown()


def answer_questions(address: str) -> None:
    """One line of living actors for every line that comes in."""
    # Ray prints what it thinks of lost nodes on standard output.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import ray

    ray.init(address=address, log_to_driver=False)
    for _ in sys.stdin:
        table = ray._private.state.actors(actor_state_name="ALIVE").values()
        rows = [(one["ActorClassName"], one["Pid"], one["Address"]["NodeID"]) for one in table]
        answers.write(json.dumps(rows) + "\n")
        answers.flush()


class Job:
    """A process, its output and its end."""

    def __init__(self, command: list[str], *, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self._lines.extend(self.process.stdout)

    @property
    def output(self) -> str:
        return "".join(self._lines)

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        """What the condition gives once it is true, while the job runs."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = condition()
            if found:
                return found
            assert self.process.poll() is None, self.output[-5000:]
            assert time.monotonic() < deadline, self.output[-5000:]
            time.sleep(0.05)

    def finish(self) -> None:
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            code = None
        if code is not None:
            self._reader.join(30)
        assert code == 0, f"exit code {code}\n{self.output[-5000:]}"

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def job(machines: Machines, *command: str) -> Iterator[Job]:
    one = Job(list(command), environment=machines.environment)
    try:
        yield one
    finally:
        one.stop()


def python(module: str, call: str) -> list[str]:
    """A command that calls a function of a module of these tests."""
    folders = [str(folder) for folder in (ROOT, SUPPORT, TESTS / "cluster", TESTS / "unit" / "scoring")]
    return [sys.executable, "-c", CALL.format(folders=folders, module=module, call=call)]


def module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"jobs.{name}", *map(str, arguments)]
