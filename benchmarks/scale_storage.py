"""Requests and seconds of each stage of a job on a slow object store: planning, working, resuming, finishing, packing.

    python -m benchmarks.scale --files 100000 [--delay-ms 20]

The store is a process of its own behind `s3://` that answers every request late. Objects of which only names, sizes and
footers matter share their content, so that there can be as many as in a corpus of terabytes.
"""

import io
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.slow_store import Alike, SlowStore, slow_store
from phf_ray.blocks.build import build_blocks
from phf_ray.blocks.plan import BlockPlan, plan_blocks
from phf_ray.blocks.stats import PackingStats
from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.config import Config, parse_config
from phf_ray.corpus.cut import Piece
from phf_ray.corpus.find import InputFile
from phf_ray.corpus.output import CorpusFolder
from phf_ray.corpus.plan import CorpusPlan
from phf_ray.corpus.stats import CorpusStats
from phf_ray.corpus.writer import PartWriter
from phf_ray.scoring.executor import InProcessScoring
from phf_ray.scoring.job import run_scoring
from phf_ray.scoring.plan import prepare_output
from phf_ray.scoring.request import ScoringRequest
from phf_ray.storage.object_stores import register

_MB = 1 << 20
_WORKED = 8
"""Parts that are scored, to see what each costs."""


def report(*, num_files: int, delay_s: float) -> None:
    """Print what each stage asks of the store."""
    register()
    logging.disable(logging.WARNING)
    print(f"\n{num_files:,} files on a store that answers after {delay_s * 1e3:g} ms")
    print(f"{'stage':<52}{'LIST':>7}{'HEAD':>9}{'GET':>9}{'others':>8}{'seconds':>10}")
    with slow_store(delay_s) as store, tempfile.TemporaryDirectory() as folder:
        for stage in (_planning, _working, _going_on, _packing):
            for name, work in stage(store, num_files, Path(folder)):
                _measure(store, name, work)


def _measure(store: SlowStore, name: str, work: Callable[[], Any]) -> None:
    store.take_counts()
    begin = time.perf_counter()
    work()
    seconds = time.perf_counter() - begin
    counts = store.take_counts()
    shown = [counts.pop(kind, 0) for kind in ("LIST", "HEAD", "GET")]
    print(f"{name:<52}{shown[0]:>7,}{shown[1]:>9,}{shown[2]:>9,}{counts.total():>8,}{seconds:>10.1f}", flush=True)


Stage = Iterator[tuple[str, Callable[[], Any]]]


def _request(source: str, **settings: Any) -> ScoringRequest:
    scorers = {"scoring": {"scorers": [{"class_name": "PEP8Scorer"}], "segmenter": "lines"}}
    return ScoringRequest(parse_config(scorers), inputs=[f"s3://bucket/{source}"], **settings)


def _plan(source: str) -> Callable[[], Any]:
    return lambda: prepare_output(
        _request(source), CorpusFolder(f"s3://bucket/out/{source}"), append=False, restart=False
    )


def _planning(store: SlowStore, num_files: int, _: Path) -> Stage:
    store.put_alike(Alike("lines/%06d.jsonl.gz", num_files, b"", size=3 * _MB))
    yield "plan: JSON lines, one folder", _plan("lines")
    for folder in range(0, num_files, 100):
        store.put_alike(Alike(f"many/{folder:06d}/%02d.jsonl.gz", min(100, num_files - folder), b"", size=3 * _MB))
    yield "plan: JSON lines, 100 files a folder", _plan("many")
    yield "plan: the same again, nothing changed", _plan("many")
    table = io.BytesIO()
    pq.write_table(pa.table({"text": ["x"] * 1000}), table, row_group_size=10)
    store.put_alike(Alike("tables/%06d.parquet", num_files, table.getvalue(), size=100 * _MB))
    yield "plan: tables, each cut by its footer", _plan("tables")


def _working(store: SlowStore, _num_files: int, _: Path) -> Stage:
    row = json.dumps({"text": "value = 1\n"}) + "\n"
    store.put_alike(Alike("work/%06d.jsonl", _WORKED, row.encode() * 100))

    def score() -> None:
        request = _request("work", shard_bytes=1)
        run_scoring(request, "s3://bucket/out/work", executor=InProcessScoring())

    yield f"score: {_WORKED} parts, from the plan to the end", score


def _going_on(store: SlowStore, num_files: int, folder: Path) -> Stage:
    """A job of which all parts are there, but not its end: the part of each shard is the same."""
    request = _request("one", shard_bytes=1)
    store.put_alike(Alike("one/%d.py", 1, b"value = 1\n"))
    plan = prepare_output(request, CorpusFolder("s3://bucket/out/one"), append=False, restart=False)
    file = InputFile("s3://bucket/one", "0.py", "text", plan.files[0].size, plan.files[0].stamp)
    piece = Piece(0, file.size)
    many = CorpusPlan(plan.key, plan.identities, (file,), tuple((piece,) for _ in range(num_files)), plan.reuse)
    CorpusFolder("s3://bucket/out/many-parts").write_plan(many)
    store.put_alike(Alike("out/many-parts/part-%05d.parquet", num_files, _part(folder, many)))
    yield (
        "resume: read all footers, and finish",
        lambda: run_scoring(request, "s3://bucket/out/many-parts", executor=InProcessScoring()),
    )


def _part(folder: Path, plan: CorpusPlan) -> bytes:
    name = plan.identities[0]["name"]
    path = folder / "part.parquet"
    writer = PartWriter(str(path), rejects=None, scorers=[name], footer={"shard": plan.digest(0)})
    writer.add("a", ["value = 1\n"], scores={name: ([0.0], [None])}, meta="{}")
    writer.commit()
    return path.read_bytes()


def _packing(store: SlowStore, num_files: int, folder: Path) -> Stage:
    config = _packing_config(folder)
    tokenizer = load_tokenizer(config.tokenizer)
    # Parts of a size that make a group each.
    store.put_alike(
        Alike("out/many-parts/part-%05d.parquet", num_files, (folder / "part.parquet").read_bytes(), 3 * _MB)
    )
    plans: list[BlockPlan] = []

    def plan() -> None:
        plans.append(
            plan_blocks(
                config, corpora=["s3://bucket/out/many-parts"], tokenizer=tokenizer, output_root="s3://bucket/blocks"
            )
        )

    yield "pack: plan the groups", plan
    root = plans[0].root.removeprefix("s3://bucket/")
    shard = {"file": "shard-00000-000.parquet", "num_blocks": 1, "num_content_tokens": 10}
    group = {"shards": [shard], "stats": PackingStats().to_json(), "read": CorpusStats().to_json()}
    store.put_alike(Alike(f"{root}/group-%05d.json", num_files, json.dumps(group).encode()))
    yield (
        "pack: find that all groups are there, and finish",
        lambda: build_blocks(plans[0], tokenizer=tokenizer, builder=lambda *_, **__: iter(())),
    )


def _packing_config(folder: Path) -> Config:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "w": 1}, unk_token="w"))
    fast = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>")
    fast.save_pretrained(folder / "tokenizer")
    return parse_config({"dataset": {"seq_length": 64}, "tokenizer": {"path_or_name": str(folder / "tokenizer")}})
