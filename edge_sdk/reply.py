"""Makes one reply in a thread of its own: prefill, decode loop, tools, vocoder; events go to whoever listens."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from edge_sdk.config import ModelConfig
from edge_sdk.context import Context
from edge_sdk.conversation import Conversation, Turn
from edge_sdk.errors import ContextFullError
from edge_sdk.events import AudioChunk, Done, Reply, TextDelta, Timings, ToolCall
from edge_sdk.generation import Chooser, GenerationConfig, Generator, Step
from edge_sdk.prompt import Prompt
from edge_sdk.running import RunningReply
from edge_sdk.runtime import Array
from edge_sdk.speaker import Speaker
from edge_sdk.tokenizer import TextStream, Tokenizer
from edge_sdk.tool_worker import ToolWorker
from edge_sdk.tools import Tool, ToolCallParser, tool_error, unknown_tool
from edge_sdk.transcript import Transcript

MAX_TOOL_ROUNDS = 8

log = logging.getLogger("edge_sdk.chat")


@dataclass
class Question:
    """What a reply answers: the turns that fit, their prompt, and the clock."""

    turns: list[Turn]
    prompt: Prompt
    asked_at: float
    encode_s: float = 0.0


class ReplyMaker:
    """One reply. `run` is the thread's body; it ends the reply with Done or an exception, always."""

    def __init__(
        self,
        *,
        model: ModelConfig,
        tokenizer: Tokenizer,
        context: Context,
        conversation: Conversation,
        tools: Sequence[Tool],
        tool_worker: ToolWorker,
        config: GenerationConfig,
        next_turn: Callable[[], int],
        make_speaker: Callable[[Callable[[Array, int], None]], Speaker] | None,
        sample_rate: int,
        question: Question,
        running: RunningReply,
        release: Callable[[], None],
    ) -> None:
        self._model, self._tokenizer, self._context = model, tokenizer, context
        self._conversation, self._tools, self._config = conversation, {t.name: t for t in tools}, config
        self._tool_worker = tool_worker
        self._next_turn, self._make_speaker, self._sample_rate = next_turn, make_speaker, sample_rate
        self._question, self._running, self._release = question, running, release
        self._seed = secrets.randbits(63) if config.seed is None else int(config.seed)
        self._bad_words = tuple(
            tuple(tokenizer.encode_plain(w)) if isinstance(w, str) else tuple(map(int, w)) for w in config.bad_words
        )
        self._speaker: Speaker | None = None
        self._transcript = Transcript(model.step_ms)
        self._pending_ids: list[int] = []  # of text that is not complete yet
        self._text: list[str] = []
        self._text_ids: list[int] = []
        self._speech_ids: list[int] = []
        self._calls: list[ToolCall] = []
        self._prompt_tokens = self._reused = 0
        self._prefill_s = 0.0
        self._first_token_at: float | None = None
        self._backbone_s: list[float] = []
        self._head_s: list[float] = []
        self._step_s: list[float] = []

    def run(self) -> None:
        before = list(self._conversation.turns)
        last: Done | BaseException
        try:
            last = Done(self._make())
        except BaseException as e:
            # As if the question had not been asked: caches start clean, the history is what it was.
            last = e
            self._conversation.turns = before
            self._context.reset()
            self._running.fail()
            if self._speaker:
                self._speaker.stop()
        self._release()
        self._running.end(last)

    def _make(self) -> Reply:
        if self._make_speaker:
            self._speaker = self._make_speaker(self._emit_audio)
            self._running.on_interrupt(self._speaker.halt)
        self._conversation.commit(self._question.turns)
        reason = self._rounds(self._question.prompt)
        if self._speaker:
            self._speaker.finish()
        cut = partial(_cut_history, self._conversation, self._transcript)  # no hold on the maker, which would last
        if self._running.complete(cut):  # it may have come while the vocoder was finishing
            reason = "interrupted"
        return self._reply(reason)

    def _rounds(self, prompt: Prompt) -> str:
        """Generate, run the tools that were called, and again, until nothing is called. Returns the finish reason."""
        for round_number in range(MAX_TOOL_ROUNDS + 1):
            reason = self._round(prompt)
            calls = self._transcript.calls
            if not calls or reason == "interrupted":
                return reason
            if round_number == MAX_TOOL_ROUNDS or not all(self._runnable(call) for call in calls):
                return "tool_calls"
            self._answer_calls(calls)
            try:
                turns, prompt = self._conversation.fit(self._conversation.turns)
            except ContextFullError as e:
                log.warning("the results of the tools do not fit: %s", e)
                return "context"
            self._conversation.commit(turns)
        return "tool_calls"

    def _round(self, prompt: Prompt) -> str:
        """Prefill and generate once; the assistant's turn is in the history afterwards."""
        first_step = len(self._text_ids)
        self._transcript.begin_round()
        self._pending_ids = []
        began = time.perf_counter()
        output = self._context.prefill(prompt, lambda: self._running.interrupted)
        self._prefill_s += time.perf_counter() - began
        self._prompt_tokens, self._reused = len(prompt), self._context.reused
        chooser = Chooser(
            self._model, self._config, prompt_ids=prompt.ids.tolist(), bad_words=self._bad_words, seed=self._seed,
            turn=self._next_turn(),
        )  # fmt: skip
        generator = Generator(self._model, self._context.backbone, self._context.speech_head, self._config, chooser)
        stream, parser = TextStream(self._tokenizer), ToolCallParser(len(self._calls))
        reason = "interrupted"
        for step in generator.steps(output) if output else ():
            self._take(step, first_step + step.index, stream, parser)
            if step.finish_reason:
                reason = step.finish_reason
            if self._running.interrupted:
                reason = "interrupted"
                break
        self._say(parser.push(stream.finish()) + parser.finish(), len(self._text_ids) - 1)
        self._backbone_s += generator.times.backbone_s
        self._head_s += generator.times.speech_head_s
        self._step_s += generator.times.step_s
        self._conversation.turns.append(self._transcript.end_round())
        return reason

    def _take(self, step: Step, number: int, stream: TextStream, parser: ToolCallParser) -> None:
        if self._first_token_at is None:
            self._first_token_at = time.perf_counter()
        self._text_ids.append(step.text_id)
        self._pending_ids.append(step.text_id)
        if step.group is not None:
            self._speech_ids += step.group.tolist()
            if self._speaker:
                self._speaker.say(step.group)
        self._say(parser.push(stream.push(step.text_id)), number)

    def _say(self, parts: Sequence[str | ToolCall], step: int) -> None:
        for part in parts:
            self._transcript.add(step, part)
            if isinstance(part, ToolCall):
                self._calls.append(part)
                self._running.put(part)
            else:
                self._text.append(part)
                ids, self._pending_ids = tuple(self._pending_ids), []
                self._running.put(TextDelta(part, ids, step))

    def _emit_audio(self, pcm: Array, samples_before: int) -> None:
        self._running.put(AudioChunk(pcm, self._sample_rate, samples_before / self._sample_rate))

    def _runnable(self, call: ToolCall) -> bool:
        tool = self._tools.get(call.name)
        # A name that does not exist is answered here as well: the model is told, and can try again.
        return tool is None or tool.function is not None

    def _answer_calls(self, calls: Sequence[ToolCall]) -> None:
        for call in calls:
            tool = self._tools.get(call.name)
            if tool is None:
                result = unknown_tool(call.name, self._tools)
            elif self._running.interrupted:
                result = tool_error("the user interrupted before it was called")
            else:
                result = self._tool_worker.run(tool, call.arguments, self._running)
            self._conversation.turns.append(Turn("tool", text=result))
        self._transcript.mark_answered()

    def _reply(self, reason: str) -> Reply:
        return Reply(
            text="".join(self._text),
            audio=self._speaker.pcm if self._speaker else np.zeros(0, np.float32),
            sample_rate=self._sample_rate,
            text_ids=tuple(self._text_ids),
            speech_ids=tuple(self._speech_ids),
            tool_calls=tuple(self._calls),
            finish_reason=reason,
            timings=self._timings(),
        )

    def _timings(self) -> Timings:
        asked, now = self._question.asked_at, time.perf_counter()
        speaker = self._speaker
        flow_s, waveform_s = speaker.times if speaker else (0.0, 0.0)
        p50, p95 = np.percentile(self._step_s, (50, 95)) if self._step_s else (0.0, 0.0)
        heard_at = speaker.first_audio_at if speaker else None
        return Timings(
            seed=self._seed,
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._reused,
            steps=len(self._text_ids),
            encode_ms=self._question.encode_s * 1e3,
            prefill_ms=self._prefill_s * 1e3,
            ttft_ms=((self._first_token_at or now) - asked) * 1e3,
            ttfa_ms=(heard_at - asked) * 1e3 if heard_at else None,
            backbone_ms=sum(self._backbone_s) * 1e3,
            speech_head_ms=sum(self._head_s) * 1e3,
            flow_ms=flow_s * 1e3,
            waveform_ms=waveform_s * 1e3,
            total_ms=(now - asked) * 1e3,
            audio_s=speaker.samples / self._sample_rate if speaker else 0.0,
            step_p50_ms=float(p50) * 1e3,
            step_p95_ms=float(p95) * 1e3,
            cache_bytes=self._context.nbytes,
            vocoder_cache_bytes=speaker.cache_bytes if speaker else 0,
        )


def _cut_history(conversation: Conversation, transcript: Transcript, taken: int, played_ms: float | None) -> None:
    conversation.turns = transcript.cut(conversation.turns, taken, played_ms)
