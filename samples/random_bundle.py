"""Makes the bundle of random weights that the tests talk to, tests/golden/random.bundle, from its seed.

    make random-bundle

It is small and shows that everything runs. Until a trained one takes its place (samples/nano), the bundle inside the
package is the same file; the tests have their own, so that it can.
"""

import shutil
import tempfile
from pathlib import Path

from edge_sdk.export.pipeline import ExportOptions, export_bundle
from edge_sdk.export.random_checkpoint import PRESETS, write_language_checkpoint, write_vocoder_checkpoint

SEED = 2  # its replies are some 11 s long; seed 1 is curter
NOISE_FRAMES = 1500  # 30 s, then the vocoder's caches restart: all 15,000 columns would be 4.8 MB of 5
NOTE = "Random weights: text is word pieces and sound is noise. It shows that everything runs, nothing more."
ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "tests" / "golden" / "random.bundle"
PACKAGED = ROOT / "edge_sdk" / "data" / "default.bundle"


def make(target: Path) -> Path:
    preset = PRESETS["demo"]
    with tempfile.TemporaryDirectory() as folder:
        language, vocoder = Path(folder) / "language", Path(folder) / "vocoder"
        write_language_checkpoint(language, preset.language, seed=SEED)
        write_vocoder_checkpoint(vocoder, preset.vocoder, seed=SEED)
        voice = next((vocoder / "voices").glob("*.npy"))
        options = ExportOptions(
            name="demo-random", noise_frames=NOISE_FRAMES, one_file=True, overwrite=True, notes=(NOTE,)
        )
        return export_bundle(language, vocoder, target, options, voices={voice.stem: voice})


if __name__ == "__main__":
    path = make(TARGET)
    shutil.copyfile(path, PACKAGED)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
