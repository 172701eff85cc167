"""Turn a Fun-Audio-Chat checkpoint (Hugging Face layout) and a CosyVoice3 vocoder folder into a bundle.

Checks everything first, writes under a temporary name, records a self-test, and renames. Needs edge_sdk[export].
"""

from __future__ import annotations

import argparse

from edge_sdk.commands.output import human_bytes, progress
from edge_sdk.errors import ExportError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT_DIR", nargs="?", help="the checkpoint's folder")
    parser.add_argument("--vocoder", metavar="VOCODER_DIR", help="folder with cosyvoice3.yaml, flow and hift weights")
    parser.add_argument(
        "--voice", metavar="NAME=FILE[:ENTRY]", action="append", default=[],
        help="a speaker embedding, .npy or .pt; may be given several times, the first is the default. Without it: "
        "those in VOCODER_DIR/voices, and upstream's zh_female",
    )  # fmt: skip
    parser.add_argument("-o", "--output", metavar="BUNDLE", required=True, help="where the bundle goes")
    parser.add_argument(
        "--precision", choices=("fp32", "fp16", "int8", "int4"), default="fp32",
        help="of the weights (default: %(default)s). int8 and int4 are rounded to nearest in blocks, fragile tensors "
        "of int4 in int8; fp16 halves the file, on a CPU not the memory",
    )  # fmt: skip
    parser.add_argument(
        "--block", type=int, choices=(32, 128), default=128,
        help="values that share a scale in int8 and int4 (default: %(default)s; 32 is closer and a quarter slower)",
    )  # fmt: skip
    parser.add_argument(
        "--recipe", metavar="FILE",
        help='JSON or YAML, {"rules": [{"match": NAME_PATTERN, "scheme": fp32|fp16|int8|int4, "block": N, "of": '
        "matrices|convolutions}]}: rules before those of --precision; the first that fits a weight's name decides "
        "(docs/bundle.md)",
    )  # fmt: skip
    parser.add_argument("--name", default="", help="the bundle's name; the output's name if not given")
    parser.add_argument("--one-file", action="store_true", help="write a single file instead of a directory")
    parser.add_argument("--resume", action="store_true", help="take up an export that was interrupted")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an existing bundle once the new one is complete"
    )
    parser.add_argument(
        "--noise-frames", type=int, default=15000, metavar="N",
        help="frames of the vocoder's fixed noise to keep, 50 a second (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--page", type=int, choices=(4096, 65536), default=65536, metavar="BYTES",
        help="borders on which large weights begin, 4096 or 65536; 4096 makes a small model's file a tenth smaller "
        "(default: %(default)s)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    try:
        from edge_sdk.export.pipeline import ExportOptions, export_bundle
    except ImportError as e:
        raise ExportError(
            f"exporting needs packages that are not installed ({e}): pip install 'edge_sdk[export]'"
        ) from e

    voices: dict[str, str] = {}
    for item in args.voice:
        name, found, file = item.partition("=")
        if not found or not name or not file:
            raise ExportError(f"--voice wants NAME=FILE, found {item!r}")
        if name in voices:
            raise ExportError(f"--voice names {name!r} twice: '{voices[name]}' and '{file}'")
        voices[name] = file
    options = ExportOptions(
        precision=args.precision, block=args.block, recipe=args.recipe, name=args.name,
        noise_frames=args.noise_frames, page=args.page, one_file=args.one_file, resume=args.resume,
        overwrite=args.overwrite,
    )  # fmt: skip
    path = export_bundle(args.checkpoint, args.vocoder, args.output, options, voices=voices, progress=progress())
    size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size
    print(f"{path}: {human_bytes(size)}. Try it: edge-sdk chat {path} --audio question.wav --out reply.wav")
    return 0
