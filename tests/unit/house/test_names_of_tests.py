"""Every file of tests has a name of its own: pytest can't import two of one name, and collects neither."""

from collections import Counter

from places import ROOT


def test_no_two_files_of_tests_have_one_name():
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(names) > 200
    assert [name for name, count in names.items() if count > 1] == []
