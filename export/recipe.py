"""Which tensor is stored how: rules over weight names, the first that matches wins.

Matrices that are multiplied with, tables that are looked up and the weights of convolutions have a choice.
Convolutions are asked for by rules of their own (`of`), and no precision brings one: they stay float32, f0's float64,
unless a recipe says otherwise. Norms, biases and the vocoder's step tables are float32 in every recipe.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from edge_sdk.errors import ExportError
from edge_sdk.export.quantize import DEFAULT_BLOCK, FP32, KINDS, Kind, Scheme

PRECISIONS = KINDS
Of = Literal["matrices", "convolutions"]
_OF: tuple[Of, ...] = get_args(Of)
_OF_CONVOLUTIONS: tuple[Kind, ...] = ("fp32", "fp16", "int8")  # in int4 they have no form that a runtime unfolds
BLOCKS: dict[Kind, tuple[int, ...]] = {"int4": (32, 128), "int8": (32, 64, 128, 256)}  # what csrc's kernels take
log = logging.getLogger("edge_sdk.export")


@dataclass(frozen=True)
class Rule:
    """Tensors whose name fits `match` (fnmatch) are stored by `scheme`: those of convolutions, or all others."""

    match: str
    scheme: Scheme
    of: Of = "matrices"

    def fits(self, name: str, of: Of) -> bool:
        return self.of == of and fnmatch.fnmatchcase(name, self.match)

    def to_json(self) -> dict[str, Any]:
        block = {"block": self.scheme.block} if self.scheme.quantized else {}
        of = (
            {"of": self.of} if self.of != "matrices" else {}
        )  # manifests from before there were others stay as they are
        return {"match": self.match, "scheme": self.scheme.kind, **block, **of}


# Reasons, with measurements, in docs/NOTES.md ("Quantized weights").
_ROUTERS = "*.mlp.gate.weight"  # small, and they decide which experts run
_FLOW_BLOCKS = "decoder.estimator.transformer_blocks.*"
_OTHER_FLOW = ("decoder.*", "fold/decoder.*", "input_embedding.*", "spk_embed_affine_layer.*")  # small: in and out
_INT8_IN_INT4 = (
    "audio_invert_tower.*.down_proj.weight",  # what silu * up sends there has outliers
    "audio_invert_tower.*.experts.*",
    "language_model.lm_head.weight",
    "language_model.model.embed_tokens.weight",
    "continuous_audio_tower.*",
    "fold/*",  # tables of speech ids and folded projections: small beside the stacks
)


def default_rules(precision: Kind, block: int) -> tuple[Rule, ...]:
    """The recipe that `--precision` names."""
    if precision not in ("int8", "int4"):
        return (Rule("*", Scheme(precision)),)
    int8 = Scheme("int8", block)
    rules = [Rule(_ROUTERS, FP32), Rule(_FLOW_BLOCKS, int8), *(Rule(name, FP32) for name in _OTHER_FLOW)]
    if precision == "int4":
        rules += [Rule(name, int8) for name in _INT8_IN_INT4]
    return (*rules, Rule("*", Scheme(precision, block)))


@dataclass(frozen=True)
class Recipe:
    """What an export was asked for: a precision's rules, behind those of a file."""

    precision: Kind = "fp32"
    block: int = DEFAULT_BLOCK
    own: tuple[Rule, ...] = ()

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (*self.own, *default_rules(self.precision, self.block))


@dataclass
class Policy:
    """A list of rules at work: answers for names, and remembers what it answered."""

    rules: tuple[Rule, ...] = (Rule("*", FP32),)
    chosen: dict[str, Scheme] = field(default_factory=dict)
    convolutions: dict[str, Scheme] = field(default_factory=dict)
    exceptions: dict[str, str] = field(default_factory=dict)
    _hit: set[Rule] = field(default_factory=set)

    def scheme(self, name: str) -> Scheme:
        """Of a matrix or table."""
        return self._find(name, "matrices", self.chosen)

    def convolution(self, name: str) -> Scheme:
        """Of a convolution's weight."""
        return self._find(name, "convolutions", self.convolutions)

    def _find(self, name: str, of: Of, found: dict[str, Scheme]) -> Scheme:
        for rule in self.rules:
            if rule.fits(name, of):
                self._hit.add(rule)
                return found.setdefault(name, rule.scheme)
        return found.setdefault(name, FP32)

    def keep_wide(self, name: str, reason: str) -> None:
        """A tensor stays float32 although a rule says otherwise: logged, and written in the manifest."""
        if name not in self.exceptions:
            log.warning("'%s' stays fp32: %s", name, reason)
        self.chosen[name] = FP32
        self.exceptions[name] = reason

    def check_used(self, rules: Iterable[Rule]) -> None:
        """Raises ExportError if one of these rules never decided anything."""
        for of, what, there in (
            ("matrices", "matrix or table", self.chosen),
            ("convolutions", "convolution", self.convolutions),
        ):
            idle = [rule.match for rule in rules if rule.of == of and rule not in self._hit]
            if idle:
                raise ExportError(
                    f"recipe: {', '.join(repr(m) for m in idle)} decides nothing: no {what} has such a name, or "
                    "earlier rules take them all (norms and biases are always fp32, convolutions want a rule with "
                    f'"of": "convolutions"). There are: {_some(there)}'
                )

    def to_json(self, recipe: Recipe) -> dict[str, Any]:
        """For the manifest: the rules that decided something, in order."""
        rules = [rule.to_json() for rule in self.rules if rule in self._hit]
        return {"precision": recipe.precision, "rules": rules, "exceptions": dict(sorted(self.exceptions.items()))}


