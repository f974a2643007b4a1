"""One run: the same numbers every time, after an interruption too, and the numbers are the right ones."""

import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import ConvNeXt

import data
from bench import stopping
from bench.engine.checkpoint import Busy, CheckpointFolder
from bench.engine.evaluate import evaluate
from bench.engine.execution import Execution
from bench.engine.train import best_epoch, build_network, plateaued, put_on_device, results, schedule
from bench.errors import EXIT_TERMINATED, UserError
from bench.experiment import Recipe, canonical_json
from models.convnext import insert_attention
from models.description import Attention
from tests.conftest import CPU, Recorder, small_network, small_run, train_small

GOLDEN = Path(__file__).with_name("golden_losses.txt")


def test_golden_losses(tmp_path: Path) -> None:
    """The first three losses of ConvNeXt-Tiny, in fp32 on one thread, are those written down.

    The file was made by this very function; a change here means that the data order, the augmentation, the initial weights, the
    schedule or the optimizer have changed, and with them every record.
    """
    run = small_run()
    run = replace(run, experiment=replace(run.experiment, train_images=10))  # one step an epoch: its loss is the step's
    record = train_small(run, tmp_path, network=build_network(run, 10, None, CPU))
    golden = [float(line) for line in GOLDEN.read_text().splitlines() if not line.startswith("#")]
    # AVX2 and AVX-512 kernels agree to 1e-7 here; a wrong shift, order or rate moves the losses by far more than 1e-4
    assert [entry["train"]["loss"] for entry in record["epochs"]] == pytest.approx(golden, rel=1e-4)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    one, two = (canonical_json(train_small(small_run(seed=1), tmp_path / name)) for name in "ab")
    other = canonical_json(train_small(small_run(seed=2), tmp_path / "c"))
    assert one == two != other


INTERRUPTIONS = [(1, 2), (2, 1), (2, 4), (3, 3)]


