"""Ctrl-C and SIGTERM: a run stops at the end of a step, and all its ranks at the end of the same one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hanlin.training.parallel import World


class Interruption:
    """What the first Ctrl-C or SIGTERM asks for. Several ranks stop after the same step: the one whose sums have told
    all of them; one process stops after the step in which it was asked.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._asked = threading.Event()
        self._agreed = False

    @property
    def was_asked(self) -> bool:
        """Of this rank."""
        return self._asked.is_set()

    @property
    def is_agreed(self) -> bool:
        """By all ranks."""
        return self.was_asked if self._world.size == 1 else self._agreed

    def agree(self, anybody: bool) -> None:
        """Take note of whether any rank was asked."""
        self._agreed = anybody

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal. A second Ctrl-C interrupts one process at once; under torchrun one Ctrl-C comes twice."""
        if self.was_asked and number == signal.SIGINT and self._world.size == 1:
            raise KeyboardInterrupt
        self._asked.set()


@contextmanager
def interruptible(world: World) -> Iterator[Interruption]:
    """Lets signals ask for the end of the run while the block lasts."""
    stop = Interruption(world)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
