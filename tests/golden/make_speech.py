"""Selects from the reference fixtures what the language tests compare with.

    python tests/golden/make_speech.py FIXTURES

FIXTURES holds `drsr-tiny/` (a checkpoint with random weights and its `golden/` arrays, recorded from the reference
implementation). Arrays are copied without change; what no test reads is left out to keep the repository small.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
CHECKPOINT_FILES = (
    "added_tokens.json", "chat_template.jinja", "config.json", "generation_config.json", "merges.txt",
    "model.safetensors", "preprocessor_config.json", "processor_config.json", "special_tokens_map.json",
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "speech_tokenizer/tokenizer_config.json",
)  # fmt: skip
AUDIO_ARRAYS = ("tower_out", "grouped")
AUDIO_DETAIL = ("encoder_in", "pooled")  # of one clip
DETAILED_CLIP = "syn1p3"
LEFT_OUT = ("text_gap", "crq_gap", "prefill_inputs_embeds", "crq_post_top5_logits", "crq_post_top5_ids")


def main(fixtures: Path) -> None:
    source = fixtures / "drsr-tiny"
    for name in CHECKPOINT_FILES:
        target = HERE / "drsr-tiny" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target)
        target.chmod(0o644)
    golden = json.loads((source / "golden" / "golden.json").read_text())
    out = HERE / "speech"
    for clip, entry in golden["audio"].items():
        arrays = np.load(source / "golden" / entry["array_file"])
        names = AUDIO_ARRAYS + (AUDIO_DETAIL if clip == DETAILED_CLIP else ())
        np.savez_compressed(out / f"audio_{clip}.npz", **{n: arrays[n] for n in names})
    for case, entry in golden["cases"].items():
        arrays = np.load(source / "golden" / entry["array_file"])
        np.savez_compressed(out / f"{case}.npz", **{n: arrays[n] for n in arrays.files if n not in LEFT_OUT})
    kept = {"reference": golden["reference"], "audio": golden["audio"], "cases": golden["cases"]}
    (out / "golden.json").write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
