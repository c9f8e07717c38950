"""Tier 5: an export is a function of its inputs."""

from artifacts import contents, exported_after_kills


def test_two_processes_write_the_same_bytes(shelf, bounded):
    """Strings hash differently in them; one was killed on its way several times."""
    again = exported_after_kills(shelf, bounded)
    first, second = contents(bounded), contents(again)
    assert list(first) == list(second)
    assert [name for name in first if first[name] != second[name]] == []
