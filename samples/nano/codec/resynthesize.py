"""Says held-out replies through each part of the codec, writes them as WAV, and lets Whisper tiny.en read them.

    sound      the synthesizer's own
    mel        its mel
    decoder    codes, then the tokenizer's decoder's mel
    flow       codes, then the flow's mel as the device samples it, streaming and whole

Each mel is made sound by Griffin-Lim, which needs no training (_gl), and by the waveform part with the f0 that it
predicts. A chain whose parts are not trained is left out. Word errors count against what Whisper reads in the sound
itself: what the synthesizer says badly does not count, and is shown by the first line, which is against the text.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from edge_sdk.errors import Error
from edge_sdk.export.noise import initial_noise
from samples.nano.codec.checkpoint import speaker
from samples.nano.codec.encode import load_tokenizer
from samples.nano.codec.flow import Flow
from samples.nano.codec.flow_loss import seen
from samples.nano.codec.folders import CODEC, FLOW, WAVEFORM
from samples.nano.codec.griffin_lim import griffin_lim
from samples.nano.codec.mel import vocoder_mel
from samples.nano.codec.speech import HELD_OUT, Utterance, replies
from samples.nano.codec.tokenizer import MODEL_NAME
from samples.nano.codec.waveform import Waveform
from samples.nano.codec.write_vocoder import load_flow, load_waveform
from samples.nano.settings import FLOW_STEPS, Settings
from samples.nano.voices.judge import Errors, Judge, word_errors

SOUND = "sound"

Array = np.ndarray[Any, Any]
Chain = Callable[[Utterance], Array]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=20, help="replies (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=FLOW_STEPS, help="of the flow (default: %(default)s, the device's)"
    )
    parser.add_argument("--out", type=Path, help="folder of the WAV files (default: resynthesized in the work folder)")
    parser.add_argument("--no-asr", action="store_true", help="write the files, read nothing")


def run(options: argparse.Namespace) -> int:
    settings: Settings = options.settings
    for name in ("count", "steps"):
        if getattr(options, name) < 1:
            raise Error(f"--{name} must be at least 1, found {getattr(options, name)}")
    utterances = list(islice((u for u in replies(options.work, settings.sound) if u.split == HELD_OUT), options.count))
    if not utterances:
        raise Error("no held-out reply is rendered: run python -m samples.nano render first")
    found = chains(options.work, settings, options.steps)
    folder = options.out or options.work / "resynthesized"
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        sounds = {name: [chain(u) for u in utterances] for name, chain in found.items()}
    for name, made in sounds.items():
        for number, pcm in enumerate(made):
            soundfile.write(folder / f"{number:03}_{name}.wav", pcm, settings.sound.output_rate_hz)
    print(f"{len(utterances)} replies each by {', '.join(sounds)} in '{folder}'")
    if not options.no_asr:
        report(sounds, [u.text for u in utterances], settings.sound.output_rate_hz)
    return 0


def report(sounds: dict[str, list[Array]], texts: Sequence[str], rate_hz: int) -> None:
    judge = Judge()
    heard = {name: [judge.hear(pcm, rate_hz) for pcm in made] for name, made in sounds.items()}
    for name, found in heard.items():
        expected, what = (texts, "the texts") if name == SOUND else (heard[SOUND], "the sound")
        errors = sum(map(word_errors, expected, found), Errors(0, 0))
        print(f"{name:<20}{errors.rate:7.1%}  {errors.errors} of {errors.words} words against {what}")


def chains(work: Path, settings: Settings, steps: int = FLOW_STEPS) -> dict[str, Chain]:
    """What can be said with what is trained."""
    sound = settings.sound
    mel_of: dict[str, Callable[[Utterance], Tensor]] = {
        "mel": lambda u: vocoder_mel(torch.from_numpy(u.pcm.astype(np.float32))[None], sound)
    }
    if (work / CODEC / f"{MODEL_NAME}.json").is_file():
        tokenizer = load_tokenizer(work, settings)

        def codes(u: Utterance) -> Tensor:
            return torch.from_numpy(tokenizer.codes(u.pcm, u.f0_hz))[None]

        mel_of["decoder"] = lambda u: tokenizer.decode(tokenizer.quantizer.decode(codes(u)))[0]
        if (work / FLOW / f"{FLOW}.json").is_file():
            flow, voice = load_flow(work, settings), torch.from_numpy(speaker(settings, work / FLOW))[None]
            mel_of["flow_streaming"] = lambda u: flow_mel(flow, voice, codes(u), steps, masked=True)
            mel_of["flow_whole"] = lambda u: flow_mel(flow, voice, codes(u), steps, masked=False)

    vocoders: dict[str, Callable[[Tensor], Array]] = {"_gl": lambda mel: griffin_lim(mel[0], sound).numpy()}
    if (work / WAVEFORM / f"{WAVEFORM}.json").is_file():
        waveform = load_waveform(work, settings)
        vocoders[""] = lambda mel: speak_mel(waveform, mel)

    def said(name: str, vocoder: str) -> Chain:
        return lambda u: vocoders[vocoder](mel_of[name](u))

    made = {f"{name}{vocoder}": said(name, vocoder) for name in mel_of for vocoder in vocoders}
    return {SOUND: lambda u: u.pcm, **made}


def speak_mel(waveform: Waveform, mel: Tensor) -> Array:
    """mel [1, n_mels, L] -> PCM float32, with the predicted f0, as the device does (but for float64 in f0)."""
    c = waveform.config
    torch.manual_seed(0)
    noise = torch.rand(1, mel.shape[2] * c.samples_per_frame, c.harmonics + 1)
    found: Array = waveform(mel, waveform.f0(mel), noise)[0].numpy()
    return found


def flow_mel(model: Flow, voice: Tensor, codes: Tensor, steps: int, *, masked: bool) -> Tensor:
    """codes [1, T], voice [1, speaker_dim] -> mel [1, n_mels, 2T], from the fixed noise, all of the context kept."""
    c = model.config
    mu = model.tokens(torch.cat([codes, torch.full((1, c.lookahead_tokens), c.codebook_size)], dim=1))
    noise = torch.from_numpy(initial_noise(c.n_mels, mu.shape[1]).T.copy())[None]
    mask = seen(torch.ones(mu.shape[:2], dtype=torch.bool), c.chunk_frames) if masked else None
    return model.sample(mu, model.speaker(voice), noise, steps=steps, cfg_rate=c.cfg_rate, mask=mask).transpose(1, 2)
