"""The engine thread: wakes its poll loop, survives whatever a step raises, hands results once."""

import select
import threading

import pytest

from penstock.engine.step import Drawn, Step, StepResult
from penstock.engine.thread import EngineThread


class Scripted:
    """A runner that waits to be let go, then answers or raises."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.error: Exception | None = None

    def run(self, step: Step) -> StepResult:
        assert self.let_go.wait(10)
        self.let_go.clear()
        if self.error is not None:
            raise self.error
        return StepResult(step, (Drawn((7,)),), 0.5)


def wait_for(engine: EngineThread) -> StepResult:
    assert select.select([engine.fileno()], [], [], 10)[0]
    result = engine.finished()
    assert result is not None
    return result


def test_a_step_from_start_to_finish() -> None:
    runner = Scripted()
    engine = EngineThread(runner)
    assert not engine.busy and engine.finished() is None
    step = Step(())
    engine.start(step)
    assert engine.busy and engine.finished() is None
    assert not select.select([engine.fileno()], [], [], 0)[0]
    runner.let_go.set()
    result = wait_for(engine)
    assert result.step is step and result.drawn[0].token_ids == (7,) and not result.error
    assert not engine.busy and engine.finished() is None
    assert not select.select([engine.fileno()], [], [], 0)[0]
    engine.close()
    assert not engine.alive


def test_a_second_step_waits_behind_the_first_and_a_third_is_refused() -> None:
    runner = Scripted()
    engine = EngineThread(runner)
    first, second = Step(()), Step(())
    engine.start(first)
    engine.start(second)
    with pytest.raises(RuntimeError, match="2 steps are in flight"):
        engine.start(Step(()))
    runner.let_go.set()
    assert wait_for(engine).step is first
    assert engine.busy and engine.finished() is None
    assert not select.select([engine.fileno()], [], [], 0)[0]
    runner.let_go.set()
    assert wait_for(engine).step is second
    assert not engine.busy
    engine.close()


def test_two_results_wake_the_loop_twice() -> None:
    runner = Scripted()
    engine = EngineThread(runner)
    for _ in range(2):
        engine.start(Step(()))
    runner.let_go.set()
    assert select.select([engine.fileno()], [], [], 10)[0]
    runner.let_go.set()
    engine._steps.put(None)
    engine._thread.join(10)  # both results wait now
    for _ in range(2):
        wait_for(engine)
    assert engine.finished() is None
    engine.close()


def test_an_exception_is_a_result() -> None:
    runner = Scripted()
    engine = EngineThread(runner)
    runner.error = ValueError("a page id lies outside the pool")
    for _ in range(2):
        engine.start(Step(()))
        runner.let_go.set()
        result = wait_for(engine)
        assert result.error == "ValueError: a page id lies outside the pool"
        assert result.drawn == () and engine.alive
    runner.error = None
    engine.start(Step(()))
    runner.let_go.set()
    assert not wait_for(engine).error
    engine.close()


def test_close_waits_for_the_step_or_says_so() -> None:
    runner = Scripted()
    engine = EngineThread(runner)
    engine.start(Step(()))
    with pytest.raises(TimeoutError, match="did not end"):
        engine.close(seconds=0.05)
    runner.let_go.set()
    engine.close()