def manifest_policy(recipe: Mapping[str, Any], where: str) -> Policy:
    """The policy that a bundle was exported by, from its manifest."""
    policy = Policy(parse_rules(recipe.get("rules", [{"match": "*", "scheme": "fp32"}]), where))
    for name, reason in recipe.get("exceptions", {}).items():
        policy.exceptions[name], policy.chosen[name] = reason, FP32
    return policy


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")


def make_recipe(precision: str, block: int = DEFAULT_BLOCK, file: str | os.PathLike[str] | None = None) -> Recipe:
    """The recipe of these options.

    Raises:
        ExportError: an unknown precision or block, or a file that is not a recipe.
    """
    if precision not in PRECISIONS:
        raise ExportError(f"precision '{precision}' is not one of {', '.join(PRECISIONS)}")
    kind: Kind = precision
    _scheme("int4", block)  # a file's rules may be of any kind
    return Recipe(kind, block, read_rules(file, block) if file is not None else ())


def _scheme(kind: Kind, block: int, of: Of = "matrices") -> Scheme:
    """A scheme that every kernel takes."""
    if of == "convolutions" and kind not in _OF_CONVOLUTIONS:
        raise ExportError(f"convolutions take {', '.join(_OF_CONVOLUTIONS)}, found {kind}")
    allowed = BLOCKS.get(kind, (0,))
    if block not in allowed:
        wanted = f"blocks of {' or '.join(map(str, allowed))}" if any(allowed) else "no block"
        raise ExportError(f"{kind} takes {wanted}, found {block}")
    return Scheme(kind, block)


def read_rules(file: str | os.PathLike[str], block: int = DEFAULT_BLOCK) -> tuple[Rule, ...]:
    """The rules of a recipe file, JSON or YAML: {"rules": [{"match": PATTERN, "scheme": KIND, "block": N, "of": WHAT},
    ...]}, the last two optional.

    Raises:
        ExportError: a file that cannot be read or is no recipe; which rule, and what it may say.
    """
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as e:
        raise ExportError(f"cannot read recipe '{path}': {e}") from e
    _check_keys(value, {"rules"}, {"rules"}, f"recipe '{path}'")
    return parse_rules(value["rules"], f"recipe '{path}'", block)


def parse_rules(value: Any, where: str, block: int = DEFAULT_BLOCK) -> tuple[Rule, ...]:
    """Rules as JSON has them. `block` is for quantized ones that name none."""
    if not isinstance(value, list):
        raise ExportError(f"{where}: 'rules' must be a list, found {value!r}")
    rules = []
    for n, item in enumerate(value):
        at = f"{where}, rule {n + 1}"
        _check_keys(item, {"match", "scheme"}, {"match", "scheme", "block", "of"}, at)
        match, kind, of = item["match"], item["scheme"], item.get("of", "matrices")
        if not isinstance(match, str) or not match:
            raise ExportError(f"{at}: 'match' must be a pattern of names, found {match!r}")
        if kind not in KINDS:
            raise ExportError(f"{at}: scheme {kind!r} is not one of {', '.join(KINDS)}")
        if of not in _OF:
            raise ExportError(f"{at}: 'of' must be one of {', '.join(_OF)}, found {of!r}")
        size = item.get("block", block if kind in ("int8", "int4") else 0)
        if not isinstance(size, int) or isinstance(size, bool):
            raise ExportError(f"{at}: 'block' must be a number, found {size!r}")
        try:
            rules.append(Rule(match, _scheme(kind, size, of), of))
        except ExportError as e:
            raise ExportError(f"{at}: {e}") from e
    return tuple(rules)


def _check_keys(value: Any, required: set[str], allowed: set[str], where: str) -> None:
    if not isinstance(value, Mapping):
        raise ExportError(f"{where} must be an object with {', '.join(sorted(required))}, found {type(value).__name__}")
    unknown, missing = sorted(map(str, set(value) - allowed)), sorted(required - set(value))
    if unknown or missing:
        parts = [f"unknown {', '.join(unknown)}"] * bool(unknown) + [f"missing {', '.join(missing)}"] * bool(missing)
        raise ExportError(f"{where}: {'; '.join(parts)} (it may have {', '.join(sorted(allowed))})")
