"""The trainer: taken up at the exact step, saved whole, ended by time, Ctrl-C and numbers that are none."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from edge_sdk.errors import Error  # noqa: E402
from edge_sdk.tensorfile import TensorFile  # noqa: E402
from samples.nano import training_log, training_state  # noqa: E402
from samples.nano.codec.flow import Flow  # noqa: E402
from samples.nano.codec.sizes import vocoder_sizes  # noqa: E402
from samples.nano.muon import Muon, orthogonal  # noqa: E402
from samples.nano.optimizers import make_optimizers  # noqa: E402
from samples.nano.settings import TINY, Schedule  # noqa: E402
from samples.nano.training import learning_rate, train  # noqa: E402
from samples.nano.training_data import numbers, order  # noqa: E402

SCHEDULE = Schedule(steps=30, learning_rate=0.01, warmup_steps=5)
EXAMPLES = 37


class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Dropout draws, one layer is frozen, one unused, one parameter empty."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(6, 16)
        self.norm = torch.nn.LayerNorm(16)
        self.drop = torch.nn.Dropout(0.2)
        self.last = torch.nn.Linear(16, 1)
        self.frozen = torch.nn.Linear(6, 1).requires_grad_(False)
        self.unused = torch.nn.Linear(3, 3)
        self.empty = torch.nn.Parameter(torch.zeros(0, 4))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("narrow", torch.linspace(0, 1, 5, dtype=torch.bfloat16))

    def forward(self, x: Any) -> Any:
        if self.training:
            self.seen += 1
        return self.last(self.drop(torch.tanh(self.norm(self.first(x))))) + self.frozen(x)


def saved_step(folder: Path) -> Any:
    return json.loads((folder / training_state.STATE).read_text())["step"]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Sums are added in another order with another number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def net(seed: int = 1) -> Net:
    torch.manual_seed(seed)
    return Net()


DATA = np.random.default_rng(0).standard_normal((EXAMPLES, 7)).astype(np.float32)
DATA[:, 6] = DATA[:, 0] - DATA[:, 1] + 3


def batches(step: int) -> dict[str, Any]:
    rows = torch.from_numpy(DATA[order(3, step, EXAMPLES, 8)])
    return {"x": rows[:, :6], "y": [rows[:, 6:]]}


def squared(model: Any, batch: Any) -> Any:
    error = model(batch["x"]) - batch["y"][0]
    return (error**2).mean(), {"largest": error.abs().max()}


def run(folder: Path, model: Any = None, *, schedule: Schedule = SCHEDULE, loss: Any = squared, **how: Any) -> Any:
    model = model or net()
    return model, train(model, loss, batches, schedule, folder, device="cpu", **how)


def state(model: Any) -> dict[str, bytes]:
    return {
        name: t.view(torch.int16 if t.dtype == torch.bfloat16 else t.dtype).numpy().tobytes()
        for name, t in model.state_dict().items()
    }


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def saved(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# -- learning


def test_it_learns_and_writes_down_how(tmp_path: Path) -> None:
    model, done = run(tmp_path, log_every=5)
    assert done.finished
    assert (done.step, done.steps) == (30, 30)
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 25, 30]
    assert lines[-1]["loss"] < lines[0]["loss"] / 2
    assert done.loss == lines[-1]["loss"]
    assert lines[-1]["learning_rate"] == learning_rate(SCHEDULE, 29)
    assert set(lines[0]) == {"step", "loss", "gradient_norm", "largest", "learning_rate", "seconds_per_step"}
    assert int(model.seen) == 30
    assert state(model)["frozen.weight"] == state(net())["frozen.weight"]
    assert saved(tmp_path) == ["log.jsonl", "state.json", "step-00000030"]


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate(SCHEDULE, step) for step in range(31)]
    assert rates[:5] == [0.002, 0.004, 0.006, 0.008, 0.01]
    assert rates[5] == 0.01
    assert all(a > b for a, b in itertools.pairwise(rates[5:]))
    assert rates[30] == 0.001
    assert learning_rate(SCHEDULE, 99) == 0.001
    assert learning_rate(Schedule(steps=10, learning_rate=1.0), 0) == 1.0


def test_long_gradients_are_shortened(tmp_path: Path) -> None:
    """AdamW hides a gradient's size, so its moments tell: their norm is at most that of the clipped gradient."""

    def steep(model: Any, batch: Any) -> Any:
        return 1e6 * squared(model, batch)[0]

    schedule = dataclasses.replace(SCHEDULE, clip_norm=0.5)
    model = net()
    run(tmp_path, model, schedule=schedule, loss=steep, stop_at=1)
    optimizers = make_optimizers(model, schedule)
    training_state.restore(tmp_path, model, optimizers)
    found = [optimizers.state_of(p) for p in optimizers.parameters]
    first = [state["exp_avg"] / (1 - schedule.betas[0]) for state in found if state]
    norm = float(torch.stack([t.norm() for t in first]).norm())
    assert log(tmp_path)[0]["gradient_norm"] > 1e5
    assert 0.49 < norm < 0.501


