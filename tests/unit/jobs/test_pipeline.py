"""phf pipeline: its file, what it refuses, where it goes on, and what it does about changes; stages do no work here."""

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from jobs import cli
from jobs.pipeline import main
from jobs.stage_process import StageRunner
from phf_ray.errors import ConfigError
from phf_ray.storage.one_at_a_time import only_command

STAGES = [
    {"name": "pairs", "command": "prepare-feedback", "arguments": {"input": ["${values.input}"]}},
    {
        "name": "sft",
        "command": "train-lm",
        "arguments": {"task": "rlhf", "method": "./own method.yml"},
        "overrides": {"dataset.datasets": ["${stages.pairs.output}"]},
    },
    {"name": "merged", "command": "merge-adapter", "arguments": {"checkpoint": "${stages.sft.output}"}},
    {"name": "other", "command": "prepare-feedback", "arguments": {"input": ["${values.input}"], "limit": 3}},
]


class Commands:
    """Stands in for the processes of stages: remembers them, and writes what theirs would write last."""

    def __init__(self, **codes):
        self.ran, self.argv, self.codes = [], {}, codes

    def __call__(self, command, argv):
        def given(flag):
            return Path(argv[argv.index(flag) + 1])

        run = command in ("train-lm", "train-rl")
        output = given("--storage-path") / given("--run-name") if run else given("--output")
        self.ran.append(output.name)
        self.argv[output.name] = list(argv)
        code = self.codes.get(output.name, 0)
        output.mkdir(parents=True, exist_ok=True)
        if code == 0:
            mark = {"train-lm": "summary.json", "merge-adapter": "config.json"}.get(command, "_SUCCESS")
            (output / mark).write_text('{"status": "finished"}')
        return 0 if code is None else code


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a space, in which the pipeline is run, with its file and input."""
    folder = tmp_path / "a b"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "in.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    (folder / "own method.yml").write_text("training: {num_epochs: 2}\n")
    write(STAGES)
    return folder


def write(stages, **others):
    values = {"output": "out dir/x", "values": {"input": "in.jsonl"}, "stages": stages, **others}
    Path("my.yml").write_text(yaml.safe_dump(values, sort_keys=False))


def changed(number, **arguments):
    stages = json.loads(json.dumps(STAGES))
    stages[number]["arguments"].update(arguments)
    return stages


def run(*words, **codes):
    """Run the pipeline. Return its exit code, and the stages that ran."""
    commands = Commands(**codes)
    return main(["my.yml", *words], run_stage=commands), commands.ran


def record():
    return json.loads(Path("out dir/x/pipeline.json").read_text())["stages"]


ALL = ["pairs", "sft", "merged", "other"]


def test_stages_run_in_order_with_the_outputs_of_those_before(place, capsys):
    commands = Commands()
    assert main(["my.yml"], run_stage=commands) == 0
    assert commands.ran == ALL
    sft = commands.argv["sft"]
    assert sft[-2:] == ["--override", 'dataset.datasets=["out dir/x/pairs"]']
    assert sft[sft.index("--storage-path") + 1] == "out dir/x/runs"
    assert commands.argv["merged"] == ["--checkpoint", "out dir/x/runs/sft", "--output", "out dir/x/merged"]
    said = capsys.readouterr().out
    assert "reads   ./own" not in said
    assert "== 2/4 sft: train-lm (to do)\n  reads   out dir/x/pairs" in said
    assert "  writes  out dir/x/runs/sft\n$ phf train-lm --task rlhf --method './own method.yml'" in said
    assert re.search(r"^merged +0\.0 min +read out dir/x/runs/sft +wrote out dir/x/merged$", said, re.MULTILINE)
    assert run() == (0, [])
    assert "== 2/4 sft: train-lm: finished, 0.0 min; nothing to do" in capsys.readouterr().out


def test_it_stops_at_a_failure_and_goes_on_there(place, capsys):
    words = ("--set", "input=./in.jsonl", "--override", "sft.training.seed=7")
    assert run(*words, sft=5) == (5, ["pairs", "sft"])
    said = capsys.readouterr().out
    assert "stage sft ended with exit code 5" in said
    assert said.endswith("To go on: phf pipeline my.yml --set input=./in.jsonl --override sft.training.seed=7\n")
    assert record()["sft"]["status"] == "failed"
    assert record()["sft"]["exit_code"] == 5
    assert run(*words) == (0, ["sft", "merged", "other"])
    assert "(unfinished, ended with exit code 5)" in capsys.readouterr().out


def test_a_crash_of_the_pipeline_itself_loses_nothing(place):
    class Killed(Commands):
        def __call__(self, command, argv):
            super().__call__(command, argv)
            if command == "merge-adapter":
                raise KeyboardInterrupt
            return 0

    with pytest.raises(KeyboardInterrupt):
        main(["my.yml"], run_stage=Killed())
    assert record()["merged"]["status"] == "started"
    # A second merge-adapter would refuse the output that is there, and that is whole.
    assert run() == (0, ["other"])
    assert record()["merged"]["status"] == "finished"


def test_a_job_that_ends_well_without_its_output_is_a_failure(place):
    assert run(pairs=None) == (5, ["pairs"])
    assert run() == (0, ALL)


def test_a_finished_stage_whose_output_is_gone_runs_again(place):
    run()
    Path("out dir/x/pairs/_SUCCESS").unlink()
    assert run() == (0, ["pairs"])


def settings(text):
    return lambda: Path("own method.yml").write_text(text)


@pytest.mark.parametrize(
    ("change", "first", "told"),
    [
        (lambda: write(changed(0, limit=5)), "pairs", "arguments.limit: nothing -> 5"),
        (lambda: write(STAGES, values={"input": "./in.jsonl"}), "pairs", 'arguments.input: ["in.jsonl"] -> ["./in'),
        (lambda: Path("in.jsonl").write_text("{}\n"), "pairs", r"files.in.jsonl: "),
        (settings("training: {num_epochs: 3}\n"), "sft", "files.method.training.num_epochs: 2 -> 3"),
    ],
)
def test_a_stage_that_has_changed_is_refused_and_so_are_those_that_come_from_it(place, change, first, told):
    run()
    change()
    with pytest.raises(ConfigError) as refused:
        run()
    lines = str(refused.value).splitlines()
    assert lines[0].startswith(f"stage {first} has changed since it finished: {told}")
    assert "out dir/x" in lines[0]
    others = ["sft", "merged"] if first == "pairs" else ["merged"]
    for name, before in zip(others, [first, *others], strict=False):
        assert any(f"stage {name} has changed since it finished: stage {before}, which it reads" in x for x in lines)
    assert lines[-1].startswith(f"add --redo {first}")
    assert record()["merged"]["status"] == "finished"


def test_redo_discards_a_stage_and_all_that_come_from_it(place, capsys):
    run()
    write(changed(0, limit=5))
    Path("out dir/x/pairs/old").touch()
    assert run("--redo", "pairs", sft=3) == (3, ["pairs", "sft"])
    said = capsys.readouterr().out
    assert "discarded: stage sft, out dir/x/runs/sft" in said
    assert "--redo" not in said.partition("To go on")[2]
    assert not Path("out dir/x/pairs/old").exists()
    assert not Path("out dir/x/merged").exists()
    assert Path("out dir/x/other").exists()
    assert run() == (0, ["sft", "merged"])


@pytest.mark.parametrize("words", [("--redo", "other"), ("--redo", "sft", "--from", "merged")])
def test_a_command_that_is_refused_discards_nothing(place, capsys, words):
    run()
    if words[1] == "other":
        write(changed(0, limit=5))
    before = record()
    for more in ((), ("--dry-run",)):
        with pytest.raises(ConfigError, match=r"sft has changed|reads the output of sft, which is to do; run that"):
            run(*words, *more)
    assert all(Path("out dir/x", one).exists() for one in ("pairs", "runs/sft", "merged", "other"))
    assert record() == before
    assert "state   to do\n" in capsys.readouterr().out


def test_redo_in_a_folder_that_was_copied_discards_what_is_in_the_copy(place):
    run()
    shutil.copytree("out dir/x", "copy")
    Path("copy/other/old").touch()
    assert run("--output", "copy", "--redo", "other") == (0, ["other"])
    assert not Path("copy/other/old").exists()
    assert Path("out dir/x/other/_SUCCESS").exists()


def test_what_changes_nothing_is_no_change(place):
    run()
    settings("# Says why.\ntraining:\n  num_epochs: 2\n")()
    write([*STAGES[:3], {**STAGES[3], "arguments": {"limit": 3, "input": ["in.jsonl"]}}])
    assert run() == (0, [])
    # Nor is another place of everything.
    Path("out dir/x").rename("moved")
    assert run("--output", "moved") == (0, [])


def test_an_unfinished_stage_that_has_changed_is_left_to_its_job(place, capsys):
    run(sft=2)
    settings("training: {num_epochs: 3}\n")()
    capsys.readouterr()
    assert run() == (0, ["sft", "merged", "other"])
    assert "unfinished, and changed: files.method.training.num_epochs: 2 -> 3" in capsys.readouterr().out


def test_half_of_an_output_of_other_inputs_is_refused(place):
    run(sft=5)
    write(changed(0, limit=5))
    with pytest.raises(ConfigError, match="stage sft has changed since it was started: stage pairs, which it reads"):
        run("--redo", "other")


def test_only_and_from_take_finished_inputs_alone(place):
    with pytest.raises(ConfigError, match="stage sft reads the output of pairs, which is to do; run that first"):
        run("--from", "sft")
    assert run("--only", "pairs") == (0, ["pairs"])
    assert run("--from", "sft") == (0, ["sft", "merged", "other"])
    assert run("--redo", "merged", "--only", "other") == (0, [])
    Path("own method.yml").write_text("training: {num_epochs: 3}\n")
    with pytest.raises(ConfigError, match=r"stage sft has changed .*merged reads it; add --redo sft"):
        run("--only", "merged")


def test_what_was_made_by_hand_is_taken(place):
    Path("out dir/x/pairs").mkdir(parents=True)
    Path("out dir/x/pairs/_SUCCESS").touch()
    assert run("--only", "sft") == (0, ["sft"])
    # Its own job says whether it is the same.
    assert run()[1] == ["pairs", "merged", "other"]


def test_redo_removes_nothing_that_the_pipeline_did_not_make_in_its_folder(place):
    Path("out dir/x/pairs").mkdir(parents=True)
    Path("out dir/x/pairs/thesis").touch()
    with pytest.raises(ConfigError, match="the pipeline did not make out dir/x/pairs; remove it yourself"):
        run("--redo", "pairs")
    write(changed(3, output="elsewhere"))
    run()
    with pytest.raises(ConfigError, match="elsewhere is not below out dir/x, so it is not removed here"):
        run("--redo", "other")
    assert Path("out dir/x/pairs/thesis").exists()
    assert Path("elsewhere/_SUCCESS").exists()


def one(**changes):
    return [{**STAGES[0], **changes}]


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        (one(command="train"), r"stage pairs: there is no command 'train'; did you mean `phf train-rl`"),
        (one(command="serve"), r"stage pairs: serve runs until it is stopped, so it is no stage"),
        (one(arguments={"inputs": ["in.jsonl"]}), "prepare-feedback has no option --inputs; did you mean input?"),
        (one(arguments={"input": ["in.jsonl"], "restart": True}), "restart has no place in a pipeline"),
        (one(arguments={}), "the following arguments are required: --input"),
        (one(arguments={"input": ["in.jsonl"], "limit": "few"}), "argument --limit: invalid int value: 'few'"),
        (one(overrides={"a.b": 1}), "unrecognized arguments: --override"),
        (one(arguments={"input": ["${values.inptu}"]}), "`values:` has input, and no inptu"),
        (one(arguments={"input": ["${stages.sft.output}"]}), "no stage before it is called sft; those are none"),
        (one(arguments={"input": ["${input}"]}), r"\$\{input\} stands for nothing; write output, values\.NAME"),
        (one(arguments={"input": ["gone.jsonl"]}), r"stage pairs: gone\.jsonl, which it reads, does not exist"),
        (one(arguments={"input": ["in.jsonl"], "output": "out dir/x"}), "where the pipeline keeps its record"),
        (one(name="a.b"), r"stages\.1\.name: string should match pattern"),
        (one() + one(), "2 stages are called 'pairs'"),
        (
            one() + one(name="b", arguments={"input": ["in.jsonl"], "output": "${output}/pairs/b"}),
            "a folder of its own",
        ),
        ([], r"stages: .* at least 1 item"),
        ([{**STAGES[1], "overrides": {}}], r"stage sft: dataset\.datasets is empty"),
        ([{**STAGES[1], "overrides": {"training.sed": 1}}], r"stage sft: .*\n.*did you mean 'seed'"),
        ([{**STAGES[1], "arguments": {"task": "alpaca", "method": "rloo"}}], "start it with `phf train-rl`"),
    ],
)
def test_what_can_not_work_is_refused_before_anything_runs(place, stages, told):
    # Behind a stage that could.
    write(stages if not stages or stages[0]["name"] == "pairs" else [STAGES[0], *stages])
    with pytest.raises(ConfigError, match=told):
        run()
    assert not Path("out dir").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--from", "sfd"], "--from sfd: the stages are pairs, sft, merged, other"),
        (["--redo", "x"], "--redo x: the stages are"),
        (["--set", "inptu=1"], "the pipeline has no value inptu; it has input"),
        (["--set", "input"], "--set input: write NAME=VALUE"),
        (["--set", "input=null"], r"\$\{values\.input\} is not set; add --set input=VALUE"),
        (["--override", "training.seed=1"], "write STAGE.KEY=VALUE, with one of the stages pairs, sft"),
        (["--override", "sft.training.seed=x"], r"training\.seed: input should be a valid integer"),
    ],
)
def test_options_that_mean_nothing_are_refused(place, words, told):
    with pytest.raises(ConfigError, match=told):
        run(*words)


def test_values_have_types_and_null_leaves_an_argument_out(place):
    stage = {
        "name": "judged",
        "command": "annotate",
        "arguments": {
            "head2head": "${values.both}",
            "annotators": "offline",
            "url": "${values.url}",
            "p-label-flip": "${values.flip}",
            "model": "$${x}-${values.flip}",
            "in-process": True,
            "agreement": False,
        },
    }
    write([stage], values={"both": ["in.jsonl", "my.yml"], "url": None, "flip": 0.25})
    commands = Commands()
    assert main(["my.yml"], run_stage=commands) == 0
    assert commands.argv["judged"] == [
        *("--head2head", "in.jsonl", "my.yml", "--annotators", "offline", "--p-label-flip", "0.25"),
        *("--model", "${x}-0.25", "--in-process", "--output", "out dir/x/judged"),
    ]


def test_an_agreement_of_annotators_is_done_with_its_file(place):
    write([{"name": "agree", "command": "annotate", "arguments": {"pairs": "in.jsonl", "annotators": "offline"}}])

    def writes(command, argv):
        Path("out dir/x/agree").mkdir(parents=True)
        Path("out dir/x/agree/agreement.json").touch()
        return 0

    assert main(["my.yml"], run_stage=writes) == 5
    shutil.rmtree("out dir")
    pipeline = yaml.safe_load(Path("my.yml").read_text())
    pipeline["stages"][0]["arguments"]["agreement"] = True
    Path("my.yml").write_text(yaml.safe_dump(pipeline))
    assert main(["my.yml"], run_stage=writes) == 0


def test_an_override_of_a_whole_key_takes_the_place_of_its_parts(place):
    stage = {**STAGES[1], "overrides": {"dataset.datasets": ["in.jsonl"], "model.lora.r": 4, "model.lora.alpha": 8}}
    write([stage])
    commands = Commands()
    main(["my.yml", "--override", "sft.model.lora=null", "sft.training.seed=7"], run_stage=commands)
    told = commands.argv["sft"][commands.argv["sft"].index("--override") + 1 :]
    assert told == ['dataset.datasets=["in.jsonl"]', "model.lora=null", "training.seed=7"]


def test_a_dry_run_says_all_and_touches_nothing(place, capsys):
    assert run("--dry-run") == (0, [])
    said = capsys.readouterr().out
    assert "2/4 sft: train-lm\n  state   to do\n  reads   out dir/x/pairs" in said
    assert "  command phf merge-adapter --checkpoint 'out dir/x/runs/sft' --output 'out dir/x/merged'" in said
    assert not Path("out dir").exists()
    run()
    before = Path("out dir/x/pipeline.json").read_bytes()
    assert run("--dry-run", "--redo", "sft") == (0, [])
    assert "would discard: stage merged, out dir/x/merged" in capsys.readouterr().out
    assert Path("out dir/x/pipeline.json").read_bytes() == before
    write(changed(0, limit=5))
    with pytest.raises(ConfigError, match="has changed since it finished"):
        run("--dry-run")
    assert "pairs: prepare-feedback\n  state   changed" in capsys.readouterr().out


def test_two_pipelines_in_one_folder_are_refused(place):
    with only_command("out dir/x"), pytest.raises(ConfigError, match="another command is working on it"):
        run()


# -- Processes ---------------------------------------------------------------------------------------------------------


def test_a_stage_is_a_process_with_an_exit_code_of_its_own(place, capfd):
    write([STAGES[0], {**STAGES[3], "arguments": {"input": ["${stages.pairs.output}"], "to": "coh", "form": "?"}}])
    with pytest.raises(ConfigError, match="argument --form: invalid choice"):
        main(["my.yml"])
    stages = [STAGES[0], {**STAGES[3], "arguments": {"input": ["${stages.pairs.output}"], "format": "hh"}}]
    write(stages)
    code = main(["my.yml"])
    assert code == 2
    said = capfd.readouterr()
    assert "error: " in said.err
    assert "stage other ended with exit code 2" in said.out
    assert Path("out dir/x/pairs/manifest.json").exists()


SAVES = """
import pathlib, signal, sys, time
def save(number, frame):
    pathlib.Path("saved").write_text(str(number))
    sys.exit(int(sys.argv[1]))
