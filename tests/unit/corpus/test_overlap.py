import pyarrow as pa
import pyarrow.parquet as pq

from phf_ray.corpus.overlap import OverlapIndex, overlaps_here, total_overlap
from phf_ray.corpus.stored import CorpusPart

THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"


def test_a_text_is_found_whole_or_by_thirteen_words_in_a_row():
    index = OverlapIndex([f"Zero. {THIRTEEN}", "Hello, World!", "one two three four five six seven eight nine ten"])
    same = index.find(f"ZERO,\n{THIRTEEN}!")
    assert (same.exact, same.shared) == ({0}, {0})
    part = index.find(f"Something else: {THIRTEEN.title()} and more")
    assert (part.exact, part.shared) == (set(), {0})
    twelve = index.find(" ".join(THIRTEEN.split()[:12]) + " other")
    assert (twelve.exact, twelve.shared) == (set(), set())
    short = index.find("hello world")
    assert (short.exact, short.shared) == ({1}, set())


def test_parts_of_a_corpus_add_up(tmp_path):
    for part, texts in enumerate([["a b"], [f"x {THIRTEEN}", "nothing"]]):
        table = pa.table({"texts": [[text] for text in texts], "scores": [[0.0]] * len(texts)})
        pq.write_table(table, tmp_path / f"{part}.parquet")
    sets = {"test": [f"{THIRTEEN} y", "A, b.", "fresh"], "empty": []}
    found = total_overlap(
        overlaps_here([CorpusPart(str(tmp_path / f"{part}.parquet"), 0, "") for part in range(2)], sets), sets
    )
    assert (found["test"].exact, found["test"].shared) == ({1}, {0})
    assert (found["empty"].exact, found["empty"].shared) == (set(), set())
