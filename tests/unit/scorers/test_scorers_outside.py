"""Scorers from modules outside the package: found by `module:Class`, with the version of their code in the identity."""

import asyncio
import importlib
import sys
import textwrap

import pytest

from phf_ray.blocks.manifest import SourceCorpus
from phf_ray.blocks.scorer_check import warn_of_other_scorers
from phf_ray.config import RedTeamConfig, parse_config
from phf_ray.corpus.reader import read_corpus
from phf_ray.errors import ConfigError
from phf_ray.evaluation.attack.instructions import INSTRUCTIONS, instruction_for
from phf_ray.evaluation.in_process import InProcessScores
from phf_ray.scorers.base import FindsSpans, HasClasses, Scorer
from phf_ray.scorers.build import build_scorer, on_cpu, scorer_class, scorer_configs, scorer_name
from phf_ray.scorers.origin import versions_of_code
from phf_ray.scoring.executor import InProcessScoring
from phf_ray.scoring.job import run_scoring
from phf_ray.scoring.plan import preview_scoring
from phf_ray.scoring.request import ScoringRequest
from serve.app import build
from serve.engines.scorer import LocalScorer
from serve.settings import ServedScorer, parse_args

SOURCE = """
from phf_ray.records import Scored, Span
from phf_ray.scorers import Scorer, ScorerSettings


class ShoutingSettings(ScorerSettings):
    name: str = "shouting"
    device: str = "auto"
    reference_date: str = "2000-01-01"


class ShoutingScorer(Scorer):
    Settings = ShoutingSettings
    unit = "capitals"
    packages = ()
    ATTRIBUTES

    def score_all(self, texts):
        return [Scored(float(sum(map(str.isupper, text)))) for text in texts]

    def spans(self, text):
        return [Span("capital", at, at + 1) for at, sign in enumerate(text) if sign.isupper()]


NOT_A_SCORER = 3
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a module of scorers into a folder that is importable, and forgets what an import of it had loaded."""
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    (tmp_path / "modules").mkdir()

    def write(source=SOURCE, attributes="", name="my_scorers"):
        (tmp_path / "modules" / f"{name}.py").write_text(
            source.replace("ATTRIBUTES", textwrap.indent(textwrap.dedent(attributes), "    ").strip())
        )
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return {"class_name": f"{name}:ShoutingScorer"}

    # Of the same size and second, another source would not be compiled anew.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield write
    sys.modules.pop("my_scorers", None)


def request(tmp_path, *scorers):
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    (folder / "a.py").write_text("Ab\nCD\n")
    scoring = {"scorers": list(scorers), "segmenter": "lines", "reference_date": "2020-02-02"}
    return ScoringRequest(parse_config({"scoring": scoring}), inputs=[str(folder)])


def run(asked, output, **options):
    return run_scoring(asked, str(output), executor=InProcessScoring(), **options)


def test_a_scorer_from_outside_scores_a_corpus_under_its_own_name(write, tmp_path):
    config = write()
    manifest = run(request(tmp_path, {"class_name": "PEP8Scorer"}, config), tmp_path / "out")
    found = manifest.scorers[1]
    assert (found["name"], found["class_name"], found["unit"]) == ("shouting", "my_scorers:ShoutingScorer", "capitals")
    assert found["versions"].keys() == {"my_scorers"}
    assert manifest.scorer_stats("shouting").segment_histogram.mean == 1.5
    alone = run(request(tmp_path, config), tmp_path / "alone")
    assert alone.scorer["class_name"] == "my_scorers:ShoutingScorer"
    assert [document.scores for document in read_corpus(str(tmp_path / "alone"))] == [(1.0, 2.0)]


