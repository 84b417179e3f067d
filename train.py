"""Train Faster R-CNN: `python train.py train --env=voc`.

This script wires options, data, model and trainer; the run itself is `fit` of training.py.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads: docs/benchmarks.md#a-busy-machine

import fire

import model
import utils.checkpoint as ckpt
import utils.distributed as dist
from data.validate import DataError
from training import TrainingError, build_datasets, build_model, build_trainer, fit, start_run
from utils.command import command
from utils.config import TrainConfig, quoted
from utils.run_folder import run_lock, stored_options


def main(config):
    """Train, evaluate, and write everything to runs/ENV/; `config` is a `TrainConfig`."""
    device, folder, changed = start_run(config)
    split_ids = ckpt.load_checkpoint(folder / "last.pth", mmap=True).get("split_ids") if config.resume else None
    with dist.main_process_first():  # it downloads or generates what is missing
        train_set, eval_set = build_datasets(config, split_ids)
        net, build_kwargs = build_model(config, train_set.classes, eval_set)
    trainer = build_trainer(config, net.to(device))
    with run_lock(folder):
        fit(config, folder, trainer, build_kwargs, train_set, eval_set, changed=changed)
    dist.destroy()
    load_path = quoted(f"{folder}/last.pth")
    print(f"written to {folder}\nnext: python eval.py --load-path={load_path}")


if __name__ == "__main__":
    errors = (DataError, ckpt.CheckpointError, model.WeightsError, TrainingError)
    fire.Fire(command(TrainConfig, main, errors, word="train", stored=stored_options, defaults=model.defaults))
