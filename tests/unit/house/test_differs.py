"""Departures from the original are marked `# DIFFERS:` where they are made, and listed in docs/differs.md.

PHF_UPDATE_DOCS=1 writes the list anew.
"""

import os
import re

from places import ROOT

LIST = ROOT / "docs" / "differs.md"
HEADER = """# Where phf-ray differs from the original code, TRL, AlpacaFarm and Chain of Hindsight

The original is `tomekkorbak/pretraining-with-human-feedback` at 152e6b6. Each line is a comment at the place where the
departure is made; this page is made from them. `compat: korbak2023` in a configuration brings back the original's
behaviour in objectives, packing, metrics and the ends of sentences, for comparison with its released models; KL, and
errors that make scores wrong, are never brought back.

Lines that name TRL (1.16) or AlpacaFarm are about learning from feedback. `compat: trl` and `compat: alpaca_farm` bring
their rows and normalisers back. A micro-batch is `per_device_train_batch_size` blocks: it holds as many rows as theirs
if a block (`dataset.seq_length`) has room for one example or pair. Lines that name Chain of Hindsight (CoH) are about
its released code; `compat: coh`, of a training and of `prepare-feedback`, brings its numbers back.

"""


def departures():
    """(file, sentence) of every `# DIFFERS:` comment, continued over the comment lines that follow it."""
    for folder in ("phf_ray", "serve", "jobs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            for match in re.finditer(r"# DIFFERS: (.*(?:\n[ \t]*# (?!DIFFERS).*)*)", text):
                sentence = re.sub(r"\n[ \t]*# ", " ", match[1])
                yield path.relative_to(ROOT).as_posix(), sentence


def test_the_list_of_departures_is_that_of_the_code():
    page = HEADER + "".join(f"- `{path}`: {sentence}\n" for path, sentence in departures())
    if os.environ.get("PHF_UPDATE_DOCS") == "1":
        LIST.write_text(page, encoding="utf-8")
    assert LIST.read_text(encoding="utf-8") == page, "run this test with PHF_UPDATE_DOCS=1"


def test_the_worst_defects_of_the_original_are_among_the_departures():
    named = {match for _, sentence in departures() for match in re.findall(r"\b[ACD]-\d+\b", sentence)}
    assert {"A-1", "A-3", "A-4", "A-5", "A-6", "A-8", "A-12", "A-13", "A-17", "A-19", "C-3", "D-3", "D-4"} <= named
