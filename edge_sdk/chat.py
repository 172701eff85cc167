"""Chat: turns in, events out. Owns one conversation: its history, both KV caches, its vocoder."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from edge_sdk.audio import StreamResampler, load_audio
from edge_sdk.bundle import Bundle
from edge_sdk.checks import check_choice, check_flag, check_played, check_text, check_whole
from edge_sdk.clip import ClipEncoder
from edge_sdk.config import ModelConfig
from edge_sdk.context import Context
from edge_sdk.conversation import ROLES, Conversation
from edge_sdk.conversation import Turn as HistoryTurn
from edge_sdk.encoder import Encoder
from edge_sdk.errors import BundleError, Error
from edge_sdk.events import Event, Reply
from edge_sdk.floor import Floor
from edge_sdk.generation import GenerationConfig
from edge_sdk.mel import LongAudio
from edge_sdk.prompt import SYSTEM_SPEECH, SYSTEM_TEXT, Clip, Template, system_message
from edge_sdk.reply import Question, ReplyMaker
from edge_sdk.running import RunningReply
from edge_sdk.runtime import Array
from edge_sdk.session import load_session, save_session
from edge_sdk.speaker import Speaker
from edge_sdk.stream import ReplyStream
from edge_sdk.tokenizer import Tokenizer
from edge_sdk.tool_worker import ToolWorker
from edge_sdk.tools import make_tools
from edge_sdk.turn import Turn

if TYPE_CHECKING:
    from edge_sdk.audio_link import AudioLink
    from edge_sdk.vocoder import Vocoder

CHANNEL_EVENTS = 512
RESERVE_SHARE = 4  # a reply gets at least a quarter of the context when old turns can go for it


class Chat:
    """A spoken conversation with a bundle's model.

    Args:
        bundle: path or open Bundle; None is the bundle that ships with the package.
        runtime: "auto", or a runtime's name; one that was asked for and cannot run is an error.
        device_id: which GPU, for runtimes that have one.
        threads: CPU threads of each engine; None takes every core this process may use.
        system: system prompt, verbatim; special tokens in it count. None is upstream's default.
        voice: a name in the bundle, or a speaker embedding [192]; None is the bundle's default.
        tools: callables or JSON schemas the model may call. Callables are run, each call in a thread of its own, and
            their result is answered.
        tool_timeout_s: how long a call may take; then, and when the user interrupts, the reply goes on or ends without
            its result. None sets no limit.
        speech: answer with speech as well as text.
        generation: how replies are made; `send` and `stream` can override it. None is the bundle's own, as a rule
            upstream's example settings.
        context_tokens: positions of the backbone's cache (5 a second of audio); fixed memory.
        on_full: "drop" lets the oldest turns go, "error" raises ContextFullError.
        long_audio: past 30 s, "full" hears all of it; "upstream" hears nothing, as the reference.
        vocoder: "streaming" (sound while tokens are made) or "whole" (after the last one, with full attention).
        vocoder_context_s: seconds of sound the streaming flow attends to; None is all of it, exact, and grows.

    Raises:
        BundleError, RuntimeUnavailableError, Error: what cannot be used, and what to do.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | Bundle | None = None,
        *,
        runtime: str = "auto",
        device_id: int = 0,
        threads: int | None = None,
        system: str | None = None,
        voice: str | Array | None = None,
        tools: Sequence[Any] = (),
        tool_timeout_s: float | None = 30.0,
        speech: bool = True,
        generation: GenerationConfig | None = None,
        context_tokens: int = 2048,
        on_full: str = "drop",
        long_audio: LongAudio = "full",
        vocoder: str = "streaming",
        vocoder_context_s: float | None = 6.0,
    ) -> None:
        check_choice("on_full", on_full, ("drop", "error"))
        check_choice("vocoder", vocoder, ("streaming", "whole"))
        self._long_audio = check_choice("long_audio", long_audio, ("full", "upstream"))
        self._system = None if system is None else check_text("system", system)
        self.speech = speech = check_flag("speech", speech)
        context_tokens = check_whole(
            "context_tokens", context_tokens, 16, 1 << 31, "an integer of at least 16, below 2**31"
        )
        self._tools, self._tool_worker = make_tools(tools), ToolWorker(tool_timeout_s)
        generation = None if generation is None else _check_generation(generation)
        self._owns_bundle = not isinstance(bundle, Bundle)
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self._model = _language_model(self.bundle, speech)
        self._generation = GenerationConfig.of_bundle(self.bundle) if generation is None else generation
        self._runtime = self.bundle.runtime(runtime, device_id=device_id, threads=threads)
        self._tokenizer = self.bundle.shared("tokenizer", partial(_read_tokenizer, self.bundle))
        template = self.bundle.shared("template", partial(_read_template, self.bundle, self._tokenizer, self._model))
        default = SYSTEM_SPEECH if speech else SYSTEM_TEXT
        self._conversation = Conversation(
            template,
            system_message(default if system is None else system, [t.schema for t in self._tools]),
            capacity=context_tokens,
            reserve=min(self._generation.max_new_tokens, context_tokens // RESERVE_SHARE),
            drop=on_full == "drop",
        )
        self._encoder = Encoder(self._runtime, self._model)
        self._context = Context(self._runtime, self._model, context_tokens, speech=speech)
        self._vocoder = self._open_vocoder(voice, vocoder, vocoder_context_s, runtime, device_id, threads)
        self._check_config(self._generation)
        self._floor = Floor()
        self._generations = 0  # counts what was generated, for the random numbers

    # -- asking

    def send(
        self,
        audio: Any = None,
        text: str | None = None,
        *,
        sample_rate: int | None = None,
        generation: GenerationConfig | None = None,
    ) -> Reply:
        """Ask, and wait for the whole reply.

        Args:
            audio: a path, an open binary file, encoded bytes, or an array with `sample_rate` (16000 if not given).
            text: what is asked, or what accompanies the audio. Special tokens in it are plain text.
            generation: settings for this reply alone.
            With neither audio nor text the last turn is answered (after `add("tool", ...)`, say).

        Raises:
            AudioError, ContextFullError, BusyError, Error: nothing was changed, and the chat can go on.
        """
        events = None
        try:  # not `with`: Ctrl-C may raise while it is entered
            events = self.stream(audio, text, sample_rate=sample_rate, generation=generation)
            for _ in events:
                pass
        finally:
            if events is not None:
                events.close()
        if events.reply is None:
            raise Error("the reply ended without a result")  # the stream raises before this can happen
        return events.reply

    def stream(
        self,
        audio: Any = None,
        text: str | None = None,
        *,
        sample_rate: int | None = None,
        generation: GenerationConfig | None = None,
    ) -> ReplyStream:
        """Ask, and iterate over TextDelta, AudioChunk, ToolCall as they are made, and Done.

        The question is read, encoded and checked before this returns. Leaving the loop early interrupts the reply.
        Arguments and errors as for `send`.
        """
        asked_at = time.perf_counter()
        text = "" if text is None else check_text("text", text)

        def ask() -> HistoryTurn | None:
            if audio is None and not text:
                return None
            return HistoryTurn("user", text=text, clip=None if audio is None else self._encode(audio, sample_rate))

        claim = object()
        try:
            self._floor.claim(claim)
            return self._answer(claim, ask, asked_at, 0.0, generation)
        except BaseException:
            self._floor.withdraw(claim)
            raise

    async def astream(self, audio: Any = None, text: str | None = None, **options: Any) -> AsyncIterator[Event]:
        """`stream` for asyncio: waits in a thread, so the loop goes on. Cancelling it interrupts the reply."""
        opening = asyncio.ensure_future(asyncio.to_thread(lambda: self.stream(audio, text, **options)))
        try:
            events = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_interrupt_opened)  # the thread goes on, and nobody will take what it opens
            raise
        try:
            while (event := await asyncio.to_thread(next, events, None)) is not None:
                yield event
        finally:
            events.interrupt()  # now, so that a thread which waits for an event becomes free
            await asyncio.shield(asyncio.to_thread(events.close))

    def begin_turn(self, sample_rate: int = 16000) -> Turn:
        """Start a turn whose sound is still arriving: `feed` it, then `finish` or `cancel`.

        Raises:
            AudioError: a sample rate outside 8000 to 192000 Hz.
            BusyError: a reply is being made, or another turn is open.
        """
        claim = object()
        try:
            self._floor.claim(claim)
            return Turn(
                ClipEncoder(self._encoder, self._model, self._long_audio),
                StreamResampler(sample_rate, self._model.mel.sample_rate),
                self._conversation,
                self._context,
                partial(self._answer, claim),
                self._put,
                partial(self._floor.withdraw, claim),
                partial(self._floor.check_word, claim),
            )
        except BaseException:
            self._floor.release(claim)
            raise

    def add(self, role: str, text: str | None = None, audio: Any = None, *, sample_rate: int | None = None) -> None:
        """Put a turn into the history without generating.

        Args:
            role: "user", "assistant", or "tool" (text is then a function's result).
        """
        check_choice("role", role, ROLES)
        text = None if text is None else check_text("text", text)
        if audio is not None and role != "user":
            raise Error(f"a turn of role '{role}' has text only, found audio")
        if audio is None and text is None:
            raise Error("nothing to add: give text=, audio=, or both")
        with self._floor.claimed():
            clip = None if audio is None else self._encode(audio, sample_rate)
            self._put(HistoryTurn(role, text=text or "", clip=clip))

    def interrupt(self, played_ms: float | None = None) -> None:
        """End the reply that is being made, from any thread, within one step. Does nothing when idle.

        Args:
            played_ms: how much of its sound was played: the history keeps the text up to there, also when all of it was
                delivered already, until the next question is asked. None keeps all that was delivered.
        """
        self._floor.current.interrupt(None if played_ms is None else check_played(played_ms))

    def encode(self, audio: Any, sample_rate: int | None = None) -> Array:
        """What the backbone would get for this audio, float32 [placeholders, hidden]. Changes nothing."""
        self._floor.check_open()
        return self._encode(audio, sample_rate).rows

    def configure(
        self,
        *,
        system: str | None = None,
        voice: str | Array | None = None,
        tools: Sequence[Any] = (),
        trusted: bool = True,
    ) -> None:
        """Another system prompt, voice and set of tools from the next question on, as for Chat. The history stays.

        Args:
            trusted: False if these words are not the developer's own: nothing in them can name a special token.
        Raises:
            BundleError, BusyError, Error: nothing was changed.
        """
        system = None if system is None else check_text("system", system)
        made = make_tools(tools)
        default = SYSTEM_SPEECH if self.speech else SYSTEM_TEXT
        message = system_message(default if system is None else system, [t.schema for t in made], trusted=trusted)
        if self._vocoder is None and voice is not None:
            raise Error(f"voice={voice!r} was asked for, but this Chat makes no sound")
        with self._floor.claimed():
            self._vocoder = None if self._vocoder is None else self._vocoder.with_voice(voice)
            self._system, self._tools, self._conversation.system = system, made, message

    def run(self, link: AudioLink | None = None, **options: Any) -> None:
        """Talk: listen to the microphone, answer through the speaker, be interrupted, until Ctrl-C.

        Args:
            link: where sound comes from and goes to; None is this machine's sound card (extra `audio`).
            options: as for `edge_sdk.Assistant`, which also has `stop` and a key for push to talk.

        Raises:
            DeviceError: there is no device, or it cannot be opened; says which there are.
            BusyError, Error, RuntimeUnavailableError: what cannot be used, and what to do.
        """
        from edge_sdk.assistant import Assistant

        if link is not None:
            Assistant(self, link, **options).run()
            return
        from edge_sdk.sound_card import SoundCard

        card = SoundCard()
        try:
            Assistant(self, card, **options).run()
        finally:
            card.close()

    # -- state

    @property
    def turns(self) -> tuple[HistoryTurn, ...]:
        """The history as `edit` takes it: values that never change, with the encoder's rows of what was heard."""
        return tuple(self._conversation.turns)

    def edit(self, turns: Sequence[HistoryTurn]) -> None:
        """Make `turns` the history: fewer, cut or other ones, of this Chat or of another one with the same bundle.

        Both caches keep what the next prompt has in common with the last one; the rest is computed with the question.
        """
        with self._floor.claimed(), self._floor.current.lock:
            self._conversation.turns = list(turns)
            self._floor.current.settle()

    @property
    def history(self) -> list[dict[str, Any]]:
        """The turns so far: {"role", "text", "audio_s", "tool_calls"}."""
        return [turn.record() for turn in self._conversation.turns]

    @property
    def generation(self) -> GenerationConfig:
        """How replies are made where nothing else is said: `chat.generation.replace(seed=1)` changes one thing."""
        return self._generation

    @property
    def context_left(self) -> int:
        """Positions free after the history as it would be prefilled now."""
        return max(0, self._context.capacity - len(self._conversation.render()))

    @property
    def sample_rate(self) -> int:
        """Of the replies' sound, Hz; 0 without a vocoder."""
        return self._vocoder.sample_rate if self._vocoder else 0

    @property
    def step_ms(self) -> float:
        """Sound that one decode step makes, and one text id stands for: 200 ms in the released model."""
        return self._model.step_ms

    @property
    def group_size(self) -> int:
        """Speech ids that one decode step makes: 5 in the released model."""
        return self._model.group_size

    def reset(self) -> None:
        """Forget the conversation, caches included. The system prompt stays."""
        with self._floor.claimed():
            with self._floor.current.lock:
                self._conversation.turns = []
                self._floor.current.settle()
            self._context.reset()
            self._generations = 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation to a file (arrays and JSON, stamped with the bundle's hash). No recording is in it,
        only the encoder's rows."""
        with self._floor.claimed():
            save_session(
                path, self.bundle, self._conversation.turns, generations=self._generations,
                options={"system": self._system, "speech": self.speech},
            )  # fmt: skip

    @classmethod
    def restore(
        cls, bundle: str | os.PathLike[str] | Bundle | None, path: str | os.PathLike[str], **as_chat: Any
    ) -> Chat:
        """A Chat that goes on where `save` left off, token for token.

        Args:
            as_chat: as for Chat. system and speech come from the file unless given; tools must be given again.
        Raises:
            BundleError: the session belongs to another bundle.
            Error: the file is not a session, damaged, or of a newer format.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        try:
            session = load_session(path, opened)
            chat = cls(opened, **{**session.options, **as_chat})
        except BaseException:
            if opened is not bundle:
                opened.close()
            raise
        chat._owns_bundle = opened is not bundle
        chat._conversation.turns = session.turns
        chat._generations = session.generations
        return chat

    def close(self) -> None:
        """End a reply that is being made and let go of caches and, if the Chat opened it, the bundle."""
        if self._floor.close() and self._owns_bundle:
            self.bundle.close()

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- inside

    def _put(self, turn: HistoryTurn) -> None:
        """Append to the history. The chat is claimed already."""
        with self._floor.current.lock:
            self._conversation.commit(self._conversation.fit([*self._conversation.turns, turn])[0])
            self._floor.current.settle()

    def _encode(self, audio: Any, sample_rate: int | None) -> Clip:
        clip = ClipEncoder(self._encoder, self._model, self._long_audio)
        clip.feed(load_audio(audio, sample_rate, to_rate=self._model.mel.sample_rate))
        return clip.finish()

    def _answer(
        self,
        claim: object,
        ask: Callable[[], HistoryTurn | None],
        asked_at: float,
        encoded_s: float,
        generation: GenerationConfig | None,
    ) -> ReplyStream:
        """Read the question and start its reply. The chat is claimed already, and released by the reply's thread.

        Args:
            claim: by what.
            ask: makes the question's turn; None answers what the history ends with.
            asked_at: when the caller did.
            encoded_s: time that went into the question before.
        """
        config = self._generation if generation is None else self._check_config(_check_generation(generation))
        try:
            with self._floor.question(claim, CHANNEL_EVENTS) as (running, before):
                began = time.perf_counter()
                turn = ask()
                encoded_s += time.perf_counter() - began
                with before.lock:
                    kept, prompt = self._conversation.fit(self._turns_with(turn))
                    before.settle()
                stream = ReplyStream(running)
                self._start(running, Question(kept, prompt, asked_at, encoded_s), config)
            return stream
        except BaseException:  # Ctrl-C may come just behind the start
            self._floor.give_up(claim)
            raise

    def _turns_with(self, turn: HistoryTurn | None) -> list[HistoryTurn]:
        turns = list(self._conversation.turns)
        if turn is not None:
            return [*turns, turn]
        if not turns or turns[-1].role == "assistant":
            raise Error("nothing to answer: give audio=, text=, or both")
        return turns

    def _start(self, running: RunningReply, question: Question, config: GenerationConfig) -> None:
        maker = ReplyMaker(
            model=self._model,
            tokenizer=self._tokenizer,
            context=self._context,
            conversation=self._conversation,
            tools=self._tools,
            tool_worker=self._tool_worker,
            config=config,
            next_turn=self._next_generation,
            make_speaker=self._speaker_maker(config),
            sample_rate=self.sample_rate,
            question=question,
            running=running,
            release=partial(self._floor.release, running.claim),
        )
        self._floor.start(running, maker.run)

    def _check_config(self, config: GenerationConfig) -> GenerationConfig:
        """Against this bundle; the config has checked itself."""
        size = self._model.text_ids.vocab_size
        for word in config.bad_words:
            if not isinstance(word, str) and any(i >= size for i in word):
                raise Error(f"GenerationConfig: bad_words holds {tuple(word)}, outside the vocabulary of {size}")
        self._speaker_maker(config)
        return config

    def _next_generation(self) -> int:
        self._generations += 1
        return self._generations - 1

    def _speaker_maker(self, config: GenerationConfig) -> Any:
        if self._vocoder is None:
            return None
        vocoder = self._vocoder.with_settings(steps=config.vocoder_steps, cfg_rate=config.cfg_rate)
        return lambda emit: Speaker(vocoder, emit)

    def _open_vocoder(
        self,
        voice: str | Array | None,
        mode: str,
        context_s: float | None,
        runtime: str,
        device_id: int,
        threads: int | None,
    ) -> Vocoder | None:
        if not self.speech or self.bundle.manifest.vocoder is None:
            if voice is not None:
                why = "speech is off" if not self.speech else "the bundle has no vocoder"
                raise Error(f"voice={voice!r} was asked for, but {why}")
            return None
        from edge_sdk.vocoder import Vocoder

        return Vocoder(
            self.bundle, voice, mode=mode, context_s=context_s, runtime=runtime, device_id=device_id, threads=threads
        )


def _read_tokenizer(bundle: Bundle) -> Tokenizer:
    return Tokenizer(bundle.read_text(bundle.manifest.tokenizer))


def _read_template(bundle: Bundle, tokenizer: Tokenizer, model: ModelConfig) -> Template:
    return Template(bundle.read_text(bundle.manifest.chat_template), tokenizer, model)


def _language_model(bundle: Bundle, speech: bool) -> ModelConfig:
    model = bundle.manifest.model
    if model is None:
        raise BundleError(f"bundle '{bundle.path}' has only a vocoder; use edge_sdk.Vocoder with it")
    if speech and model.speech_head is None:
        raise BundleError(f"bundle '{bundle.path}' has no speech head: open it with speech=False")
    return model


def _check_generation(config: GenerationConfig) -> GenerationConfig:
    if not isinstance(config, GenerationConfig):
        raise Error(f"generation must be a GenerationConfig, found {type(config).__name__}")
    return config


def _interrupt_opened(opening: asyncio.Future[ReplyStream]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().interrupt()
