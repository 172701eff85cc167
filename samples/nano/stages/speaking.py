"""The run that pre-alignment and both stages of Core-Cocktail are: spoken questions, spoken replies, cross entropy."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from edge_sdk.errors import Error
from samples.nano.arguments import positions, share
from samples.nano.stages import hear
from samples.nano.stages import stage as stages
from samples.nano.stages.data import Corpus, Item, Shares, last_replies, speech_batches
from samples.nano.stages.drills import copies, figures, hear_items, read_items, words_of
from samples.nano.stages.loss import cross_entropy
from samples.nano.texts.store import read_dialogues, read_mixed


def add_arguments(parser: argparse.ArgumentParser, stage: stages.Stage) -> None:
    stages.add_arguments(parser, stage)
    stages.add_speech_arguments(parser)
    parser.add_argument("--text-share", type=share, default=0.0, help="of sequences that stay text alone")
    parser.add_argument("--typed-share", type=share, default=0.1, help="of spoken replies that answer text")
    parser.add_argument("--hear-share", type=share, default=0.0, help="of steps that write down what was said")
    parser.add_argument("--hear-two-share", type=share, default=0.0, help="of those, the ones that hear two at a time")
    parser.add_argument("--hear-dropout", type=share, default=0.0, help="of the values that the encoder makes of sound")
    parser.add_argument("--read-share", type=share, default=0.0, help="of steps that say what is written")
    parser.add_argument("--copy-share", type=share, default=0.0, help="of steps that copy ids drawn at random")
    parser.add_argument("--figures-share", type=share, default=0.0, help="of steps of numbers in words and figures")
    parser.add_argument(
        "--answer-share", type=share, default=0.0, help="of steps that answer in text alone, whole dialogues at once"
    )
    parser.add_argument("--answer-heard", type=share, default=0.5, help="of those dialogues, the ones that are heard")
    parser.add_argument(
        "--answer-texts", type=Path, metavar="DIR", help="more dialogues for those steps; they need not be rendered"
    )
    parser.add_argument(
        "--slip-share", type=share, default=0.0, help="of the codes before a pick that are others of the reply"
    )
    parser.add_argument(
        "--head-context",
        type=positions,
        help="prompt positions that a reply's speech head sees; few are quick (default: all, as on the device)",
    )
    parser.add_argument(
        "--head-sampled",
        type=positions,
        default=0,
        help="positions drawn from the rest of the prompt, to stand for all of it",
    )


def run(options: argparse.Namespace, stage: stages.Stage) -> int:
    shares = Shares(
        hear=options.hear_share,
        read=options.read_share,
        copy=options.copy_share,
        figures=options.figures_share,
        answer=options.answer_share,
        heard=options.answer_heard,
        text=options.text_share,
        typed=options.typed_share,
        both=options.hear_two_share,
        slips=options.slip_share,
    )
    # With room for rounding: 0.2 + 0.4 + 0.3 + 0.1 is more than 1.
    if shares.hear + shares.read + shares.copy + shares.figures + shares.answer > 1 + 1e-9:
        raise Error(f"the shares of drills and answers are no more than 1 together; found {shares}")
    if options.answer_texts and not shares.answer:
        raise Error("--answer-texts is for the steps of --answer-share, which is 0")
    if options.hear_two_share and not options.hear_share:
        raise Error("--hear-two-share is a share of --hear-share, which is 0")
    if options.hear_dropout == 1:
        raise Error("--hear-dropout 1 leaves nothing to hear")
    if options.backbone_rate != 1 and stage.trains == stages.ADAPTER_AND_HEAD:
        raise Error("--backbone-rate: in pre-alignment the backbone does not move")
    if options.encoder == "last" and stage.trains == stages.ADAPTER_AND_HEAD:
        raise Error("--encoder last: in pre-alignment the encoder does not move")
    if options.head_sampled and options.head_context is None:
        raise Error("--head-sampled means something beside --head-context alone: without it the head sees all")
    loaded = stages.open_source(options, stage)
    loaded.model.hear_dropout = options.hear_dropout
    corpus = stages.corpus_of(options, loaded, ("train",), stages.sounds_of(options), stages.layout_of(options))
    frozen = stage.trains == stages.ADAPTER_AND_HEAD
    if options.encoder != "train" or frozen:
        last = options.encoder != "last" or frozen
        hear.use(corpus, options.work / hear.HEARD, loaded.model, last=last)
    if options.hear_two_share and not corpus.mels:
        raise Error(
            "--hear-two-share joins what was heard before: run python -m samples.nano hear, give --encoder keep or last"
        )
    more = read_mixed(options.texts or options.work / "texts")
    batches = speech_batches(
        corpus,
        stages.batch_of(options, stage),
        stages.seed_of(options),
        shares,
        hear_items(corpus, more) if shares.hear else (),
        read_items(corpus, more) if shares.read else (),
        partial(copies, words_of(corpus)),
        partial(figures, corpus.prompter),
        more_answers(options, corpus),
    )
    loss = partial(
        cross_entropy,
        speech_share=options.speech_share,
        head_context=options.head_context,
        head_sampled=options.head_sampled,
    )
    return stages.train(options, stage, loaded, batches, loss)


def more_answers(options: argparse.Namespace, corpus: Corpus) -> list[Item]:
    """Dialogues beside the corpus, each to the last of its replies whose prompt is not too long."""
    if not options.answer_texts:
        return []
    found = read_dialogues(options.answer_texts / "train.jsonl")
    return last_replies(Corpus(corpus.prompter, found, None, corpus.layout, options.longest).items)
