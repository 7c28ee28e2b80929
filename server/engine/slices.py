"""Work that stops in its middle when its time is over, and goes on there later.

A forward and backward pass is one call into the model and autograd, many times as long as a decode
step; what lets it stop is that both come through the model's modules. So it runs on a thread of its
own, as a coroutine would: never at the same time as its owner, who waits for it to end or to pause.
Pausing changes no bit of the result. Knows threads and modules; knows nothing about lessons.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

Over = Callable[[], bool]
"""Asked at every place where work can pause: whether it should."""


class Abandoned(BaseException):
    """Raised inside paused work that nobody wants any more. Only `Sliced` may catch it."""


class Sliced:
    """One piece of work at a time, run in slices. All but ``pause`` are for its owner's thread."""

    def __init__(self, threads: int) -> None:
        """``threads``: of one torch operation inside the work."""
        self._threads = threads
        self._thread: threading.Thread | None = None
        self._work: Callable[[], object] | None = None
        self._over: Over = lambda: False
        self._running = False  # the work, and not its owner
        self._unwanted = False
        self._error: BaseException | None = None
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)

    def run(self, work: Callable[[], object], over: Over) -> bool:
        """Go on with the work that is paused, or begin ``work``; false where it paused.

        Raises:
            Exception: what the work raised.
        """
        if self._work is None:
            self._work = work
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="innerloop-lesson", daemon=True)
            self._thread.start()
        self._over = over
        self._let_run()
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._work is None

    def pause(self) -> None:
        """Give way to the owner if the time is over; nothing where it is not the work that asks."""
        if not self._running or not self._over():
            return
        self._running = False
        self._back.release()
        self._go.acquire()
        if self._unwanted:
            raise Abandoned

    def abandon(self) -> None:
        """End the work that is paused, if there is any."""
        if self._work is not None:
            self._unwanted = True
            self._over = lambda: False
            self._let_run()
            self._unwanted, self._error = False, None

    def close(self) -> None:
        """Abandon the work and end the thread."""
        self.abandon()
        if self._thread is not None:
            self._go.release()
            self._thread.join()
            self._thread = None

    def _let_run(self) -> None:
        self._running = True
        self._go.release()
        self._back.acquire()

    def _main(self) -> None:
        torch.set_num_threads(self._threads)  # OpenMP keeps the number per calling thread
        while True:
            self._go.acquire()
            if self._work is None:
                return
            try:
                self._work()
            except BaseException as error:  # the owner raises it
                self._error = error
            self._work, self._running = None, False
            self._back.release()


class PausePoints:
    """Lets work pause after each of some modules, and where its output's gradient arrives."""

    def __init__(self, modules: Iterable[nn.Module], pause: Callable[[], None]) -> None:
        """Attach to the modules."""
        self._pause = pause
        self._handles = [module.register_forward_hook(self._after) for module in modules]

    def __deepcopy__(self, memo: object) -> PausePoints:
        """A copy of the model runs nobody's sliced work."""
        return PausePoints((), lambda: None)

    def remove(self) -> None:
        """Detach from the modules."""
        for handle in self._handles:
            handle.remove()

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._pause()
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(self._on_gradient)

    def _on_gradient(self, gradient: Tensor) -> None:
        self._pause()
