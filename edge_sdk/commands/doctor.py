"""Show what is installed here: runtimes that are ready and why the others are not, audio devices, CPU, memory."""

from __future__ import annotations

import argparse

from edge_sdk.commands.output import human_bytes, print_json, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from edge_sdk.diagnosis import doctor

    report = doctor()
    if args.json:
        print_json(report)
        return 0
    machine = report["machine"]
    rows = [
        ["edge_sdk", report["edge_sdk"]],
        ["python", report["python"]],
        ["machine", f"{machine['platform']}, {machine['cpu'] or 'unknown CPU'}"],
        ["cores", f"{machine['cores']} usable; {' '.join(machine['cpu_features']) or 'no vector features found'}"],
        ["memory", f"{human_bytes(machine['memory_free'])} free of {human_bytes(machine['memory_total'])}"],
        ["GPU", machine["gpu"] or "none found"],
        ["default bundle", report["default_bundle"]],
    ]
    rows += [[f"package {name}", version or "not installed"] for name, version in report["packages"].items()]
    for name, reason in report["runtimes"].items():
        brings = report["runtimes_bring"].get(name, "")
        rows.append([f"runtime {name}", f"{f'not here: {reason}' if reason else 'ready'} - {brings}"])
    native = report["native"]
    state = f"not here: {native['problem']}" if native["problem"] else f"ready, {native['isa']}"
    rows.append(["native core", f"{state} - the C API: the speech head in programs without Python"])
    ops = native["onnxruntime_ops"]
    brings = "the speech head in one call a group; without it plain ops, with the same tokens in fp32"
    rows.append(["native ops", f"{f'not here: {ops}' if ops else 'ready'} - {brings}"])
    audio = report["audio"]
    rows.append(["audio", audio["problem"] or f"{len(audio['devices'])} devices"])
    rows += [
        [f"  {d['index']}: {d['name']}", f"{d['inputs']} in, {d['outputs']} out, {d['sample_rate']} Hz"]
        for d in audio["devices"]
    ]
    print_table(rows)
    return 0
