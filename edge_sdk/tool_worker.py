"""Runs tools in threads of their own, so that one which hangs holds up neither an interruption nor the conversation."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

from edge_sdk.checks import check_number
from edge_sdk.running import RunningReply
from edge_sdk.tools import Tool, run_tool, tool_error

GRACE_S = 0.2  # a tool that is nearly done when the user interrupts may still say its result: one step
MOST_STUCK = 4  # calls of one tool that never returned: then it is not called any more
MAX_TIMEOUT_S = 86400.0

log = logging.getLogger("edge_sdk.tools")


class ToolWorker:
    """Of one Chat. A thread cannot be ended from outside: a call that takes too long is left to itself, and told so."""

    def __init__(self, timeout_s: float | None) -> None:
        """`timeout_s`: for one call; None waits for as long as nobody interrupts."""
        if timeout_s is not None:
            want = f"None or a number of seconds up to {MAX_TIMEOUT_S:.0f}"
            timeout_s = check_number("tool_timeout_s", timeout_s, 1e-3, MAX_TIMEOUT_S, want)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._busy: dict[str, int] = {}  # calls that have not returned, by tool

    def run(self, tool: Tool, arguments: Mapping[str, Any], running: RunningReply) -> str:
        """Its result, or what went wrong (it took too long, the user interrupted, it failed), as JSON for the model.

        SystemExit and KeyboardInterrupt of the tool are raised here.
        """
        with self._lock:
            stuck = self._busy.get(tool.name, 0)
            if stuck >= MOST_STUCK:
                return tool_error(f"{tool.name} is not available: {stuck} earlier calls have not returned")
            self._busy[tool.name] = stuck + 1
        call = _Call(tool, arguments, self._returned)
        with running.helped_by(call.thread, call.wake.set):
            try:
                call.thread.start()
            except RuntimeError as e:
                self._returned(tool.name)
                return tool_error(f"{tool.name} cannot be called now: {e}")
            call.wake.wait(self._timeout_s)
            if running.interrupted:
                call.returned.wait(GRACE_S)
        if call.returned.is_set():
            return call.result()
        why = "the user interrupted" if running.interrupted else f"no result within {self._timeout_s:g} s"
        log.warning("tool '%s': %s; the call is left to itself", tool.name, why)
        return tool_error(f"{why}; whether it was done is not known")

    def _returned(self, name: str) -> None:
        with self._lock:
            self._busy[name] -= 1


class _Call:
    """One call on its way. `wake` is set when it returned, and by an interruption."""

    def __init__(self, tool: Tool, arguments: Mapping[str, Any], returned: Any) -> None:
        self._tool, self._arguments, self._note = tool, arguments, returned
        self.wake, self.returned = threading.Event(), threading.Event()
        self._result: str | BaseException = ""
        self.thread = threading.Thread(target=self._work, name=f"edge_sdk-tool-{tool.name}", daemon=True)

    def result(self) -> str:
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result

    def _work(self) -> None:
        try:
            self._result = run_tool(self._tool, self._arguments)
        except BaseException as e:  # the program's own end: raised where the reply is made
            self._result = e
        finally:
            self._note(self._tool.name)
            self.returned.set()
            self.wake.set()