def test_a_changed_source_is_another_scorer_and_is_not_mixed_with_the_old_one(write, tmp_path, caplog):
    config = write()
    asked = request(tmp_path, config)
    before = run(asked, tmp_path / "out")
    run(asked, tmp_path / "out")
    corpus = SourceCorpus(name="old", fingerprint="", scorer=before.scorer, segmenter="lines")
    warn_of_other_scorers(asked.config, [corpus])
    assert caplog.text == ""
    write(SOURCE.replace("str.isupper, text", "str.islower, text"))
    with pytest.raises(ConfigError, match=r"scorer shouting: versions was .*my_scorers.*sha256:.* is .*--restart"):
        run(asked, tmp_path / "out")
    warn_of_other_scorers(asked.config, [corpus])
    assert "old WAS SCORED BY A DIFFERENT SCORER (shouting)" in caplog.text
    after = run(asked, tmp_path / "out", restart=True)
    assert after.scorer["versions"] != before.scorer["versions"]
    # A corpus as input keeps only scores of a scorer that has not changed.
    write()
    again = ScoringRequest(asked.config, inputs=[str(tmp_path / "out")])
    assert preview_scoring(again).reuse == {str(tmp_path / "out"): {}}


def test_the_version_of_a_class_is_part_of_its_identity_beside_its_source(write):
    plain = build_scorer(write()).identity()
    first = build_scorer(write(attributes='version = "1"')).identity()
    second = build_scorer(write(attributes='version = "2"')).identity()
    assert second.versions["my_scorers:ShoutingScorer"] == "2"
    assert second.versions["my_scorers"].startswith("sha256:")
    assert plain != first != second


def install(folder, version, *, editable=False):
    about = folder / "modules" / "shouting_kit-1.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: shouting-kit\nVersion: {version}\n")
    (about / "top_level.txt").write_text("my_scorers\n")
    (about / "RECORD").write_text("my_scorers.py,,\n")
    (about / "direct_url.json").write_text('{"url": "file:///x", "dir_info": {"editable": true}}' if editable else "{}")
    importlib.invalidate_caches()


def test_an_installed_module_has_the_version_of_its_distribution(write, tmp_path):
    install(tmp_path, "1.2")
    assert build_scorer(write()).identity().versions == {"shouting-kit": "1.2"}
    install(tmp_path, "1.3")
    assert build_scorer(write()).identity().versions == {"shouting-kit": "1.3"}
    # Its source changes without a new version.
    install(tmp_path, "1.3", editable=True)
    assert build_scorer(write()).identity().versions.keys() == {"my_scorers"}


def test_a_class_without_source_or_distribution_is_refused():
    made_up = type("MadeUp", (Scorer,), {"__module__": "made_up"})
    with pytest.raises(ConfigError, match=r"the source of made_up:MadeUp can't be read .* put the class into a \.py"):
        versions_of_code(made_up)


def test_training_on_the_scores_does_not_need_the_scorer(write, tmp_path, caplog):
    asked = request(tmp_path, write())
    manifest = run(asked, tmp_path / "out")
    corpus = SourceCorpus(name="old", fingerprint="", scorer=manifest.scorer, segmenter="lines")
    (tmp_path / "modules" / "my_scorers.py").unlink()
    sys.modules.pop("my_scorers")
    warn_of_other_scorers(asked.config, [corpus])
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("class_name", "match"),
    [
        ("no_such_module:X", r"'no_such_module' can't be imported \(ModuleNotFoundError.*on every node.*py_modules"),
        ("my_scorers:ShoutScorer", r"'my_scorers' has no ShoutScorer; its scorers are ShoutingScorer"),
        ("my_scorers:NOT_A_SCORER", r"NOT_A_SCORER is not a subclass of phf_ray\.scorers\.Scorer but 3"),
        ("my_scorers:ShoutingSettings", r"ShoutingSettings is not a subclass"),
        ("my_scorers:", r"does not name a class in a module; write my_module:MyScorer"),
        (":X", r"does not name a class in a module"),
        ("ShoutingScorer", r"unknown scorer class_name 'ShoutingScorer'; choose one of .* write my_module:MyScorer"),
    ],
)
def test_what_is_no_scorer_is_refused_before_any_work(write, tmp_path, class_name, match):
    write()
    with pytest.raises(ConfigError, match=match):
        preview_scoring(request(tmp_path, {"class_name": class_name}))
    with pytest.raises(ConfigError, match=match):
        parse_args({"scorers": [{"scorer": {"class_name": class_name}}]})


