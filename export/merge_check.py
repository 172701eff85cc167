"""Whether two checkpoints can be merged: the same architecture, tensor for tensor and field for field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from edge_sdk.errors import CheckpointError
from edge_sdk.export.checkpoint import Checkpoint
from edge_sdk.export.weights import shared_tables

PIECE_VALUES = 1 << 18  # 1 MB as float32: what the processor caches hold; larger pieces were slower
_SHOWN = 50
# What a checkpoint may say about how it was written, and not about what it computes.
_NOT_COMPARED = ("torch_dtype", "dtype", "transformers_version", "_name_or_path", "use_cache", "processor_class")
_ABSENT = "absent"


def check_mergeable(a: Checkpoint, b: Checkpoint) -> None:
    """Raises one CheckpointError that names every difference which makes a mean of the two meaningless."""
    try:
        problems = [*_configs(a, b), *_tokenizers(a, b), *_tensors(a, b)]
    except RecursionError as e:
        raise CheckpointError(f"a configuration file of '{a.path}' or '{b.path}' is nested too deeply") from e
    if problems:
        shown = problems if len(problems) <= _SHOWN else [*problems[:_SHOWN], f"... and {len(problems) - _SHOWN} more"]
        raise CheckpointError(f"'{a.path}' and '{b.path}' cannot be merged:\n  " + "\n  ".join(shown))


def aliases(checkpoint: Checkpoint) -> dict[str, str]:
    """Tensors that are another one under a second name, by what the checkpoint says."""
    config = checkpoint.json("config.json")
    text = config.get("text_config")
    tied = (text if isinstance(text, dict) else {}).get("tie_word_embeddings", config.get("tie_word_embeddings"))
    return shared_tables(tied is True)


def counterpart(name: str, other: Checkpoint, tied: Mapping[str, str]) -> str | None:
    """The name under which `other` has a tensor."""
    return next((n for n in (name, tied.get(name)) if n is not None and n in other), None)


def _configs(a: Checkpoint, b: Checkpoint) -> Iterator[str]:
    yield from _fields("config.json", "", a.json("config.json"), b.json("config.json"))
    name = "preprocessor_config.json"
    first, second = a.json(name, required=False), b.json(name, required=False)
    if first and second:
        yield from _fields(name, "", first, second)


def _fields(file: str, prefix: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(set(a) | set(b)):
        x, y = a.get(key, _ABSENT), b.get(key, _ABSENT)
        if key in _NOT_COMPARED or x == y:
            continue
        if isinstance(x, dict) and isinstance(y, dict):
            yield from _fields(file, f"{prefix}{key}.", x, y)
        else:
            yield f"{file}: {prefix}{key} is {_short(x)} in the first, {_short(y)} in the second"


def _short(value: Any) -> str:
    text = value if value is _ABSENT else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _tokenizers(a: Checkpoint, b: Checkpoint) -> Iterator[str]:
    """The same ids must mean the same tokens; how the files are laid out does not matter."""
    name = "tokenizer.json"
    texts = a.text(name), b.text(name)
    if None not in texts and texts[0] != texts[1] and _token_ids(a.json(name)) != _token_ids(b.json(name)):
        yield f"{name}: ids mean other tokens in the second"


def _token_ids(tokenizer: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    tokens = added if isinstance(added, list) else []
    return vocabulary, [(t.get("id"), t.get("content")) for t in tokens if isinstance(t, dict)]


def _tensors(a: Checkpoint, b: Checkpoint) -> Iterator[str]:
    tied = aliases(a)
    for name in a:
        other = counterpart(name, b, tied)
        if other is None:
            yield f"only in the first: {name}"
        else:
            yield from _pair(a, name, b, other)
    for name in b:
        if counterpart(name, a, tied) is None:
            yield f"only in the second: {name}"
    for alias, name in tied.items():
        for checkpoint in (a, b):
            if alias in checkpoint and name in checkpoint and not _equal(checkpoint, alias, checkpoint, name):
                yield f"tied, but not equal in '{checkpoint.path}': {alias} and {name}"


def _pair(a: Checkpoint, name: str, b: Checkpoint, other: str) -> Iterator[str]:
    x, y = a.entry(name), b.entry(other)
    if x.shape != y.shape:
        yield f"wrong shape: {name} is {list(x.shape)} in the first, {list(y.shape)} in the second"
    elif x.is_float != y.is_float or (not x.is_float and x.dtype != y.dtype):
        yield f"wrong dtype: {name} is {x.dtype} in the first, {y.dtype} in the second"
    elif not x.is_float and not _equal(a, name, b, other):
        yield f"not equal: {name} is {x.dtype}, and there is no mean of whole numbers"


def _equal(a: Checkpoint, name: str, b: Checkpoint, other: str) -> bool:
    """Whether two tensors are the same bytes of the same type."""
    x, y = a.entry(name), b.entry(other)
    if (x.dtype, x.shape) != (y.dtype, y.shape):
        return False
    pairs = zip_longest(a.shard(name).pieces(name, PIECE_VALUES), b.shard(other).pieces(other, PIECE_VALUES))
    return all(p.tobytes() == q.tobytes() for p, q in pairs)
