"""The export, step by step: check everything, build the graphs, write them one by one, record a self-test, publish."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_sdk import __version__
from edge_sdk.bundle import Bundle
from edge_sdk.errors import Error, ExportError
from edge_sdk.export.bundle_writer import BundleWriter, check_output, disk_errors, work_path
from edge_sdk.export.checkpoint import Checkpoint
from edge_sdk.export.graphs.builder import ALIGN_LARGE, GraphBuilder, save_together
from edge_sdk.export.language import LanguagePart, load_language
from edge_sdk.export.quantize import DEFAULT_BLOCK
from edge_sdk.export.recipe import Policy, Recipe, make_recipe
from edge_sdk.export.vocoder import VocoderPart, load_vocoder
from edge_sdk.manifest import FORMAT, FORMAT_VERSION, FileEntry, GraphEntry, Manifest

SELFTEST_NAME = "selftest.json"
PAGES = (4096, ALIGN_LARGE)
_SOURCE_SUFFIXES = {".json", ".jinja", ".safetensors", ".yaml", ".pt", ".npy"}  # of the files that an export reads

log = logging.getLogger("edge_sdk.export")
Progress = Callable[[str, int, int], None]  # what is done now, parts done, parts in all


@dataclass(frozen=True)
class ExportOptions:
    """What an export makes.

    Args:
        precision: of the weights: fp32, fp16, int8 or int4.
        block: values that share a scale in int8 and int4, 128 or 32.
        recipe: a file of rules that go before the precision's own, see docs/bundle.md.
        name: the bundle's name in messages; the output's file name if "".
        noise_frames: columns of the flow's fixed noise to keep (50 a second); caches restart after so many frames.
        page: weights of 64 KiB and more begin on borders of so many bytes, 65536 or 4096. Of a small model, most of
            whose weights are not much larger, 4096 saves a tenth.
        one_file: write a single zip (stored) instead of a directory.
        resume: take up an export that was interrupted, if its sources and options are the same.
        overwrite: replace an existing bundle of that name, after the new one is complete.
        notes: sentences for the manifest, shown by `inspect`.
    """

    precision: str = "fp32"
    block: int = DEFAULT_BLOCK
    recipe: str | os.PathLike[str] | None = None
    name: str = ""
    noise_frames: int = 15000
    page: int = ALIGN_LARGE
    one_file: bool = False
    resume: bool = False
    overwrite: bool = False
    notes: tuple[str, ...] = ()


def export_bundle(
    checkpoint: str | os.PathLike[str] | None,
    vocoder: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    options: ExportOptions | None = None,
    *,
    voices: Mapping[str, str | os.PathLike[str]] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Export a checkpoint folder, a vocoder folder, or both, into a bundle at `output`.

    Args:
        checkpoint: the Fun-Audio-Chat folder (Hugging Face layout); None for a bundle that only has a vocoder.
        vocoder: the CosyVoice3 folder; None for a bundle that makes text and speech tokens only.
        voices: name -> .npy or .pt file with a speaker embedding; the first is the default voice.
    Raises:
        CheckpointError: the sources do not fit, every difference named.
        ExportError: the output cannot be written, or the written bundle fails its own checks.
    """
    options = options or ExportOptions()
    report = progress or (lambda what, done, total: None)
    recipe = make_recipe(options.precision, options.block, options.recipe)
    policy = Policy(recipe.rules)
    if options.page not in PAGES:
        raise ExportError(f"page must be one of {', '.join(map(str, PAGES))}, found {options.page!r}")
    if checkpoint is None and vocoder is None:
        raise ExportError("nothing to export: give a checkpoint folder, a vocoder folder, or both")
    if voices and vocoder is None:
        raise ExportError("voices belong to a vocoder: give its folder too")
    report("checking sources", 0, 1)
    check_output(output, overwrite=options.overwrite)  # before an hour of reading
    _check_apart(output, checkpoint, vocoder)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(contextlib.closing(Checkpoint(checkpoint))) if checkpoint is not None else None
        language = load_language(source, policy) if source else None
        frames = options.noise_frames
        speech = load_vocoder(vocoder, voices or {}, frames, policy=policy) if vocoder is not None else None
        _check_together(language, speech)
        policy.check_used(recipe.own)

        def fingerprint_now() -> str:
            return _fingerprint(
                checkpoint, vocoder, voices or {}, (options.noise_frames, options.page, recipe), Path(output)
            )

        fingerprint = fingerprint_now()
        writer = stack.enter_context(
            BundleWriter(output, fingerprint, resume=options.resume, overwrite=options.overwrite)
        )
        manifest = _write_parts(writer, language, speech, options, report, _sources(checkpoint, vocoder))
        manifest = dataclasses.replace(manifest, recipe=policy.to_json(recipe))
        report("checking the bundle", 0, 1)
        _check_written(writer, manifest)
        if fingerprint_now() != fingerprint:
            raise ExportError("a source file was changed while it was exported: run the export again")
        report("publishing", 1, 1)
        return writer.publish(one_file=options.one_file)


