"""Many questions at the same time: answers in order, not too far ahead, and the first error."""

import threading

import pytest

from phf_ray.storage.at_once import at_once


def test_answers_come_in_the_order_of_the_questions_and_are_asked_at_the_same_time():
    together = threading.Barrier(4, timeout=60)

    def ask(item: int) -> int:
        together.wait()
        return -item

    assert list(at_once(ask, range(8), most=4)) == [0, -1, -2, -3, -4, -5, -6, -7]


def test_questions_are_taken_no_further_ahead_than_memory_allows():
    taken = []

    def items():
        for item in range(1000):
            taken.append(item)
            yield item

    answers = at_once(str, items(), most=2)
    assert [next(answers) for _ in range(10)] == list("0123456789")
    assert len(taken) <= 10 + 4 * 2
    answers.close()


def test_the_first_error_in_order_is_raised_and_nothing_more_is_asked():
    asked, failed = [], threading.Event()

    def ask(item: int) -> int:
        asked.append(item)
        if item == 1:
            failed.wait(60)  # the error of a later item is there before this one
            raise ValueError("first")
        if item == 2:
            failed.set()
            raise ValueError("second")
        return item

    answers = at_once(ask, range(1000), most=3)
    assert next(answers) == 0
    with pytest.raises(ValueError, match="first"):
        next(answers)
    assert len(asked) <= 1 + 4 * 3


@pytest.mark.parametrize("items", [[], ["alone"]])
def test_one_question_needs_no_thread(items):
    names = list(at_once(lambda _: threading.current_thread().name, items))
    assert names == [threading.current_thread().name] * len(items)
