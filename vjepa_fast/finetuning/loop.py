"""Fine-tunes a model and tests it: from a config to a run folder."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch

from vjepa_fast.config.finetune.schema import FinetuneConfig
from vjepa_fast.config.networks import ModelConfig
from vjepa_fast.evaluation.attentive_classifier import AttentiveClassifier
from vjepa_fast.evaluation.saved_probe import probe_file_name, save_probe
from vjepa_fast.finetuning.batches import FinetuneBatches
from vjepa_fast.finetuning.model import ClipClassifier
from vjepa_fast.finetuning.multi_view import RESULTS, known_results, tested
from vjepa_fast.finetuning.start import (
    make_model,
    pinned_initial,
    read_initial,
    stored_recipe,
    stored_settings,
    trained_model,
    write_origin,
)
from vjepa_fast.finetuning.trainer import FinetuneTrainer
from vjepa_fast.training.checkpoint.format import Checkpoint, checkpoints
from vjepa_fast.training.checkpoint.resume import find_resumable, restore
from vjepa_fast.training.distributed.cpu import prepare_cpu
from vjepa_fast.training.distributed.host_group import HostGroup
from vjepa_fast.training.distributed.launch import init_process_group
from vjepa_fast.training.distributed.peer_watch import PeerWatch
from vjepa_fast.training.loop import make_folder, only_run_in, train
from vjepa_fast.training.monitoring.curves import FINETUNE_OVERVIEW, draw_curves
from vjepa_fast.training.monitoring.metrics import MetricsReporter
from vjepa_fast.training.recipe import settings_of
from vjepa_fast.training.timers import TimedIterator
from vjepa_fast.weights import load_exactly, weights_checksum


def finetune(config: FinetuneConfig) -> dict | None:
    """Run or resume a fine-tuning, then test. Collective under a launcher.

    Signals stop it as they stop a pretraining.

    Returns:
        What RUN/results.json holds; None where it was stopped before its last step. The run's
        folder also has metrics.jsonl, curves.png, tensorboard/, checkpoints/, and the classifier if
        it is attentive, as `vjepa-fast probe` writes one.

    Raises:
        UserError: an error that the user can fix.
    """
    rank, world = init_process_group()
    prepare_cpu(world)
    run = Path(config.output)
    host_group = HostGroup()
    with PeerWatch(host_group):  # from here on an error in one process ends all
        batches = FinetuneBatches(config, rank, world)
        make_folder(run)
        with only_run_in(run, host_group):
            trained = _train(config, run, batches, host_group)
            if rank == 0:
                draw_curves(run, FINETUNE_OVERVIEW)
            return _test(config, run, batches, host_group) if trained else None


def _train(
    config: FinetuneConfig, run: Path, batches: FinetuneBatches, host_group: HostGroup
) -> bool:
    """Train from the newest checkpoint, or from `init.checkpoint`; whether to the last step."""
    classes = batches.target.outputs
    checkpoint = find_resumable(run, settings_of(config), batches.videos, host_group, stored_recipe)
    if checkpoint:
        shape = ModelConfig.model_validate(checkpoint.state["config"]["model"])
        trainer = _build(config, make_model(config, shape, classes), batches)
        restore(trainer, checkpoint)
    else:
        start = pinned_initial(config, host_group)
        shape, encoder = read_initial(config, start)
        model = make_model(config, shape, classes)
        load_exactly(model.encoder, encoder, str(start))
        weights = {name: value.detach().clone() for name, value in model.named_parameters()}
        trainer = _build(config, model, batches)
        trainer.load(weights)
        if host_group.rank == 0:
            write_origin(run, config, start)
    settings = stored_settings(config, shape)

    def reporter(clips: TimedIterator) -> MetricsReporter:
        return MetricsReporter(config, run, trainer, clips, batches.steps, "fine-tuning")

    train(run, settings, config, trainer, batches, host_group, reporter)
    return trainer.step_number == batches.steps


def _build(
    config: FinetuneConfig, model: ClipClassifier, batches: FinetuneBatches
) -> FinetuneTrainer:
    # fp32 means fp32, no TF32: it serves as the reference. In bf16 no GEMM is in fp32.
    torch.set_float32_matmul_precision("highest")
    trainer = FinetuneTrainer(
        model,
        config,
        batches.steps,
        micro_batch=batches.micro_batch,
        accumulation=batches.accumulation,
        bf16=_in_bf16(config, _device()),
    )
    if config.compile:
        for block in model.encoder.blocks:
            # not the call, whose hooks wait for weights
            block.forward = torch.compile(block.forward, dynamic=True)
    return trainer


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _in_bf16(config: FinetuneConfig, device: torch.device) -> bool:
    return config.precision_on(device.type) == "bf16"


def _test(
    config: FinetuneConfig, run: Path, batches: FinetuneBatches, host_group: HostGroup
) -> dict:
    """Test the last checkpoint, unless RUN/results.json is of this test. Collective."""
    checkpoint = Checkpoint.open(checkpoints(run)[-1])
    model, device = trained_model(checkpoint, config, batches.target.outputs), _device()
    identity = {
        "checkpoint": checkpoint.folder.name,
        "step": checkpoint.state["step"],
        "weights": checkpoint.result_weights,
        "crc32": weights_checksum(model.encoder.state_dict()),
    }
    asked = {"step": checkpoint.state["step"], "label": config.label}
    asked |= {"test": json.loads(config.test.model_dump_json()), "manifest": config.data.test}
    asked |= {"test_videos": batches.test_videos, "encoder": identity}
    known = host_group.all_gather(known_results(run, asked))[0]
    if known:
        return known
    head = copy.deepcopy(model.classifier)
    for parameter in model.parameters():  # not the position table, which is added in fp32
        dtype = torch.bfloat16 if _in_bf16(config, device) else torch.float32
        parameter.data = parameter.data.to(device, dtype)
    found = tested(model.to(device), config, batches, device, host_group)
    results = asked | {"num_classes": batches.target.outputs} | found
    if host_group.rank == 0:
        if isinstance(head, AttentiveClassifier):
            header = {
                "label": config.label,
                "classes": list(batches.target.classes),
                "names": list(batches.target.names),
                "test": found["accuracy"],
                "encoder": identity,
                "num_frames": config.data.num_frames,
                "crop_size": config.data.crop_size,
                "segments": 1,  # it reads one clip; the test averages over its views
            }
            save_probe(run / probe_file_name(config.label), head, header)
        (run / RESULTS).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    host_group.barrier()
    return results
