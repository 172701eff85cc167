"""GenerationConfig, and the decode loop: one backbone step, G speech picks, one text pick, in upstream's order."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_sdk.backbone import Backbone, BackboneOutput
from edge_sdk.checks import check_cfg_rate, check_flag, check_number, check_text, check_whole
from edge_sdk.config import ModelConfig
from edge_sdk.errors import BundleError, Error
from edge_sdk.runtime import Array
from edge_sdk.sampling import History, Sampling, uniform
from edge_sdk.speech_head import SpeechHead

if TYPE_CHECKING:
    from edge_sdk.bundle import Bundle

SECTION = "edge_sdk"  # of a checkpoint's generation_config.json
_MOST = 1e6  # scores stay finite in float32, whatever is multiplied or divided by up to this
_FACTOR = f"a number from {1 / _MOST:g} to {_MOST:g}"


@dataclass(frozen=True)
class GenerationConfig:
    """How replies are made. The defaults are upstream's example settings; a bundle may bring its own.

    Args:
        max_new_tokens: text ids at most; with speech one id stands for one step (200 ms).
        do_sample: draw speech ids (and text ids, unless text_greedy) instead of taking the likeliest.
        temperature, top_p, top_k: act only with do_sample; temperature from 1e-6 to 1e6; top_k 0 is off.
        repetition_penalty: from 1e-6 to 1e6, 1.0 is off. Speech ids always go through it; text ids unless text_greedy.
        bad_words: sequences of text ids, or strings, that must not be generated. No effect with text_greedy.
        text_greedy: the text head takes the largest raw score, whatever the rest says.
        force_audio_bos: speech starts at once. Ignored where speech is off.
        seed: the same seed, bundle and conversation give the same reply; None draws one (see Timings.seed).
        vocoder_steps: Euler steps of the flow; one of the counts the bundle has tables for.
        cfg_rate: classifier-free guidance of the flow, at most 100; 0 is off. 0.7 is the released vocoder's. One whose
            own is 0 has none, whatever is said here.
    """

    max_new_tokens: int = 2048
    do_sample: bool = True
    temperature: float = 0.8
    top_p: float = 0.9
    top_k: int = 0
    repetition_penalty: float = 1.2
    bad_words: tuple[Sequence[int] | str, ...] = ()
    text_greedy: bool = True
    force_audio_bos: bool = True
    seed: int | None = None
    vocoder_steps: int = 10
    cfg_rate: float = 0.7

    def __post_init__(self) -> None:
        """Values of NumPy's types become Python's."""

        def keep(name: str, check: Callable[..., object], *bounds: object, want: str = "") -> None:
            says = {"want": want} if want else {}
            value = check(f"GenerationConfig: {name}", getattr(self, name), *bounds, **says)
            object.__setattr__(self, name, value)

        keep("max_new_tokens", check_whole, 1)
        keep("temperature", check_number, 1 / _MOST, _MOST, want=_FACTOR)
        keep("top_p", check_number, sys.float_info.min, 1.0, want="in (0, 1]")
        keep("top_k", check_whole, 0, want="an integer, 0 for off")
        keep("repetition_penalty", check_number, 1 / _MOST, _MOST, want=_FACTOR)
        keep("vocoder_steps", check_whole, 1)
        keep("cfg_rate", check_cfg_rate)
        for name in ("do_sample", "text_greedy", "force_audio_bos"):
            keep(name, check_flag)
        if self.seed is not None:
            keep("seed", check_whole, 0, 1 << 64, want="None or in [0, 2**64)")
        keep("bad_words", _check_words)

    def replace(self, **changes: object) -> GenerationConfig:
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> GenerationConfig:
        """What a bundle's replies are made with where nothing else is said: the section "edge_sdk" of its checkpoint's
        generation_config.json, over our defaults. The file's own keys are left alone: upstream's example overrides
        them, and so do we. The guidance that it does not tell is the vocoder's own (`inference_cfg_rate` of its YAML).

        Raises:
            BundleError: the section is not an object of our fields, or a value cannot be.
        """
        manifest = bundle.manifest
        defaults = {"cfg_rate": manifest.vocoder.flow.cfg_rate} if manifest.vocoder else {}
        return cls.of_section(manifest.generation, f"bundle '{bundle.path}'", defaults)

    @classmethod
    def of_section(
        cls, generation: Mapping[str, object], where: str, defaults: Mapping[str, object] = MappingProxyType({})
    ) -> GenerationConfig:
        """The same of the content of a generation_config.json; `where` is for messages, `defaults` come before ours."""
        section: Any = generation.get(SECTION, {})
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(section) - set(names)) if isinstance(section, Mapping) else [str(section)]
        if unknown:
            raise BundleError(
                f"{where}: '{SECTION}' of its generation settings holds {', '.join(unknown)}; it is an object of "
                f"{', '.join(names)}"
            )
        try:
            return cls(**{**defaults, **section})
        except Error as e:
            raise BundleError(f"{where}: '{SECTION}' of its generation settings cannot be used: {e}") from e


def _check_words(name: str, words: object) -> tuple[Sequence[int] | str, ...]:
    if not isinstance(words, (tuple, list)):
        raise Error(f"{name} must be a tuple of strings or of id sequences, found {words!r}")
    return tuple(_check_word(name, word) for word in words)


def _check_word(name: str, word: object) -> Sequence[int] | str:
    if isinstance(word, str):
        checked: Sequence[int] | str = check_text(name, word)
    elif isinstance(word, Iterable):
        checked = tuple(check_whole(f"an id in {name}", i, 0) for i in word)
    else:
        raise Error(f"{name} must hold strings or id sequences, found {word!r}")
    if not checked:
        raise Error(f"{name} holds an empty one, {word!r}; leave it out")
    return checked


@dataclass(frozen=True)
class Step:
    """One decode step's result. `group` is None where speech is not active."""

    index: int
    text_id: int
    group: Array | None  # int64 [G], whole groups, eos groups included
    finish_reason: str | None  # set on the last step: "stop", "length", "context"


