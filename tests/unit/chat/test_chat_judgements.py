"""What a person said of answers is stored line by line, and `prepare-feedback` reads it."""

import json
import threading

import pytest

from jobs import prepare_feedback
from phf_ray.chat.conversation import ChatArm, Conversation
from phf_ray.chat.judgements import COMPARISONS, LABELS, JudgementFiles, exported
from phf_ray.errors import ConfigError
from phf_ray.feedback import read_feedback

GOOD, BAD = ChatArm("lm", "good", 0.7, 64), ChatArm("lm", "bad", 0.7, 64)


def judged(verdict, *texts, swaps=False, system="", files=None):
    arms = [GOOD, BAD][: len(texts)]
    conversation = Conversation(system, swaps=lambda: swaps)
    turn = conversation.begin_turn("Why?", arms)
    for one in turn.answers:
        one.text, one.state, one.finish_reason = texts[one.number], "done", "stop"
    if verdict is not None:
        conversation.judge(verdict)
    if files is not None:
        files.add(turn)
    return conversation


def files_in(folder):
    return JudgementFiles(str(folder), annotator="ada", url="http://127.0.0.1:1")


def prepared(path, output):
    assert prepare_feedback.main(["--input", str(path), "--output", str(output)]) == 0
    return list(read_feedback(str(output)))


@pytest.mark.parametrize("swaps", [False, True])
@pytest.mark.parametrize(("verdict", "preference"), [("left", 1.0), ("right", 2.0), ("tie", 1.5)])
def test_a_comparison_says_what_stood_where_and_prepare_feedback_reads_it(tmp_path, swaps, verdict, preference):
    judged(verdict, "Because.", "Go away.", swaps=swaps, system="Be kind.", files=files_in(tmp_path / "said"))
    (row,) = prepared(tmp_path / "said" / COMPARISONS, tmp_path / "corpus")
    assert (row.output_1, row.output_2) == (("Go away.", "Because.") if swaps else ("Because.", "Go away."))
    assert row.preference == preference
    assert row.annotator == "ada"
    assert [message.role for message in row.prompt.messages] == ["system", "user"]
    meta = json.loads(row.meta)
    assert (meta["generator_1"], meta["generator_2"]) == (("lm:bad", "lm:good") if swaps else ("lm:good", "lm:bad"))
    assert meta["settings_1"]["control"] == ("bad" if swaps else "good")
    assert meta["settings_2"]["temperature"] == 0.7
    assert meta["shown"] == {"left": 1, "right": 2, "left_is_arm": 2 if swaps else 1}
    assert meta["time"].startswith("20")


@pytest.mark.parametrize(("thumb", "label"), [("up", True), ("down", False)])
def test_a_thumb_is_an_example_with_a_label(tmp_path, thumb, label):
    judged(thumb, "Because.", files=files_in(tmp_path / "said"))
    assert (tmp_path / "said" / COMPARISONS).read_bytes() == b""
    (row,) = prepared(tmp_path / "said" / LABELS, tmp_path / "corpus")
    assert (row.completion, row.label, row.control) == ("Because.", label, None)


def test_a_conversation_is_exported_for_each_arm_and_prepare_feedback_reads_it(tmp_path):
    conversation = judged("right", "Because.", "Ask her.")
    turn = conversation.begin_turn("And then?", [GOOD, BAD])
    turn.answers[0].text, turn.answers[0].state = "Nothing.", "done"
    turn.answers[1].state, turn.answers[1].problem = "failed", "the server is away"
    path = tmp_path / "conversation.jsonl"
    path.write_text(exported(conversation, url="http://127.0.0.1:1"))
    rows = prepared(path, tmp_path / "corpus")
    assert [[message.content for message in row.conversation] for row in rows] == [
        ["Why?", "Ask her.", "And then?", "Nothing."],
        ["Why?", "Ask her."],
    ]
    assert json.loads(path.read_text().splitlines()[0])["generators"] == ["lm:bad", "lm:good"]


def test_nothing_said_is_nothing_exported():
    assert exported(Conversation(), url="http://127.0.0.1:1") == ""


def test_lines_of_several_pages_stay_whole_and_those_before_them_stay(tmp_path):
    (tmp_path / COMPARISONS).write_text('{"torn": ')
    pages = [files_in(tmp_path) for _ in range(4)]
    texts = [f"Because {'x' * 5000}{number}." for number in range(4)]

    def say(files, text):
        for turn in range(5):
            judged("left", f"{text} {turn}", "No.", files=files)

    threads = [threading.Thread(target=say, args=pair) for pair in zip(pages, texts, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torn, *lines = (tmp_path / COMPARISONS).read_text().splitlines()
    assert torn == '{"torn": '
    assert len({json.loads(line)["output_1"] for line in lines}) == 20


def test_a_folder_that_takes_nothing_is_refused_before_the_page_opens(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="nothing can be stored there"):
        files_in(tmp_path / "file")
    with pytest.raises(ConfigError, match="give a local folder"):
        files_in("s3://bucket/said")
