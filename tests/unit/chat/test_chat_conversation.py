"""What each arm is sent, who stands where, and which turns a person can compare."""

from phf_ray.chat.conversation import ChatArm, Conversation
from phf_ray.generation.chat.prompts import Message

ARMS = [ChatArm("a"), ChatArm("b")]


def talk(*, swaps=lambda: False, system=""):
    return Conversation(system, swaps=swaps)


def answer(turn, *texts):
    """In the order of the arms, wherever they stand."""
    for one in turn.answers:
        one.text, one.state = texts[one.number], "done"
    return turn


def contents(messages):
    return [message.content for message in messages]


def test_each_arm_goes_on_from_its_own_answers():
    conversation = talk(system="Be brief.")
    answer(conversation.begin_turn("one", ARMS), "a1", "b1")
    second = conversation.begin_turn("two", ARMS)
    assert contents(second.answers[0].asked) == ["Be brief.", "one", "a1", "two"]
    assert contents(second.answers[1].asked) == ["Be brief.", "one", "b1", "two"]
    assert second.answers[0].asked[0] == Message("system", "Be brief.")


def test_after_a_judgement_both_go_on_from_the_better_answer():
    conversation = talk(swaps=lambda: True)
    answer(conversation.begin_turn("one", ARMS), "a1", "b1")
    conversation.judge("left")  # b stands there
    second = conversation.begin_turn("two", ARMS)
    assert {tuple(contents(one.asked)) for one in second.answers} == {("one", "b1", "two")}


def test_arms_that_have_parted_make_no_comparison_and_the_page_can_say_so():
    conversation = talk()
    answer(conversation.begin_turn("one", ARMS), "a1", "b1")
    answer(conversation.begin_turn("two", ARMS), "a2", "b2")
    assert "don't answer the same conversation" in conversation.why_not_judged()


def test_a_turn_is_judged_once_and_only_when_all_its_answers_are_there():
    conversation = talk()
    assert conversation.why_not_judged() == "there is no answer yet"
    turn = conversation.begin_turn("one", ARMS)
    assert conversation.why_not_judged() == "an answer is missing"
    answer(turn, "same", "same")
    assert conversation.why_not_judged() == "the two answers are the same"
    answer(turn, "a1", "b1")
    assert conversation.why_not_judged() is None
    conversation.judge("tie")
    assert "judged" in conversation.why_not_judged()


def test_sides_are_drawn_for_each_turn_and_kept_where_the_arms_have_parted():
    draws = iter([True, False])
    conversation = talk(swaps=lambda: next(draws))
    first = answer(conversation.begin_turn("one", ARMS), "a1", "b1")
    assert [one.arm.name for one in first.answers] == ["b", "a"]
    assert [one.arm.name for one in conversation.begin_turn("two", ARMS).answers] == ["b", "a"]  # parted: as before
    conversation.turns.pop()
    conversation.judge("left")
    assert [one.arm.name for one in conversation.begin_turn("two", ARMS).answers] == ["a", "b"]


def test_by_itself_a_conversation_draws_both_orders():
    orders = {tuple(one.number for one in Conversation().begin_turn("x", ARMS).answers) for _ in range(60)}
    assert orders == {(0, 1), (1, 0)}


def test_a_turn_that_failed_is_not_told_to_the_model_and_a_stopped_one_is():
    conversation = talk()
    turn = conversation.begin_turn("one", ARMS[:1])
    turn.answers[0].state, turn.answers[0].text = "failed", "half an ans"
    assert contents(conversation.begin_turn("two", ARMS[:1]).answers[0].asked) == ["two"]
    turn.answers[0].state = "stopped"
    conversation.turns.pop()
    assert contents(conversation.begin_turn("two", ARMS[:1]).answers[0].asked) == ["one", "half an ans", "two"]


def test_asking_again_forgets_the_last_answers_alone():
    conversation = talk()
    assert conversation.begin_again(ARMS) is None
    answer(conversation.begin_turn("one", ARMS), "a1", "b1")
    conversation.judge("right")
    answer(conversation.begin_turn("two", ARMS), "a2", "b2")
    again = conversation.begin_again(ARMS)
    assert [contents(one.asked) for one in again.answers] == [["one", "b1", "two"]] * 2
    assert len(conversation.turns) == 2
    assert conversation.turns[0].judgement == "right"


def test_a_second_arm_that_joins_later_hears_what_was_said_before():
    conversation = talk()
    answer(conversation.begin_turn("one", ARMS[:1]), "a1")
    turn = conversation.begin_turn("two", ARMS)
    assert [contents(one.asked) for one in turn.answers] == [["one", "a1", "two"]] * 2