@dataclass
class StepTimes:
    """Seconds of each step: in the backbone, in the speech head, and in all."""

    backbone_s: list[float] = field(default_factory=list)
    speech_head_s: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)


class Chooser:
    """Picks ids for one reply: scores, histories and random numbers."""

    def __init__(
        self,
        model: ModelConfig,
        config: GenerationConfig,
        *,
        prompt_ids: Sequence[int],
        bad_words: tuple[tuple[int, ...], ...],
        seed: int,
        turn: int,
    ) -> None:
        self.seed, self.turn, self._size = seed, turn, model.group_size
        common = {
            "do_sample": config.do_sample,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "top_k": config.top_k,
            "repetition_penalty": config.repetition_penalty,
        }
        self.speech = Sampling(**common)  # type: ignore[arg-type]
        self.text = None if config.text_greedy else Sampling(**common, bad_words=bad_words)  # type: ignore[arg-type]
        self.speech_history = History(model.speech_ids.codebook_size)
        self.text_history = History(model.text_ids.vocab_size, prompt_ids if self.text else ())
        self.text_ids: list[int] = list(prompt_ids)

    def speech_id(self, logits: Array, step: int, sub_step: int) -> int:
        forced = self.forced_speech(step)
        picked = self.speech.pick(logits, self.speech_history, self._number(step, sub_step, self.speech))
        taken = picked if forced is None else int(forced[sub_step])
        self.speech_history.add(taken)
        return taken

    def forced_speech(self, step: int) -> Array | None:
        """Speech ids int64 [G] that are taken whatever the scores say; for verification and benchmarks."""
        return None

    def took(self, step: int, ids: Array, logits: Array) -> None:
        """A kernel picked the group `ids` from scores float32 [G, codes], by this object's settings and history."""
        for picked in ids.tolist():
            self.speech_history.add(picked)

    def text_id(self, output: BackboneOutput, step: int) -> int:
        if self.text is None:
            return output.token
        number = self._number(step, self._size, self.text)
        return self.text.pick(output.logits, self.text_history, number, self.text_ids)

    def _number(self, step: int, sub_step: int, sampling: Sampling) -> float:
        return uniform(self.seed, self.turn, step, sub_step) if sampling.do_sample else 0.0


