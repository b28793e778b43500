"""Threads that hang are abandoned; the pool continues without them."""

import threading
import time

import pytest

from vjepa_fast.data.workers.thread_pool import ThreadPool
from vjepa_fast.errors import UserError


def test_threads_outlive_what_hangs():
    never = threading.Event()
    threads = ThreadPool(1, "vjepa-test", seconds=0.2)
    hanging = [threads.submit(never.wait) for _ in range(2)]
    fine = threads.submit(lambda: 7, seconds=60)
    for future in hanging:
        with pytest.raises(UserError, match=r"takes more than 0\.2 s"):
            threads.result(future)
    assert threads.result(fine) == 7
    left = [thread for thread in threading.enumerate() if thread.name == "vjepa-test"]
    threads.close()
    never.set()
    for thread in left:
        thread.join(60)
    assert len(left) == 3 and not any(thread.is_alive() for thread in left)


def test_threads_keep_to_the_limit_of_each_task():
    never = threading.Event()
    threads = ThreadPool(2, "vjepa-test", seconds=0.3)
    slow = threads.submit(time.sleep, 0.6, seconds=60)
    hanging = threads.submit(never.wait, seconds=0.6)
    with pytest.raises(UserError, match=r"takes more than 0\.6 s"):
        threads.result(hanging)
    assert threads.result(slow) is None
    threads.close()
    never.set()


def test_threads_hand_errors_on():
    threads = ThreadPool(2, "vjepa-test")
    with pytest.raises(KeyError, match="inside"):
        threads.result(threads.submit(lambda: {}["inside"]))
    threads.close()
    assert threads.submit(print).cancelled()
