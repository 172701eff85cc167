"""python -m edge_sdk.export.random_checkpoint: write a preset's folders."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_sdk.errors import Error
from edge_sdk.export.random_checkpoint.language import write_language_checkpoint
from edge_sdk.export.random_checkpoint.presets import PRESETS
from edge_sdk.export.random_checkpoint.vocoder import write_vocoder_checkpoint
from edge_sdk.export.random_checkpoint.writer import DTYPES


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 it could not be done (one line says why), 2 wrong usage."""
    options = _parser().parse_args(argv)
    preset, output = PRESETS[options.preset], Path(options.output)
    progress = _show if sys.stderr.isatty() and not options.json else None
    written: list[Path] = []
    try:
        if preset.language:
            written.append(output / "language")
            write_language_checkpoint(
                written[-1],
                preset.language,
                options.seed,
                dtype=options.dtype,
                shards=options.shards,
                progress=progress,
            )
        if preset.vocoder:
            written.append(output / "vocoder")
            write_vocoder_checkpoint(written[-1], preset.vocoder, options.seed, progress=progress)
    except Error as e:
        sys.stderr.write(f"error: {e}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the unfinished folder was removed\n")
        return 1
    sizes = {str(folder): sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) for folder in written}
    if options.json:
        sys.stdout.write(json.dumps({"preset": options.preset, "seed": options.seed, "folders": sizes}) + "\n")
    else:
        for folder, size in sizes.items():
            sys.stdout.write(f"{folder}  {size / 1e6:.1f} MB\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edge_sdk.export.random_checkpoint",
        description="Write seeded random checkpoints: a Fun-Audio-Chat folder in OUTPUT/language, a CosyVoice3 folder "
        "in OUTPUT/vocoder. The same seed gives the same bytes everywhere. What they say is noise.",
        epilog="presets: " + "; ".join(f"{name}: {preset.about}" for name, preset in PRESETS.items()),
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), required=True, help="the sizes, see below")
    parser.add_argument("--seed", type=int, default=1, help="default: 1")
    parser.add_argument("-o", "--output", required=True, help="a folder; its language and vocoder must not exist yet")
    parser.add_argument(
        "--dtype", choices=sorted(DTYPES), default="float32", help="of the language half; default: float32"
    )
    parser.add_argument("--shards", type=int, default=1, help="safetensors files of the language half; default: 1")
    parser.add_argument("--json", action="store_true", help="print what was written as one JSON line")
    return parser


def _show(name: str, done: int, total: int) -> None:
    end = "\n" if done == total else ""
    sys.stderr.write(f"\r{name}  {done * 100 // total:3} %  {done / 1e6:.0f} of {total / 1e6:.0f} MB{end}")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