class GroupPicker:
    """One step's view of a Chooser, as the speech head asks for it."""

    def __init__(self, chooser: Chooser, step: int) -> None:
        self._chooser = chooser
        self.sampling, self.seed, self.turn, self.step = chooser.speech, chooser.seed, chooser.turn, step

    @property
    def seen(self) -> Array:
        return self._chooser.speech_history.seen

    @property
    def forced(self) -> Array | None:
        return self._chooser.forced_speech(self.step)

    def pick(self, logits: Array, sub_step: int) -> int:
        return self._chooser.speech_id(logits, self.step, sub_step)

    def took(self, ids: Array, logits: Array) -> None:
        self._chooser.took(self.step, ids, logits)


class Generator:
    """Makes one reply, step by step, after the prompt was prefilled."""

    def __init__(
        self,
        model: ModelConfig,
        backbone: Backbone,
        speech_head: SpeechHead | None,
        config: GenerationConfig,
        chooser: Chooser,
    ) -> None:
        self._model, self._backbone, self._head = model, backbone, speech_head
        self._config, self._chooser = config, chooser
        self.times = StepTimes()

    def steps(self, output: BackboneOutput) -> Iterator[Step]:
        """Yield steps until the reply ends. `output` is the prefill's; the caller may stop early at any step."""
        active, group, text_id = False, None, -1
        for index in range(self._config.max_new_tokens):
            began = time.perf_counter()
            if index:
                output = self._backbone.step(text_id, group if active else None)
                active = active or text_id == self._model.text_ids.audio_bos
            after_backbone = time.perf_counter()
            mark = self._chooser.speech_history.mark()
            picks = self._speak(output, index)
            after_head = time.perf_counter()
            text_id = self._text_id(output, index)
            reason = self._finish_reason(text_id, index)
            self._chooser.speech_history.rewind(mark)
            group = None
            if active and picks is not None:
                group, ended = self._returned(picks)
                if ended:
                    # The stop test came first, as upstream: a text eos in this step stops, and is returned overwritten.
                    active, text_id = False, self._model.text_ids.audio_eos
                for speech_id in group:
                    self._chooser.speech_history.add(int(speech_id))
            self._note(text_id)
            self._clock(began, after_backbone, after_head)
            yield Step(index, text_id, group, reason)
            if reason:
                return

    def _speak(self, output: BackboneOutput, step: int) -> Array | None:
        """The head runs on every step once speech is enabled: before audio_bos and after audio_eos too its picks go
        into its cache and carry over (fixtures rule 32)."""
        if self._head is None:
            return None
        picker = GroupPicker(self._chooser, step)
        return self._head.start(picker) if step == 0 else self._head.step(output.head_input, picker)

    def _text_id(self, output: BackboneOutput, step: int) -> int:
        picked = self._chooser.text_id(output, step)
        if step == 0 and self._config.force_audio_bos and self._head is not None:
            return self._model.text_ids.audio_bos
        return picked

    def _finish_reason(self, text_id: int, step: int) -> str | None:
        if text_id in self._model.text_ids.eos:
            return "stop"
        if step + 1 == self._config.max_new_tokens:
            return "length"
        if self._backbone.cache.length == self._backbone.cache.capacity:
            return "context"
        return None

    def _returned(self, picks: Array) -> tuple[Array, bool]:
        """A group in which any pick is the codec's eos is returned as eos throughout."""
        eos = self._model.speech_ids.eos
        ended = bool((picks == eos).any())
        return (np.full_like(picks, eos) if ended else picks), ended

    def _note(self, text_id: int) -> None:
        self._chooser.text_ids.append(text_id)
        if self._chooser.text is not None:
            self._chooser.text_history.add(text_id)

    def _clock(self, began: float, after_backbone: float, after_head: float) -> None:
        self.times.backbone_s.append(after_backbone - began)
        self.times.speech_head_s.append(after_head - after_backbone)
        self.times.step_s.append(time.perf_counter() - began)