def _check_apart(output: str | os.PathLike[str], *sources: str | os.PathLike[str] | None) -> None:
    """Replacing the output must not take a source away."""
    for source in sources:
        if source is not None and Path(os.path.realpath(source)).is_relative_to(os.path.realpath(output)):
            raise ExportError(f"'{source}' lies inside the output '{output}'; choose another place for the bundle")


def _check_together(language: LanguagePart | None, vocoder: VocoderPart | None) -> None:
    if not language or not vocoder:
        return
    flow, model = vocoder.config.flow, language.model
    if flow.token_rate_hz != model.token_rate_hz:
        raise ExportError(
            f"the vocoder takes {flow.token_rate_hz} speech tokens a second, the checkpoint makes {model.token_rate_hz}"
        )
    if flow.codebook_size > model.speech_ids.codebook_size:
        raise ExportError(
            f"the vocoder knows {flow.codebook_size} speech tokens, the checkpoint's codebook has only "
            f"{model.speech_ids.codebook_size} rows: these two do not belong together"
        )


def _write_parts(
    writer: BundleWriter,
    language: LanguagePart | None,
    vocoder: VocoderPart | None,
    options: ExportOptions,
    report: Progress,
    sources: dict[str, Any],
) -> Manifest:
    graphs: dict[str, GraphBuilder] = {
        **(language.graphs if language else {}),
        **(vocoder.graphs if vocoder else {}),
    }
    files = list(dict.fromkeys(g.data for g in graphs.values()))
    entries: dict[str, GraphEntry] = {}
    for n, data in enumerate(files):
        report(f"writing {data}", n, len(files))
        entries |= _write_graphs(writer, data, [g for g in graphs.values() if g.data == data], options.page)
    if language:
        writer.write("tokenizer.json", language.tokenizer.encode())
        writer.write("chat_template.jinja", language.chat_template.encode())
    if vocoder:
        _write_array(writer, vocoder.noise_name, vocoder.noise)
        for name, embedding in vocoder.voices.items():
            _write_array(writer, vocoder.config.voices[name], lambda e=embedding: e)  # type: ignore[misc]
    return Manifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        name=options.name or Path(writer.output).stem,
        model=language.model if language else None,
        vocoder=vocoder.config if vocoder else None,
        graphs=entries,
        files=_sorted_files(writer),
        tokenizer="tokenizer.json" if language else "",
        chat_template="chat_template.jinja" if language else "",
        generation=language.generation if language else {},
        noise=vocoder.noise_name if vocoder else "",
        source=sources,
        tools=_tools(),
        notes=options.notes,
    )