@pytest.mark.parametrize("stop_at", INTERRUPTIONS)
@pytest.mark.parametrize("recipe", [{}, {"precision": "bf16", "validation_fraction": 0.25, "regime": "F2", "frozen_epochs": 1}])
def test_interrupted_and_continued_equals_uninterrupted(recipe: dict, stop_at: tuple[int, int], tmp_path: Path) -> None:
    run = small_run(**recipe)
    if run.experiment.recipe.validation_fraction and stop_at[1] > 3:
        stop_at = (stop_at[0], 3)  # a quarter of the images is held out: three steps an epoch
    straight = train_small(run, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        train_small(run, tmp_path / "interrupted", Recorder(stop_at))
    again = Recorder()
    continued = train_small(run, tmp_path / "interrupted", again)
    assert canonical_json(continued) == canonical_json(straight)
    expected_resume = None if stop_at[0] == 1 else stop_at[0] - 1
    assert again.resumed_after == expected_resume
    assert again.epochs == list(range(stop_at[0], 4))


def test_finished_checkpoint_trains_no_further(tmp_path: Path) -> None:
    """Killed between the last checkpoint and the record, a run only writes its record."""
    first = train_small(small_run(), tmp_path)
    again = Recorder()
    assert canonical_json(train_small(small_run(), tmp_path, again)) == canonical_json(first)
    assert again.steps == []


def test_small_network_learns(tmp_path: Path) -> None:
    run = small_run(epochs=25, head_lr=5e-3, backbone_lr=5e-3, crop_padding=0, flip=False)
    accuracies = train_small(run, tmp_path)["epochs"]
    assert accuracies[-1]["train"]["correct"] > 24, "40 images, chance 4"


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    def overflow(module: nn.Module, inputs: tuple[torch.Tensor, ...], logits: torch.Tensor) -> torch.Tensor:
        return logits * float("inf") if len(observer.epochs) == 1 and module.training else logits

    observer, network = Recorder(), small_network()
    network.register_forward_hook(overflow)
    record = train_small(small_run(), tmp_path, observer, network)
    assert record["status"] == "diverged"
    assert record["error"] == "the loss was not finite in epoch 2"
    assert [entry["epoch"] for entry in record["epochs"]] == [1]
    state = CheckpointFolder(tmp_path).load(small_run().configuration_sha256, CPU)
    assert state is not None and all(torch.isfinite(value).all() for value in state["network"].values())


def test_gates_open_and_stand_in_the_record(tmp_path: Path) -> None:
    run = small_run(regime="F2", frozen_epochs=1, head_lr=0.01)
    network = small_network()
    assert isinstance(network, ConvNeXt)
    insert_attention(network, {"P2": Attention("mhsa", heads=2), "P3": Attention("eca")})
    record = train_small(run, tmp_path, network=network)
    gates = [entry["gates"] for entry in record["epochs"]]
    assert all(gate.keys() == {"P2", "P3"} and all(gate.values()) for gate in gates), "they move in the frozen epoch already"
    assert gates[0] != gates[2]
    assert gates[-1]["P2"] == network.features[3].attention.alpha.item()


def test_plain_networks_have_no_gates(tmp_path: Path) -> None:
    assert all("gates" not in entry for entry in train_small(small_run(), tmp_path)["epochs"])


# ---- selection, patience, schedule -----------------------------------------------------------------------------------------


def entries(validation: list[int], test: list[int]) -> list[dict]:
    return [
        {"epoch": i, "validation": {"correct": v, "images": 100, "loss": 1.0}, "test": {"correct": t, "images": 200, "loss": 1.0}}
        for i, (v, t) in enumerate(zip(validation, test, strict=True), 1)
    ]


def test_final_numbers_and_their_epochs() -> None:
    recipe = Recipe(epochs=4, validation_fraction=0.1)
    final = results(entries([10, 30, 30, 20], [50, 60, 90, 80]), recipe, diverged=False, weights_sha256="0")["final"]
    assert final == {
        "best_test": {"epoch": 3, "accuracy": 45.0},
        "last_test": {"epoch": 4, "accuracy": 40.0},
        "best_validation": {"epoch": 2, "accuracy": 30.0},
        "test_at_best_validation": {"epoch": 2, "accuracy": 30.0},
    }


def test_without_a_validation_split_nothing_is_selected_on_it() -> None:
    final = results(entries([1], [50]), Recipe(epochs=1), diverged=False, weights_sha256="0")["final"]
    assert final["best_validation"] is final["test_at_best_validation"] is None


def test_patience() -> None:
    recipe = Recipe(epochs=9, validation_fraction=0.1, patience=2)
    assert not plateaued([], recipe)
    assert not plateaued(entries([5, 4], [0, 0]), recipe)
    assert plateaued(entries([5, 4, 5], [0, 0, 0]), recipe), "an equal accuracy is no better one"
    assert not plateaued(entries([5, 4, 6], [0, 0, 0]), recipe)


def test_early_stop_in_a_run(tmp_path: Path) -> None:
    run = small_run(epochs=12, patience=1, validation_fraction=0.25, head_lr=0.0, backbone_lr=0.0)
    record = train_small(run, tmp_path)
    assert record["stopped_early"] and len(record["epochs"]) == 2
    assert best_epoch(record["epochs"], "validation")["epoch"] == 1


def test_schedule_spans_the_run() -> None:
    recipe = Recipe(epochs=10, warmup_fraction=0.1)
    assert schedule(recipe, 0, 20) == pytest.approx(1 / 20)
    assert schedule(recipe, 19, 20) == schedule(recipe, 20, 20) == 1.0
    assert 0 < schedule(recipe, 199, 20) < 1e-3


# ---- evaluation and data of a run ------------------------------------------------------------------------------------------


def test_evaluation_counts_every_image(tmp_path: Path) -> None:
    run = small_run()
    splits = put_on_device(run, data.load(run.experiment.dataset), CPU)

    class Oracle(nn.Module):
        """Right on the first 15 of 20 images, by the labels that it is given."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            labels = splits.test.labels.clone()
            labels[15:] = (labels[15:] + 1) % 10
            return nn.functional.one_hot(labels, 10).float() * 100

    counts = evaluate(Oracle(), splits.test, small_run().experiment.recipe, Execution())
    assert (counts["correct"], counts["images"]) == (15, 20)
    assert counts["loss"] == pytest.approx(100 * 5 / 20)


def test_validation_images_are_not_trained_on() -> None:
    run = small_run(validation_fraction=0.25)
    splits = put_on_device(run, data.load(run.experiment.dataset), CPU)
    assert splits.sizes == {"train": 30, "validation": 10, "test": 20}
    assert splits.validation is not None

    def pixels(images: torch.Tensor) -> set[bytes]:
        return {np.asarray(image).tobytes() for image in images}

    inner = splits.train.images[:, 4:-4, 4:-4]
    assert not pixels(inner) & pixels(splits.validation.images)


def test_fine_tuning_is_normalised_by_imagenets_statistics() -> None:
    dataset = data.load("tiny_fashion_mnist")
    run = small_run()
    object.__setattr__(run.experiment, "weights", "imagenet1k")
    scale = put_on_device(run, dataset, CPU).test.scale
    assert scale.tolist() == pytest.approx([1 / 255 / 0.229, 1 / 255 / 0.224, 1 / 255 / 0.225])


# ---- checkpoints -------------------------------------------------------------------------------------------------------------


def test_a_run_has_one_holder(tmp_path: Path) -> None:
    with CheckpointFolder(tmp_path).hold(), pytest.raises(Busy), CheckpointFolder(tmp_path).hold():
        pass
    with CheckpointFolder(tmp_path).hold():
        pass


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1  # inside a tensor
    path.write_bytes({"truncated": content[:1000], "text": b"{}", "a flipped bit": bytes(flipped)}[kind])


@pytest.mark.parametrize("kind", ["truncated", "text", "a flipped bit"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = train_small(small_run(), tmp_path)
    checkpoint, again = CheckpointFolder(tmp_path), Recorder()
    damage(checkpoint.last, kind)
    assert canonical_json(train_small(small_run(), tmp_path, again)) == canonical_json(straight)
    assert again.resumed_after == 2
    assert capsys.readouterr().err.startswith(f"{checkpoint.last}: damaged (")


def test_a_damaged_checkpoint_never_takes_the_place_of_a_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged, and killed in the next save: the good one before it is still there."""
    straight = train_small(small_run(), tmp_path)
    checkpoint = CheckpointFolder(tmp_path)
    damage(checkpoint.last, "truncated")

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("bench.engine.checkpoint.write_atomically", killed)
        train_small(small_run(), tmp_path)
    assert canonical_json(train_small(small_run(), tmp_path)) == canonical_json(straight)


def test_without_an_undamaged_checkpoint_the_user_is_told(tmp_path: Path) -> None:
    train_small(small_run(), tmp_path)
    checkpoint = CheckpointFolder(tmp_path)
    for path in (checkpoint.last, checkpoint.previous):
        damage(path, "truncated")
    with pytest.raises(UserError, match=r"last.pt: expected a checkpoint, found a damaged file; delete it to start the run again"):
        train_small(small_run(), tmp_path)


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    train_small(small_run(), tmp_path)
    with pytest.raises(UserError, match="expected a checkpoint of this configuration, found another; delete it"):
        train_small(small_run(head_lr=0.5), tmp_path)


def test_a_run_stays_on_its_type_of_device(tmp_path: Path) -> None:
    train_small(small_run(), tmp_path)
    checkpoint = CheckpointFolder(tmp_path)
    state = checkpoint.load(small_run().configuration_sha256, CPU)
    assert state is not None and state["device"] == "cpu"
    checkpoint.save(state | {"device": "cuda"})
    with pytest.raises(UserError, match="expected a checkpoint of DEVICE=cpu, found one of cuda; set DEVICE=cuda, or delete it"):
        train_small(small_run(), tmp_path)


@pytest.mark.parametrize("mode", [{"blocks": "fused"}, {"depthwise": {4: "triton"}}])
def test_a_run_with_kernels_of_ours_needs_them_to_go_on(
    mode: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.engine.train.triton_works", lambda: False)
    train_small(small_run(), tmp_path)
    checkpoint = CheckpointFolder(tmp_path)
    state = checkpoint.load(small_run().configuration_sha256, CPU)
    assert state is not None
    state["progress"]["execution"] |= mode
    checkpoint.save(state)
    with pytest.raises(UserError, match=r"last.pt: expected Triton, with which the run began.*or delete the checkpoint to start"):
        train_small(small_run(), tmp_path)


def test_a_checkpoint_from_before_sessions_were_told_apart_goes_on(tmp_path: Path) -> None:
    straight = train_small(small_run(), tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        train_small(small_run(), tmp_path / "old", Recorder((2, 2)), begun="then", session={"code": "old"})
    checkpoint = CheckpointFolder(tmp_path / "old")
    state = checkpoint.load(small_run().configuration_sha256, CPU)
    assert state is not None
    assert (state["progress"].pop("begun"), state["progress"].pop("session")) == ("then", {"code": "old"})
    assert state["progress"].pop("earlier") == []
    checkpoint.save(state)
    continued = train_small(small_run(), tmp_path / "old", begun="now", session={"code": "new"})
    assert canonical_json(continued) == canonical_json(straight)


def test_a_finished_run_leaves_its_best_weights_alone(tmp_path: Path) -> None:
    train_small(small_run(), tmp_path)
    CheckpointFolder(tmp_path).finish()
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


# ---- signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [(1, 1), (1, 4), (2, 2), (3, 4)])
@pytest.mark.parametrize(
    ("number", "leaves"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt), (signal.SIGUSR2, SystemExit)]
)
def test_a_signal_leaves_a_checkpoint_at_the_next_step(
    at: tuple[int, int], number: signal.Signals, leaves: type[BaseException], tmp_path: Path
) -> None:
    class Signalled(Recorder):
        def step(self, epoch: int, step: int, steps: int) -> None:
            super().step(epoch, step, steps)
            if (epoch, step) == at:
                signal.raise_signal(number)

    run = small_run(precision="bf16", regime="F2", frozen_epochs=1)
    straight = train_small(run, tmp_path / "straight")
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    stopping.install()
    try:
        with pytest.raises(leaves), stopping.heeding():
            train_small(run, tmp_path / "stopped", Signalled(), checkpoint_seconds=3600)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    again = Recorder()
    assert canonical_json(train_small(run, tmp_path / "stopped", again)) == canonical_json(straight)
    following = [(epoch, step) for epoch in (1, 2, 3) for step in (1, 2, 3, 4) if (epoch, step) > at]
    assert again.steps == following, "not one step is done twice"


def test_a_signal_of_another_kind_asks_no_more_than_the_first() -> None:
    """A batch system sends SIGTERM and SIGUSR2, and each to all processes of a task as well as through the first of them."""
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    stopping.install()
    try:
        with stopping.heeding():
            for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1):
                signal.raise_signal(number)
            with pytest.raises(SystemExit) as left:
                stopping.leave()
        assert left.value.code == EXIT_TERMINATED
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_who_was_not_signalled_leaves_with_the_others() -> None:
    """As a process of torchrun does when another was: all learn of it at the same step."""
    with stopping.heeding(), pytest.raises(SystemExit) as left:
        stopping.leave()
    assert left.value.code == EXIT_TERMINATED


def test_a_second_signal_leaves_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stopping.install()
    try:
        with stopping.heeding():
            for _ in range(3):  # to the group, and by make, and by the shell
                signal.raise_signal(signal.SIGTERM)
            assert stopping.wanted()
            time.sleep(stopping.MOMENT)
            with pytest.raises(SystemExit) as left:
                signal.raise_signal(signal.SIGTERM)
        assert left.value.code == EXIT_TERMINATED
        time.sleep(stopping.MOMENT)
        with pytest.raises(SystemExit):  # nobody heeds it
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # once more to one who is leaving
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_signal_that_comes_while_the_same_one_is_handled_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """To a group of processes both come within microseconds: its own, and the shell's."""
    before, came = signal.getsignal(signal.SIGTERM), iter([True])

    def monotonic() -> float:
        if next(came, False):
            signal.raise_signal(signal.SIGTERM)
        return time.monotonic()

    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=monotonic))
    stopping.install()
    try:
        with stopping.heeding():
            signal.raise_signal(signal.SIGTERM)
            assert next(came, "gone") == "gone"
            with pytest.raises(SystemExit):
                stopping.leave()
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