def test_a_module_whose_import_fails_is_named_with_the_error(write):
    config = write("import no_such_library\n" + SOURCE)
    with pytest.raises(ConfigError, match=r"'my_scorers' can't be imported \(ModuleNotFoundError: .*no_such_library"):
        build_scorer(config)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (SOURCE.replace('    unit = "capitals"\n', ""), "the class lacks unit"),
        (SOURCE.replace("def score_all", "def score_none"), "the class lacks score_all"),
        (SOURCE.replace('    device: str = "auto"\n', ""), "runs_on_device is True, but ShoutingSettings has no field"),
        (SOURCE.replace("    reference_date: str", "    date: str"), "uses_reference_date is True, but"),
    ],
)
def test_what_a_class_lacks_is_said(write, source, match):
    config = write(source, attributes="runs_on_device = True\nuses_reference_date = True")
    with pytest.raises(ConfigError, match=match):
        scorer_class(config["class_name"])


def test_a_wrong_key_of_a_scorer_from_outside_is_named(write):
    with pytest.raises(ConfigError, match=r"my_scorers:ShoutingScorer: devise: unknown key; did you mean 'device'"):
        build_scorer({**write(), "devise": "cpu"})


def test_attributes_say_how_a_scorer_is_run(write, tmp_path):
    config = write()
    asked = request(tmp_path, config)
    assert (scorer_configs(asked.config), on_cpu(config)) == ((config,), config)
    assert build_scorer(config).identity().settings == {"device": "auto", "reference_date": "2000-01-01"}
    config = write(attributes="runs_on_device = True\nuses_reference_date = True")
    assert scorer_configs(asked.config) == ({**config, "reference_date": "2020-02-02"},)
    assert on_cpu(config) == {**config, "device": "cpu"}
    # Where it runs does not change its scores.
    assert build_scorer(on_cpu(config)).identity() == build_scorer(config).identity()


def test_the_server_cuts_texts_as_the_class_says_unless_told_otherwise(write):
    config = write(attributes='default_segmenter = "lines"')

    def cut(**served):
        scorer = LocalScorer(ServedScorer(**served))
        spans = asyncio.run(scorer.segment_spans("a. b\nc"))
        scorer.close()
        return spans

    assert cut(scorer=config) == cut(scorer={"class_name": "PEP8Scorer"}) == [(0, 5), (5, 6)]
    assert cut(scorer=config, segmenter="document") == [(0, 6)]


def test_what_a_scorer_measures_chooses_endpoints_and_the_words_of_the_red_lm(write):
    config = write(attributes='measures = "personal_data"')
    args = parse_args({"scorers": [{"scorer": {"class_name": "PEP8Scorer"}}, {"scorer": config}]})
    assert args.first_of("personal_data", able=FindsSpans).name == "shouting"
    # It has no classes, which moderations and Perspective need.
    assert args.first_of("personal_data", able=HasClasses) is None
    assert args.first_of("toxicity", able=HasClasses) is None
    assert instruction_for(config["class_name"], RedTeamConfig()) == INSTRUCTIONS["personal_data"]


def test_a_scorer_without_a_name_is_asked_for_one(write):
    config = write(SOURCE.replace('name: str = "shouting"', "loud: int = 1"))
    with pytest.raises(ConfigError, match="the scorer has no name; add `name:`"):
        scorer_name(config)
    assert scorer_name({**config, "name": "mine"}) == build_scorer({**config, "name": "mine"}).name == "mine"


def test_names_of_columns_deployments_and_metrics_have_no_colon(write):
    config = write()
    scores = InProcessScores(parse_config({"scoring": {"scorers": [config]}}), has_gpu=False)
    try:
        assert (scores.name, scorer_name(config)) == ("shouting", "shouting")
        answer = scores.post("/v1/scores", {"input": ["AB"]})
        assert (answer["data"][0]["score"], answer["scorer"]["class_name"]) == (2.0, config["class_name"])
    finally:
        scores.close()
    _, _, scorers = build({"scorers": [{"scorer": config}]})._bound_deployment.init_args
    assert [app._bound_deployment.name for app in scorers.values()] == ["scorer-shouting"]
