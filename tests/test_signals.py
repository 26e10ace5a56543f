import os
import signal
import threading

import pytest

from vlad.signals import handling


@pytest.fixture
def came():
    """What a handler was called with; the handlers of before are there again afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield []
    for number, handler in before.items():
        assert signal.getsignal(number) == handler
        signal.signal(number, handler)


def test_both_signals_come_to_the_handler_and_the_earlier_one_is_back_afterwards(came):
    outer = []
    with handling(lambda number, frame: outer.append(number)):
        with handling(lambda number, frame: came.append(number)):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert came == [signal.SIGTERM, signal.SIGINT]
    assert outer == [signal.SIGTERM]


def test_handlers_are_taken_back_where_something_fails(came):
    with pytest.raises(KeyError), handling(lambda number, frame: came.append(number)):
        raise KeyError


def test_what_is_ignored_from_outside_stays_ignored(came):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with handling(lambda number, frame: came.append(number)):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert came == [signal.SIGTERM]


def test_another_thread_handles_nothing(came):
    seen = []

    def work():
        with handling(lambda number, frame: came.append(number)):
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
