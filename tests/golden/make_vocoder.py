"""Selects from the reference fixtures what the vocoder tests compare with.

    python tests/golden/make_vocoder.py FIXTURES

FIXTURES holds `vocoder-tiny/` (a vocoder folder with random weights and its `golden/` arrays, recorded from the
reference implementation) and `voices/`. Values are copied without change; of long arrays every n-th value of the last
axis is kept, n in `golden.json` under `strides`, to keep the repository small.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent / "vocoder"
FOLDER_FILES = ("cosyvoice3.yaml", "flow.safetensors", "hift.safetensors")
WHOLE = {
    "offline_40": (
        "tokens", "spk_proj", "lookahead_out", "t_used", "step0_estimator_out", "step9_x_in", "step9_estimator_out",
        "step0_time_embedding", "step9_time_embedding", "step0_input_embed_out", "step0_block0_out",
        "step0_last_block_out", "step0_norm_out", "mel", "mel_chunkmask", "f0", "uv", "sine_per_frame", "conv_pre_out",
    ),
    "offline_137": ("tokens", "f0", "mel"),
    "chunkmask_stream_137": ("tokens",),
    "fac_stream_40": ("tokens", "chunk0_mel", "chunk1_mel", "chunk2_mel"),
    "fac_stream_137": ("tokens",),
    "fac_stream_long_650": ("tokens",),
    "offline_long_790": ("tokens", "segment_lengths"),
}  # fmt: skip
STRIDES = {
    "offline_40": {
        "x_after_each_step": 8, "source": 8, "source_stft": 8, "ups0_out": 4, "ups1_out": 8, "ups2_out": 16,
        "source_branch0_out": 4, "conv_post_out": 16, "wav": 2,
    },
    "offline_137": {"mel_chunkmask": 2, "wav": 8},
    "chunkmask_stream_137": {"chunk5_mel": 2, "wav": 8},
    "fac_stream_40": {"wav": 8},
    "fac_stream_137": {"chunk8_mel": 4, "wav": 16},
    "fac_stream_long_650": {"new_mel": 10},
    "offline_long_790": {"mel": 10},
    "rand_noise": {"rand_noise": 25},
}  # fmt: skip
KEPT = ("constants", "noise", "numerical_floor", "tables", "suggested_tolerance")


def main(fixtures: Path) -> None:
    source = fixtures / "vocoder-tiny"
    copies = [(source / name, HERE / "tiny" / name) for name in FOLDER_FILES]
    copies.append((fixtures / "voices" / "zh_female.npy", HERE / "zh_female.npy"))
    for original, copy in copies:
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(original, copy)
        copy.chmod(0o644)
    for case in sorted({*WHOLE, *STRIDES}):
        arrays = np.load(source / "golden" / f"{case}.npz")
        kept = {name: arrays[name] for name in WHOLE.get(case, ())}
        kept |= {name: arrays[name][..., ::n] for name, n in STRIDES.get(case, {}).items()}
        np.savez_compressed(HERE / f"{case}.npz", **kept)
    golden = json.loads((source / "golden" / "golden.json").read_text())
    chunks = {name: entry["chunks"] for name, entry in golden["files"].items() if "chunks" in entry}
    index = {"chunks": {n.removesuffix(".npz"): c for n, c in chunks.items()}, "strides": STRIDES}
    index |= {key: golden[key] for key in KEPT}
    (HERE / "golden.json").write_text(json.dumps(index, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