def _write_graphs(writer: BundleWriter, data: str, graphs: Sequence[GraphBuilder], page: int) -> dict[str, GraphEntry]:
    """The graphs whose weights share one data file, and that file."""
    data_name = f"{data}.bin"
    models = {graph.name: f"{graph.name}.onnx" for graph in graphs}
    external = any(graph.has_external_data for graph in graphs)
    names = (*models.values(), *([data_name] if external else []))
    if not writer.has(*names):
        with disk_errors(writer.partial):
            save_together([(g, writer.path(models[g.name])) for g in graphs], writer.path(data_name), page)
        writer.finish(*names)
    return {
        graph.name: GraphEntry(
            file=models[graph.name],
            data=data_name if graph.has_external_data else "",
            precision=graph.precision,
            ops=graph.ops_used,
            inputs=tuple(s.to_json() for s in graph.inputs),
            outputs=tuple(s.to_json() for s in graph.outputs),
            bytes_read=graph.bytes_read,
        )
        for graph in graphs
    }


def _write_array(writer: BundleWriter, name: str, make: Callable[[], np.ndarray[Any, Any]]) -> None:
    if writer.has(name):
        return
    with disk_errors(writer.partial), writer.path(name).open("wb") as file:
        np.save(file, make(), allow_pickle=False)
    writer.finish(name)


def _check_written(writer: BundleWriter, manifest: Manifest) -> None:
    """Open the bundle as a device will; run it and write down what it answered, for `verify` to compare there."""
    from edge_sdk.selftest import record_selftest

    writer.write_manifest(manifest)
    try:
        with Bundle.open(writer.partial) as bundle:
            recorded = record_selftest(bundle)
    except Error as e:
        raise ExportError(f"the bundle was written but cannot be used: {e}") from e
    writer.write(SELFTEST_NAME, (json.dumps(recorded, indent=1) + "\n").encode())
    writer.write_manifest(dataclasses.replace(manifest, selftest=SELFTEST_NAME, files=_sorted_files(writer)))


def _sorted_files(writer: BundleWriter) -> dict[str, FileEntry]:
    """In an order that does not tell which of them an earlier run had finished."""
    return dict(sorted(writer.files.items()))


def _fingerprint(
    checkpoint: str | os.PathLike[str] | None,
    vocoder: str | os.PathLike[str] | None,
    voices: Mapping[str, str | os.PathLike[str]],
    choices: tuple[int, int, Recipe],
    output: Path,
) -> str:
    """Changes when a source file or an option that matters does (`choices`), so that a resumed export never mixes
    two."""
    digest = hashlib.sha256(f"{__version__}|{choices}".encode())
    own = {
        Path(os.path.realpath(p)) for p in (output, work_path(output))
    }  # the output may lie in the checkpoint's folder
    for folder in (checkpoint, vocoder):
        for path in sorted(Path(folder).resolve().rglob("*")) if folder is not None else ():
            if path.suffix in _SOURCE_SUFFIXES and path.is_file() and own.isdisjoint((path, *path.parents)):
                digest.update(f"|{path}|{_file_state(path)}".encode())
    for name, voice in voices.items():
        digest.update(f"|{name}|{voice}|{_file_state(Path(voice))}".encode())
    return digest.hexdigest()


def _file_state(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as e:
        raise ExportError(f"cannot read '{path}': {e.strerror or e}") from e
    return f"{status.st_size}|{status.st_mtime_ns}"


def _sources(*folders: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Names and configuration hashes of what was exported; no path of this machine."""
    out: dict[str, Any] = {}
    for kind, folder, main in zip(("checkpoint", "vocoder"), folders, ("config.json", "cosyvoice3.yaml"), strict=True):
        if folder is not None:
            file = Path(folder) / main
            digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
            out[kind] = {"name": Path(folder).resolve().name, main: digest}
    return out


def _tools() -> dict[str, str]:
    versions = {"edge_sdk": __version__}
    for package in ("numpy", "onnx", "onnxruntime"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