def test_norms_and_biases_do_not_decay() -> None:
    model = net()
    (adamw,) = make_optimizers(model, dataclasses.replace(SCHEDULE, weight_decay=0.1)).parts
    decaying = {id(p) for g in adamw.param_groups if g["weight_decay"] for p in g["params"]}
    names = {n for n, p in model.named_parameters() if id(p) in decaying}
    assert names == {"first.weight", "last.weight", "unused.weight", "empty"}
    with pytest.raises(Error, match="nothing to train"):
        make_optimizers(net().requires_grad_(False), SCHEDULE)


class Layered(torch.nn.Module):  # type: ignore[misc, name-defined]
    """What Muon moves, two matrices inside layers, and what it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(6, 8)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))
        self.last = torch.nn.Linear(8, 1)

    def forward(self, x: Any) -> Any:
        x = self.first(x)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.last(x)


MUON = dataclasses.replace(SCHEDULE, muon=True)


def layered(seed: int = 1) -> Layered:
    torch.manual_seed(seed)
    return Layered()


def test_muon_moves_the_layers_matrices() -> None:
    """Its steps are nearly orthogonal, of the schedule's rate times its own."""
    model = layered()
    names = {id(p): n for n, p in model.named_parameters()}
    adamw, muon = make_optimizers(model, MUON).parts
    assert [names[id(p)] for g in muon.param_groups for p in g["params"]] == ["layers.0.weight", "layers.1.weight"]
    assert len([p for g in adamw.param_groups for p in g["params"]]) == len(names) - 2
    optimizers = make_optimizers(model, MUON)
    optimizers.set_learning_rate(0.5)
    assert {g["lr"] for part in optimizers.parts for g in part.param_groups} == {0.5, 0.5 * MUON.muon_rate}
    assert len(make_optimizers(model, SCHEDULE).parts) == 1


def test_muon_moves_the_flows_matrices() -> None:
    """Those of its layers; what modulates them by time is AdamW's, as is all that stands around them."""
    model = Flow(vocoder_sizes(TINY.vocoder_spec()))
    names = {id(p): n for n, p in model.named_parameters()}
    _, muon = make_optimizers(model, MUON).parts
    moved = {names[id(p)].split("transformer_blocks.")[1] for g in muon.param_groups for p in g["params"]}
    parts = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.ff.0.0", "ff.ff.2")
    assert moved == {f"{block}.{part}.weight" for block in range(TINY.vocoder.depth) for part in parts}


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_muon_is_pytorchs_in_float32(shape: tuple[int, int]) -> None:
    torch.manual_seed(2)
    theirs = torch.nn.Parameter(torch.randn(shape))
    ours = torch.nn.Parameter(theirs.detach().clone())
    settings = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.95}
    both = (
        torch.optim.Muon([theirs], ns_steps=4, adjust_lr_fn="match_rms_adamw", **settings),
        Muon([ours], iterations=4, **settings),
    )
    begun = ours.detach().clone()
    for _ in range(3):
        theirs.grad = torch.randn(shape)
        ours.grad = theirs.grad.clone()
        for optimizer in both:
            optimizer.step()
    assert set(both[0].state[theirs]) == set(both[1].state[ours])  # a run goes on with either
    moved, wanted = ours - begun, theirs - begun
    assert (moved - wanted).norm() < 0.02 * wanted.norm()  # theirs is made in bfloat16, 8 bits of it
    singular = torch.linalg.svdvals(orthogonal(torch.randn(shape), 5))
    assert float(singular.min()) > 0.5 and float(singular.max()) < 1.5


