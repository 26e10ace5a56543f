import threading
import time

import pytest

from vlad.drawing.pool import Pool


def test_who_adds_too_much_waits():
    gate, done = threading.Event(), []
    pool = Pool(1, waiting=2)
    for number in range(2):
        pool.add(lambda n=number: (gate.wait(5), done.append(n)))
    late = threading.Thread(target=pool.add, args=(done.append, "late"))
    late.start()
    time.sleep(0.1)
    assert late.is_alive()
    gate.set()
    late.join(5)
    pool.close()
    assert done == [0, 1, "late"]


def test_a_failure_is_raised_where_work_is_added_or_at_the_end():
    def fail():
        raise OSError(28, "No space left on device")

    pool = Pool(1)
    pool.add(fail)
    with pytest.raises(OSError, match="No space"):
        pool.close()


def test_abandoned_work_is_not_begun():
    gate, done = threading.Event(), []
    pool = Pool(1)
    pool.add(gate.wait, 5)
    pool.add(done.append, 1)
    threading.Timer(0.1, gate.set).start()
    pool.abandon()
    assert done == []
