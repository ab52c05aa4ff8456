"""azjax.runs.signals: the first signal is a request, the second has its usual effect."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from azjax.runs.signals import Interrupts, RunInterrupted, StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_noted_and_handlers_come_back(
    number: signal.Signals, request: pytest.FixtureRequest
) -> None:
    # The tests may have been started by nohup.
    ignored = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, ignored))
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    said: list[str] = []
    with StopRequest(said.append) as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal == number
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert len(said) == 1
    assert number.name in said[0]
    assert "once more stops at once" in said[0]


def interrupt_twice() -> None:
    with StopRequest(lambda text: None):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second did nothing")


def test_the_second_interrupt_is_one() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()


def test_without_a_signal_everything_is_as_before() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopRequest(pytest.fail):
        pass
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopRequest(pytest.fail):
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with StopRequest(pytest.fail):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupted_run_has_an_exit_code_and_a_mend(number: signal.Signals, code: int) -> None:
    error = RunInterrupted(number, "go on with: azjax resume runs/x")
    assert error.exit_code == code
    assert isinstance(error, KeyboardInterrupt)
    assert str(error) == f"stopped by {number.name}; go on with: azjax resume runs/x"


def test_a_signal_that_arrives_twice_is_one() -> None:
    with StopRequest(lambda text: None, deaf=0.2) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        time.sleep(0.25)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def wait_inside(number: signal.Signals) -> None:
    with Interrupts("go on"):
        os.kill(os.getpid(), number)
        time.sleep(5.0)
        pytest.fail("it did nothing")


def stop_late() -> None:
    with Interrupts("go on"):
        with StopRequest(lambda text: None) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
        stop.hand_on()
        pytest.fail("it did nothing")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_where_nothing_is_to_be_finished_a_signal_ends_the_run_at_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(RunInterrupted, match=f"stopped by {number.name}; go on") as caught:
        wait_inside(number)
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) == before


def test_a_request_to_stop_that_came_too_late_is_heard_around_it() -> None:
    with pytest.raises(RunInterrupted, match="stopped by SIGTERM; go on"):
        stop_late()
    with StopRequest(lambda text: None) as stop:  # with nothing around it
        os.kill(os.getpid(), signal.SIGTERM)
    stop.hand_on()
    with Interrupts("go on"), StopRequest(pytest.fail) as stop:  # without a signal
        pass
    stop.hand_on()


def test_where_others_must_hear_of_it_a_signal_waits_for_the_next_loop() -> None:
    said: list[str] = []
    with Interrupts("go on", later=True) as around:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # the same one, passed on by a parent
        assert around.signal == signal.SIGTERM
        with StopRequest(said.append, deaf=0.2) as stop:
            assert stop.signal == signal.SIGTERM
        stop.hand_on()  # all processes have heard of it
    assert len(said) == 1
