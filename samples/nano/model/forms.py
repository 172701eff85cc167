"""Words that begin alike: " Oslo" of a sentence and "Oslo" of a call are two ids, and nothing but their training says
that they are one word. Fresh embeddings are made to say it, so that what copies the one proposes the other too."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from edge_sdk.tokenizer import Tokenizer
from samples.nano.texts.train_tokenizer import read_tokenizer

_LEAST = 2  # letters: single ones stand for too much


def pairs(tokenizer: Tokenizer, count: int) -> list[tuple[int, int]]:
    """(id of a word without a space before it, id of the word with one), of the first `count` ids."""
    texts = {tokenizer.decode([i]): i for i in range(count)}
    return [
        (i, texts[f" {word}"])
        for word, i in texts.items()
        if len(word) >= _LEAST and word.isalpha() and f" {word}" in texts
    ]


@torch.no_grad()
def make_alike(embedding: Tensor, tokenizer: Path, count: int) -> None:
    """Change fresh rows of `embedding` [ids, width] in place: an id's without a space becomes half the other's, at its
    own length.

    Args:
        tokenizer: the checkpoint's folder.
        count: of its text tokens.
    """
    found = pairs(read_tokenizer(tokenizer), count)
    if not found:
        return
    plain, spaced = (torch.tensor(side) for side in zip(*found, strict=True))
    mixed = embedding[plain] + embedding[spaced]
    embedding[plain] = mixed * (embedding[plain].norm(dim=1) / mixed.norm(dim=1))[:, None]
