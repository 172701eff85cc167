"""Encoder, grouping, backbone and speech head of one model, in the form that training needs: every step at once.

Attribute names are the checkpoint's tensor names, so `state_dict` is the checkpoint. What is computed is in
docs/computation.md; how ids and rows are shifted against each other is decided in `batch`, here they only flow.
"""

from __future__ import annotations

from torch import Tensor, nn

from edge_sdk.config import ModelConfig
from edge_sdk.errors import Error
from samples.nano.model.batch import Batch, Places
from samples.nano.model.encoder import Encoder
from samples.nano.model.layers import Stack


class Grouping(nn.Module):
    """25 Hz -> 5 Hz: the mean of G rows, then one linear. The codebook is the speech head's table too."""

    def __init__(self, codes: int, hidden: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(codes, hidden)
        self.output_matching = nn.Linear(hidden, hidden, bias=False)
        self.continual_output_matching = nn.Linear(hidden, hidden, bias=False)

    def group(self, ids: Tensor) -> Tensor:
        """Speech ids int64 [..., G] -> [..., hidden]."""
        return self.output_matching(self.embed_tokens(ids).mean(dim=-2))


class SpeechHead(nn.Module):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        if model.speech_head is None:
            raise Error("the checkpoint has no speech head; this recipe trains models that speak")
        hidden, width = model.backbone.hidden_size, model.speech_head.hidden_size
        self.size = model.group_size
        self.pre_matching = nn.Linear(hidden, self.size * hidden)
        self.input_matching = nn.Linear(hidden, width, bias=False)
        self.crq_transformer = Stack(model.speech_head)
        self.output_matching = nn.Linear(width, hidden, bias=False)

    def inputs(self, head_input: Tensor, previous: Tensor) -> Tensor:
        """head_input [B, T, hidden], embeddings of the ids before each pick [B, T * G, hidden] -> [B, T * G, width]."""
        positions = self.pre_matching(head_input).view(previous.shape)
        return self.input_matching(positions + previous)


class TextBackbone(Stack):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__(model.backbone)
        self.embed_tokens = nn.Embedding(model.text_ids.vocab_size, model.backbone.hidden_size)


class TextModel(nn.Module):
    def __init__(self, model: ModelConfig, tied: bool) -> None:
        super().__init__()
        self.model = TextBackbone(model)
        self.lm_head = nn.Linear(model.backbone.hidden_size, model.text_ids.vocab_size, bias=False)
        if tied:
            self.lm_head.weight = self.model.embed_tokens.weight


class LanguageHalf(nn.Module):
    """The language half of a checkpoint.

    Args:
        tied: the text head is the text embedding.
    """

    def __init__(self, model: ModelConfig, *, tied: bool = False) -> None:
        super().__init__()
        if model.audio_features_mode != "replace":
            raise Error(
                f"this recipe trains models whose audio replaces the placeholders; config.json says "
                f"'{model.audio_features_mode}' (continuous_features_mode)"
            )
        hidden = model.backbone.hidden_size
        self.config, self.tied = model, tied
        self.hear_dropout = 0.0  # of what the encoder makes, in training
        self.continuous_audio_tower = Encoder(model.encoder, hidden)
        self.audio_tower = Grouping(model.speech_ids.codebook_size, hidden)
        self.audio_invert_tower = SpeechHead(model)
        self.language_model = TextModel(model, tied)

    def fuse(self) -> None:
        """Have what lies between the products of a layer compiled (torch.compile), when they are first used."""
        for part in self.modules():
            if isinstance(part, (Encoder, Stack)):
                part.fused = True

    # -- sound in

    def pooled(self, batch: Batch) -> Tensor:
        """25 Hz rows before ln_post [N, d_model] of all clips of the batch, one after another.

        Those that the batch brings along, or else the encoder's.
        """
        if batch.encoded.dim() == 3:
            return self.continuous_audio_tower.last_layer(batch.encoded, batch.windows)
        if len(batch.encoded):
            return batch.encoded
        rows = self.continuous_audio_tower.rows(batch.mel, batch.mel_frames).flatten(0, 1)
        return rows[batch.pairs].mean(dim=1)

    def audio_rows(self, batch: Batch) -> Tensor:
        """What takes the placeholders' place [A, hidden]. Filler counts in the mean as zero rows."""
        pooled = nn.functional.dropout(self.pooled(batch), self.hear_dropout, self.training)
        tower = self.continuous_audio_tower.tower(pooled)
        padded = nn.functional.pad(tower, (0, 0, 0, 1))  # the row after the last is zero: filler points at it
        return self.audio_tower.continual_output_matching(padded[batch.audio_groups].mean(dim=1))

    # -- backbone

    def embed(self, ids: Tensor) -> Tensor:
        return self.language_model.model.embed_tokens(ids)

    def input_rows(self, batch: Batch) -> Tensor:
        """[B, T, hidden]: text embeddings, audio rows at the placeholders, and the mean of text and group embedding
        where the step before made a group."""
        rows = self.embed(batch.ids)
        if batch.speech:
            grouped = (rows + self.audio_tower.group(batch.groups)) / 2
            rows = grouped.where(batch.mixed[..., None], rows)
        if len(batch.audio_at):
            flat = rows.flatten(0, 1).clone()
            flat[batch.audio_at] = self.audio_rows(batch).to(flat.dtype)
            rows = flat.view(rows.shape)
        return rows

    def hidden(self, batch: Batch) -> Tensor:
        """[B, T, hidden] after the backbone's final norm."""
        return self.language_model.model(self.input_rows(batch))

    def text_logits(self, hidden: Tensor) -> Tensor:
        return self.language_model.lm_head(hidden)

    # -- speech head

    def head_rows(self, batch: Batch, hidden: Tensor) -> Tensor:
        """Rows that enter the head's transformer [B, T * G, width]."""
        previous = self.audio_tower.embed_tokens(batch.previous)
        return self.audio_invert_tower.inputs(hidden + self.embed(batch.ids), previous)

    def head_hidden(self, batch: Batch, hidden: Tensor, places: Places | None = None) -> Tensor:
        """[B, T * G, width] after the head's final norm. `places`: where the rows stand if they are not all there."""
        rows, stack = self.head_rows(batch, hidden), self.audio_invert_tower.crq_transformer
        return stack(rows) if places is None else stack(rows, places.positions, places.key_bias)

    def speech_logits(self, head_hidden: Tensor) -> Tensor:
        """[..., width] -> [..., codes]. The codebook is the table."""
        return self.audio_invert_tower.output_matching(head_hidden) @ self.audio_tower.embed_tokens.weight.T