def test_what_was_trained_before_moves_at_its_own_rate() -> None:
    model = layered()
    slow = dataclasses.replace(MUON, slow=("layers.0.",), slow_rate=0.25)
    optimizers = make_optimizers(model, slow)
    optimizers.set_learning_rate(1.0)
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {names[id(p)]: g["lr"] for part in optimizers.parts for g in part.param_groups for p in g["params"]}
    assert set(rates) == set(names.values())
    for name, rate in rates.items():
        in_layer = name.startswith("layers.") and name.endswith("weight")
        assert rate == (MUON.muon_rate if in_layer else 1.0) * (0.25 if name.startswith("layers.0.") else 1.0)


@pytest.mark.parametrize("schedule", [SCHEDULE, MUON], ids=["adamw", "muon"])
def test_both_learn_and_are_taken_up(tmp_path: Path, schedule: Schedule) -> None:
    whole, done = run(tmp_path / "whole", layered(), schedule=schedule, loss=of_layers, log_every=5)
    lines = log(tmp_path / "whole")
    assert done.finished and lines[-1]["loss"] < lines[0]["loss"] / 2
    run(tmp_path / "parts", layered(), schedule=schedule, loss=of_layers, stop_at=13)
    parts, _ = run(tmp_path / "parts", layered(7), schedule=schedule, loss=of_layers)
    assert state(parts) == state(whole)
    other = SCHEDULE if schedule is MUON else MUON
    with pytest.raises(Error, match="muon"):
        run(tmp_path / "parts", layered(), schedule=other, loss=of_layers)


def of_layers(model: Any, batch: Any) -> Any:
    return ((model(batch["x"]) - batch["y"][0]) ** 2).mean()


def test_numbers_that_only_some_steps_have(tmp_path: Path) -> None:
    """Their mean is over the steps that had them."""

    def sometimes(model: Any, batch: Any) -> Any:
        value, others = squared(model, batch)
        return value, (others | {"odd": torch.tensor(5.0)} if int(model.seen) % 2 else {})

    run(tmp_path, loss=sometimes, log_every=4, stop_at=9)
    assert [line["odd"] for line in log(tmp_path)] == [5.0, 5.0, 5.0]


# -- the data's order


def test_every_example_comes_once_a_round() -> None:
    taken = np.concatenate([order(3, step, EXAMPLES, 8) for step in range(EXAMPLES)])
    rounds = taken.reshape(8, EXAMPLES)
    assert all(sorted(r) == list(range(EXAMPLES)) for r in rounds)
    assert len({tuple(r) for r in rounds}) == 8
    assert order(4, 0, EXAMPLES, 8).tolist() != order(3, 0, EXAMPLES, 8).tolist()
    assert sorted(order(3, 0, 3, 9)) == [0, 0, 0, 1, 1, 1, 2, 2, 2], "a batch of several rounds"


def test_random_numbers_are_told_by_seed_step_and_name() -> None:
    draws = {tuple(numbers(*key).integers(100, size=5)) for key in [(1, 1, "a"), (1, 1, "b"), (1, 2, "a"), (2, 1, "a")]}
    assert len(draws) == 4
    assert numbers(1, 1, "a").integers(100, size=5).tolist() == numbers(1, 1, "a").integers(100, size=5).tolist()


# -- taken up


