"""Text <-> ids. Only the prompt's own frame may name special tokens; what people say never becomes one.

A checkpoint's tokenizer.json splits text at its added tokens before anything else. Here that split happens on the
rendered prompt with every untrusted piece disarmed, and the runs between are encoded by the same tokenizer without its
added tokens, so that byte pairs still merge across the border of template and content exactly as upstream's do.
"""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from edge_sdk.errors import BundleError, Error

_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class Tokenizer:
    """A byte-level BPE tokenizer.json (Qwen's kind)."""

    def __init__(self, definition: str, where: str = "tokenizer.json") -> None:
        from tokenizers import Tokenizer as FastTokenizer

        try:
            value = json.loads(definition)
            added = value["added_tokens"]
            self.added_ids: dict[str, int] = {t["content"]: t["id"] for t in added}
            self.special_ids: frozenset[int] = frozenset(t["id"] for t in added if t["special"])
            _check_kind(value, added, where)
            plain = FastTokenizer.from_str(json.dumps({**value, "added_tokens": []}))
        except BundleError:
            raise
        except Exception as e:  # the library raises a bare Exception
            raise BundleError(f"'{where}' is not a usable tokenizer.json: {e}") from e
        self._encode = plain.encode
        vocabulary: dict[str, int] = plain.get_vocab(with_added_tokens=False)
        to_byte = _byte_of_char()
        self._bytes: dict[int, bytes] = {
            i: bytes(to_byte[c] for c in token) if all(c in to_byte for c in token) else token.encode()
            for token, i in vocabulary.items()
        }
        self._bytes.update({i: content.encode() for content, i in self.added_ids.items()})
        self.vocab_size = max(self._bytes) + 1
        # Longest first: where two added tokens begin at one place, the tokenizer takes the longer.
        names = sorted(self.added_ids, key=len, reverse=True)
        self._added = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._openers = {name[0] for name in names}

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text in which nothing is special."""
        return list(self._encode(text, add_special_tokens=False).ids)

    def encode(self, text: str, disarmed: str = "") -> list[int]:
        """Ids of a rendered prompt: added tokens in it count, unless `disarm` took them out of untrusted pieces.

        Args:
            disarmed: the map made by `guard_for`, as its characters: position n stands for the n-th opener.
        """
        back = str.maketrans(dict(zip(disarmed, sorted(self._openers), strict=True))) if disarmed else {}
        ids: list[int] = []
        at = 0
        for match in self._added.finditer(text):
            ids += self._run(text[at : match.start()], back)
            ids.append(self.added_ids[match.group()])
            at = match.end()
        return ids + self._run(text[at:], back)

    def _run(self, text: str, back: dict[int, Any]) -> list[int]:
        return self.encode_plain(text.translate(back)) if text else []

    def guard_for(self, texts: Iterable[str]) -> str:
        """Private-use characters that occur in none of `texts`, one for each character an added token begins with."""
        used = set().union(*map(set, texts))
        free = (chr(c) for c in itertools.chain(*_PRIVATE_USE) if chr(c) not in used)
        guard = "".join(itertools.islice(free, len(self._openers)))
        if len(guard) < len(self._openers):
            raise Error("a conversation uses every private-use character; no special token can be told apart")
        return guard

    def disarm(self, text: str, guard: str) -> str:
        """Replace each character that could begin an added token, so that none can form; `encode` puts it back."""
        away: dict[str, str | int | None] = dict(zip(sorted(self._openers), guard, strict=True))
        return text.translate(str.maketrans(away))

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD, ids without a token become nothing."""
        stream = TextStream(self, skip_special=skip_special)
        return "".join(stream.push(i) for i in ids) + stream.finish()

    def token_bytes(self, token: int) -> bytes:
        return self._bytes.get(token, b"")


class TextStream:
    """Decodes ids as they come; a character that is half received waits for its other bytes."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        if self._skip and token in self._tokenizer.special_ids:
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


def _check_kind(value: dict[str, Any], added: list[dict[str, Any]], where: str) -> None:
    if value.get("model", {}).get("type") != "BPE" or (value.get("decoder") or {}).get("type") != "ByteLevel":
        raise BundleError(f"'{where}' is not a byte-level BPE tokenizer, the only kind supported")
    odd = [
        t["content"] for t in added if t.get("lstrip") or t.get("rstrip") or t.get("single_word") or not t["content"]
    ]
    if odd:
        raise BundleError(f"'{where}': added tokens {odd} strip spaces or match whole words, which is not supported")


@lru_cache
def _byte_of_char() -> dict[str, int]:
    """The printable alphabet of byte-level BPE (GPT-2): printable Latin-1 stands for itself, the rest is moved up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(rest)}
