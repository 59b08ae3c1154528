"""The store keeps each answer once, claims end with their owner, and a folder of something else is left alone."""

import sqlite3
import threading

import pytest

from phf_ray.errors import ConfigError, DataError
from phf_ray.judging import owner as owners
from phf_ray.judging.question import Answer, Question
from phf_ray.judging.store import STORE_FILE, Store, keep_answer

QUESTION = Question("judge", prompt="which?")
ANSWER = Answer("Output (a)", (("a", -0.5), ("b", -1.0)), 10, 2, 0.25, 1.5)


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path)
    yield opened
    opened.close()


def test_an_answer_comes_back_whole_from_another_process_of_the_folder(tmp_path, store):
    assert store.find("k") is None
    store.submit(lambda db: keep_answer(db, "k", QUESTION, ANSWER)).result()
    again = Store(tmp_path)
    assert again.find("k") == ANSWER
    again.close()


def test_the_first_answer_of_a_question_stays(store):
    for text in ("first", "second"):
        store.submit(lambda db, text=text: keep_answer(db, "k", QUESTION, Answer(text))).result()
    found = store.find("k")
    assert found is not None
    assert found.text == "first"


def test_work_that_fails_leaves_no_trace_and_does_no_harm_to_the_rest(store):
    started = threading.Event()

    def fails(db):
        keep_answer(db, "half", QUESTION, ANSWER)
        raise DataError("no")

    slow = store.submit(lambda db: started.wait(5))  # so that the others share a transaction
    failed = store.submit(fails)
    kept = store.submit(lambda db: keep_answer(db, "k", QUESTION, ANSWER))
    started.set()
    assert slow.result()
    with pytest.raises(DataError, match="no"):
        failed.result()
    kept.result()
    assert store.find("half") is None
    assert store.find("k") == ANSWER


def test_a_claim_is_one_owners_until_it_is_freed(tmp_path, store):
    other = Store(tmp_path)
    assert store.submit(lambda db: store.owner.claim(db, "k")).result()
    assert not store.submit(lambda db: store.owner.claim(db, "k")).result(), "not even its own"
    assert not other.submit(lambda db: other.owner.claim(db, "k")).result()
    store.submit(lambda db: store.owner.free(db, "k")).result()
    assert other.submit(lambda db: other.owner.claim(db, "k")).result()
    other.close()


def test_a_store_that_closes_frees_what_it_claimed(tmp_path, store):
    other = Store(tmp_path)
    assert other.submit(lambda db: other.owner.claim(db, "k")).result()
    other.close()
    assert store.submit(lambda db: store.owner.claim(db, "k")).result()


def test_an_owner_that_is_not_heard_any_more_loses_its_claims(tmp_path, store, monkeypatch):
    other = Store(tmp_path)
    assert other.submit(lambda db: other.owner.claim(db, "k")).result()
    assert not store.submit(lambda db: store.owner.claim(db, "k")).result()
    monkeypatch.setattr(owners, "CLAIM_S", -1.0)
    assert store.submit(lambda db: store.owner.claim(db, "k")).result()
    other.close()


def test_a_cache_of_another_version_is_named_and_left_as_it_is(tmp_path, store):
    store.close()
    with sqlite3.connect(tmp_path / STORE_FILE) as db:
        db.execute("PRAGMA user_version = 7")
    before = (tmp_path / STORE_FILE).read_bytes()
    with pytest.raises(ConfigError, match=r"cache of version 7, and this phf-ray reads version 1; give another"):
        Store(tmp_path)
    assert (tmp_path / STORE_FILE).read_bytes() == before


def test_files_of_others_are_refused(tmp_path):
    (tmp_path / STORE_FILE).write_text("not a database at all, but a text of some length", encoding="utf-8")
    with pytest.raises(DataError, match="file is not a database; check the disk"):
        Store(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with sqlite3.connect(other / STORE_FILE) as db:
        db.execute("CREATE TABLE mine (x)")
    with pytest.raises(ConfigError, match="is a database of something else; give another --cache"):
        Store(other)
    with pytest.raises(ConfigError, match="needs a folder on a local disk, not a URL"):
        Store("s3://bucket/cache")
