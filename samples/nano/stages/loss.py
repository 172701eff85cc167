"""What is minimised: cross entropy of text and speech, and the preference of one reply over another (DPO)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from samples.nano.model.batch import Batch, near_reply
from samples.nano.model.language import LanguageHalf


@dataclass(frozen=True)
class TokenScores:
    """Log probabilities of the targets that count, with what they count and whose they are. K of them."""

    log_probs: Tensor  # float32 [K]
    weights: Tensor  # float32 [K]
    sequence: Tensor  # int64 [K]
    right: Tensor  # bool [K]: the largest score is the target's

    def mean(self) -> Tensor:
        """Cross entropy in nats, weighted."""
        return -(self.log_probs * self.weights).sum() / self.weights.sum().clamp_min(1e-6)

    def share_right(self) -> Tensor:
        return self.right.float().mean()

    def by_sequence(self, count: int) -> Tensor:
        """Weighted sums [count]."""
        sums = torch.zeros(count, device=self.log_probs.device)
        return sums.index_add(0, self.sequence, self.log_probs * self.weights)


def score(
    model: LanguageHalf, batch: Batch, head_context: int | None = None, head_sampled: int = 0
) -> tuple[TokenScores, TokenScores | None]:
    """(text, speech) of one parallel pass; speech is None where nobody speaks.

    Args:
        head_context: prompt positions before each reply that the speech head sees. On the device it sees all (None);
            since it has G rows a position, they are most of what a step costs.
        head_sampled: of those before them so many, drawn at random, stand for all (`near_reply`).
    """
    hidden = model.hidden(batch)
    text = of_targets(model.text_logits, hidden, batch.text_target, batch.text_weight)
    if not batch.speech:
        return text, None
    places = None
    if head_context is not None:
        hidden, batch, places = near_reply(hidden, batch, head_context, head_sampled)
    rows = model.head_hidden(batch, hidden, places)
    return text, of_targets(model.speech_logits, rows, batch.speech_target, batch.speech_weight)


def of_targets(logits_of: object, rows: Tensor, targets: Tensor, weights: Tensor) -> TokenScores:
    """rows [B, T, width]; scores are made only where a target counts: a whole batch of them would not fit."""
    sequence, at = torch.nonzero(weights, as_tuple=True)
    logits = logits_of(rows[sequence, at]).float()  # type: ignore[operator]
    wanted = targets[sequence, at]
    log_probs = -functional.cross_entropy(logits, wanted, reduction="none")
    return TokenScores(log_probs, weights[sequence, at], sequence, logits.detach().argmax(dim=1) == wanted)


def text_cross_entropy(model: LanguageHalf, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """(what to minimise, numbers for the log): the text's alone; the speech head is left out."""
    text = of_targets(model.text_logits, model.hidden(batch), batch.text_target, batch.text_weight)
    return text.mean(), {"text_right": text.share_right()}


def cross_entropy(
    model: LanguageHalf,
    batch: Batch,
    speech_share: float = 1.0,
    head_context: int | None = None,
    head_sampled: int = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(what to minimise, numbers for the log): text + speech_share * speech. What the head sees: see `score`."""
    text, speech = score(model, batch, head_context, head_sampled)
    numbers = {"text": text.mean(), "text_right": text.share_right()}
    numbers["speech"] = torch.zeros_like(numbers["text"]) if speech is None else speech.mean()
    numbers["speech_right"] = torch.zeros_like(numbers["text"]) if speech is None else speech.share_right()
    return numbers["text"] + speech_share * numbers["speech"], numbers


def preference(
    model: LanguageHalf, batch: Batch, *, reference: LanguageHalf, beta: float, speech_share: float, sft_share: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """DPO over a batch whose even sequences are the chosen replies and whose odd ones are the rejected.

    A reply's log probability is the sum over its text ids and, times `speech_share`, over its speech ids. `sft_share`
    of the chosen replies' cross entropy keeps them likely: DPO alone only spreads the two apart.
    """
    count = len(batch.ids)
    mine, chosen = reply_scores(model, batch, count, speech_share)
    with torch.no_grad():
        theirs, _ = reply_scores(reference, batch, count, speech_share)
    gained = mine - theirs
    margin = beta * (gained[0::2] - gained[1::2])
    loss = -functional.logsigmoid(margin).mean() + sft_share * chosen
    return loss, {
        "margin": margin.mean(),
        "preferred": (margin > 0).float().mean(),
        "chosen": chosen,
    }


def reply_scores(model: LanguageHalf, batch: Batch, count: int, speech_share: float) -> tuple[Tensor, Tensor]:
    """(log probability of each reply [B], cross entropy of the chosen ones)."""
    text, speech = score(model, batch)
    total, chosen = text.by_sequence(count), of_even(text).mean()
    if speech is not None:
        total = total + speech_share * speech.by_sequence(count)
        chosen = chosen + speech_share * of_even(speech).mean()
    return total, chosen


def of_even(scores: TokenScores) -> TokenScores:
    even = scores.sequence % 2 == 0
    return TokenScores(scores.log_probs[even], scores.weights[even], scores.sequence[even], scores.right[even])