@pytest.mark.parametrize("stops", [(1,), (7, 8, 21), (29,), (0, 30)])
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path, stops: tuple[int, ...]) -> None:
    """To the bit, with dropout and a buffer that counts; the model that it goes on with may be any."""
    whole, _ = run(tmp_path / "whole", log_every=5)
    for n, stop in enumerate(stops):
        _, done = (
            run(tmp_path / "parts", net(10 + n), stop_at=stop, log_every=5)
            if n
            else run(tmp_path / "parts", stop_at=stop, log_every=5)
        )
        assert done.step == stop
    parts, done = run(tmp_path / "parts", net(99), log_every=5)
    if stops[0] == 0:  # nothing was saved, so the first that trained was drawn from 11
        whole, _ = run(tmp_path / "other", net(11), log_every=5)
    assert done.finished
    assert state(parts) == state(whole)
    names = [n for n in saved(tmp_path / "parts") if n.startswith("step")]
    assert names == ["step-00000030"]
    for part in (tmp_path / "parts" / names[0]).iterdir():
        other = "other" if stops[0] == 0 else "whole"
        assert part.read_bytes() == (tmp_path / other / names[0] / part.name).read_bytes()


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    model, _ = run(tmp_path)
    again, done = run(tmp_path, net(5))
    assert done.finished
    assert state(again) == state(model)
    assert len(log(tmp_path)) == 2


def test_time_that_is_over(tmp_path: Path) -> None:
    model, done = run(tmp_path, minutes=0.0)
    assert (done.step, done.finished) == (0, False)
    assert state(model) == state(net())
    assert saved(tmp_path) == []

    clock = training_log.Clock(1.0)
    clock.begin -= 50
    assert not clock.is_over()
    clock.longest_s = 11.0
    assert clock.is_over(), "another step of that length would end too late"


def test_it_is_saved_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that fails later goes on from there; lines of the log past it are dropped."""
    monkeypatch.setattr(training_log, "SAVE_MINUTES", -1.0)
    steps = 0

    def fails(model: Any, batch: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 13:
            raise ValueError("out of order")
        return squared(model, batch)

    with pytest.raises(ValueError, match="out of order"):
        run(tmp_path / "parts", loss=fails, log_every=5)
    assert saved_step(tmp_path / "parts") == 12
    with (tmp_path / "parts" / "log.jsonl").open("a") as file:
        file.write('{"step": 15, "loss": 1}\n{"step": 20, "lo')
    parts, _ = run(tmp_path / "parts", log_every=5)
    assert state(parts) == state(run(tmp_path / "whole")[0])
    assert [line["step"] for line in log(tmp_path / "parts")] == [5, 10, 15, 20, 25, 30]


# -- numbers that are none


@pytest.mark.parametrize("spoil", ["loss", "gradient"])
def test_numbers_that_are_none_stop_the_run(tmp_path: Path, spoil: str) -> None:
    """The step is named, and what is on the disk is what was saved before."""
    run(tmp_path, stop_at=10)
    before = {p.name: p.read_bytes() for p in (tmp_path / "step-00000010").iterdir()}
    steps = 0

    def breaks(model: Any, batch: Any) -> Any:
        nonlocal steps
        steps += 1
        value = squared(model, batch)[0]
        if steps < 4:
            return value
        return value * float("nan") if spoil == "loss" else torch.sqrt(value * 0) + value

    model = net()
    with pytest.raises(Error, match=r"^step 13: the loss is .*; the last save is kept: look at this step's data"):
        run(tmp_path, model, loss=breaks)
    assert all(torch.isfinite(t).all() for t in model.state_dict().values())
    assert {p.name: p.read_bytes() for p in (tmp_path / "step-00000010").iterdir()} == before
    assert saved_step(tmp_path) == 10


# -- on the disk


def test_parts_are_small_and_hold_every_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor larger than a part is cut; sizes are those of the files, headers included."""
    whole, _ = run(tmp_path / "whole", stop_at=3)
    monkeypatch.setattr(training_state, "PART_BYTES", 700)
    run(tmp_path / "small", stop_at=3)
    files = sorted((tmp_path / "small" / "step-00000003").iterdir())
    assert len(files) > 3
    assert all(0 < f.stat().st_size <= 700 for f in files)
    assert any("@" in name and not name.endswith("@0") for f in files for name in TensorFile(f))
    loaded = net(7)
    assert training_state.restore(tmp_path / "small", loaded) == 3
    assert state(loaded) == state(whole)