signal.signal(signal.SIGTERM, save)
pathlib.Path("ready").touch()
while True:
    time.sleep(0.01)
"""


@pytest.mark.parametrize("code", [5, 0])
def test_a_signal_reaches_the_stage_which_saves_and_ends(place, monkeypatch, code, capsys):
    monkeypatch.setattr(cli, "command_of", lambda command, argv: [sys.executable, "-c", SAVES, str(code)])
    if code == 0:
        Path("out dir/x/pairs").mkdir(parents=True)
        Path("out dir/x/pairs/_SUCCESS").touch()

    def send():
        while not Path("ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        if code == 0:
            # It ended by itself just then. The next one is not begun.
            assert main(["my.yml"]) == 5
            said = capsys.readouterr().out
            assert "stopped after stage pairs, which is finished" in said
        else:
            assert main(["my.yml"]) == 5
            said = capsys.readouterr().out
        assert said.endswith("To go on: phf pipeline my.yml\n")
    finally:
        sender.join()
    assert Path("saved").read_text() == str(int(signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_stage_that_is_killed_has_the_exit_code_of_a_shell(place, monkeypatch):
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(cli, "command_of", lambda command, argv: [sys.executable, "-c", kill])
    assert StageRunner([("merge-adapter", [])])("merge-adapter", []) == 137


def test_stages_share_one_ray_of_this_machine_and_those_that_need_none_start_none(place, monkeypatch):
    started = []
    show = "import os, sys; sys.exit(7 if os.environ.get('PHF_SHARED_RAY') == 'here:1' else 8)"
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cli, "command_of", lambda command, argv: [sys.executable, "-c", show])
    monkeypatch.setattr("jobs.cli.start_ray", lambda: started.append(1))
    context = type("Context", (), {"gcs_address": "here:1"})
    monkeypatch.setattr("ray.get_runtime_context", context)
    run_stage = StageRunner([(command, []) for command in ("prepare-feedback", "train-lm", "train-rl")])
    assert run_stage("prepare-feedback", []) == 8
    assert started == []
    assert [run_stage("train-lm", []), run_stage("train-rl", []), started] == [7, 7, [1]]
    assert StageRunner([("train-lm", [])])("train-lm", []) == 8
    here = [("train-lm", ["--in-process"])] * 2
    assert StageRunner([*here, ("train-rl", [])])("train-rl", []) == 8
    monkeypatch.setenv("RAY_ADDRESS", "there:2")
    assert StageRunner([("train-lm", []), ("train-rl", [])])("train-lm", []) == 8
