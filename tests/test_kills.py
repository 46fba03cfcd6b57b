"""A run that is killed loses no checkpoint: the script that shows it, with a few kills."""

from benchmarks import kill_test


def test_kills_lose_no_checkpoint():
    program = ("tests/hosts_program.py", "--config=tests/tiny_hosts.py")
    assert "3 kills" in kill_test.kill(3, program, longest=1.0)