def test_16_megabytes(tmp_path: Path) -> None:
    """At the real size: 50 MB of weights, nothing trained yet."""
    model = torch.nn.Sequential(torch.nn.Linear(3000, 4000), torch.nn.Linear(100, 100))
    training_state.save(tmp_path, 0, model, make_optimizers(model, SCHEDULE), {})
    sizes = [p.stat().st_size for p in (tmp_path / "step-00000000").iterdir()]
    assert len(sizes) == 4
    assert all(size <= 16_000_000 for size in sizes)
    assert sum(sizes) > 48_000_000


def test_a_save_that_is_cut_off_leaves_the_one_before(tmp_path: Path) -> None:
    """Whatever was written besides: state.json is replaced last."""
    run(tmp_path, stop_at=10)
    shutil.copytree(tmp_path / "step-00000010", tmp_path / "step-00000020")
    (tmp_path / "step-00000020" / "part-000.safetensors").write_bytes(b"half")
    shutil.copytree(tmp_path / "step-00000020", tmp_path / "step-00000020.new")
    run(tmp_path, stop_at=20)
    assert saved(tmp_path) == ["log.jsonl", "state.json", "step-00000020"]
    assert state(run(tmp_path, net(4))[0]) == state(run(tmp_path / "whole")[0])


def spoil_part(folder: Path) -> None:
    path = folder / "step-00000010" / "part-000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_part, r"is not what was saved \(its sha256 differs\); remove '.*' to begin anew"),
        (lambda f: shutil.rmtree(f / "step-00000010"), "cannot read .*part-000.safetensors': No such file"),
        (lambda f: (f / "state.json").write_text("{"), "is damaged"),
        (lambda f: (f / "state.json").write_text('{"format": "another"}'), "is no training state of this recipe"),
    ],
)
def test_a_damaged_save_is_named(tmp_path: Path, spoil: Any, message: str) -> None:
    run(tmp_path, stop_at=10)
    spoil(tmp_path)
    with pytest.raises(Error, match=message):
        run(tmp_path)


def test_another_run_or_model_is_refused(tmp_path: Path) -> None:
    run(tmp_path, stop_at=10)
    with pytest.raises(Error, match=r"was begun with other settings \(steps 30, now 40\); give another folder"):
        run(tmp_path, schedule=dataclasses.replace(SCHEDULE, steps=40))
    with pytest.raises(Error, match=r"\(seed 1, now 2\)"):
        run(tmp_path, seed=2)
    other = net()
    other.last = torch.nn.Linear(16, 2)
    with pytest.raises(Error, match=r"another model \(2 tensors differ: last\.weight \[1, 16\], now \[2, 16\]"):
        run(tmp_path, other)


# -- Ctrl-C

PROGRAM = """
import os, signal, sys
from pathlib import Path
import tests.nano.test_training as t
steps = 0
def loss(model, batch):
    global steps
    steps += 1
    if steps == 12:
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    return t.squared(model, batch)
try:
    done = t.run(Path(sys.argv[1]), loss=loss)[1]
    print("stopped at", done.step)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize(("name", "said"), [("SIGINT", "interrupted"), ("SIGTERM", "stopped at 12")])
def test_ctrl_c_saves_the_step_that_runs(tmp_path: Path, name: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "parts"), name],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, said, "")
    assert saved_step(tmp_path / "parts") == 12
    assert state(run(tmp_path / "parts", net(8))[0]) == state(run(tmp_path / "whole")[0])
