"""Train and evaluate with several seeds: `python -m tools.run_seeds --data=voc --seeds=0,1,2`.

It takes the options of train.py, which trains every seed in runs/ENV-SEED/; eval.py writes eval.json there. What is
complete is not repeated: the same command goes on where it was interrupted.
"""

import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import fire

import model
from utils.command import command
from utils.config import EvalConfig, OptionError, Seeds, TrainConfig, as_text, counted, dashed, option
from utils.metrics import format_value
from utils.run_folder import RUNS, changed_options, check_run_folder

ROOT = Path(__file__).parent.parent


class SeedsConfig(TrainConfig):
    """python -m tools.run_seeds: Train and evaluate with several seeds; print mean and range as a row of a table.

    example: python -m tools.run_seeds --data=voc --seeds=0,1,2
    """

    seed: Seeds = option((0, 1, 2), "Run", "seeds a,b,c of weights, image order, flips and sampling", alias="seeds")
    env: str = option("seeds", "Run", "name of the runs, for their directories runs/ENV-SEED/")


def main(config):
    """Complete the run of every seed as a `SeedsConfig` says; print their results and the row."""
    if config.resume:
        raise OptionError("--resume: leave it out, the same command goes on where it was interrupted")
    for seed in config.seed:  # all names, before anything is deleted
        check_run_folder(RUNS / f"{config.env}-{seed}", resume=True, overwrite=False)
    results = []
    for seed in config.seed:
        results.append(run_seed(config, seed))
        per_class = "  ".join(f"{name} {format_value(ap).strip()}" for name, ap in results[-1]["ap"].items())
        print(f"seed {seed}: mAP {format_value(results[-1]['map']).strip()}  {per_class}")
    print(format_row(config, results))


def run_seed(config, seed):
    """Train and evaluate with one seed, as far as that is not done; return what eval.py writes."""
    folder = RUNS / f"{config.env}-{seed}"
    last, result = folder / "last.pth", folder / "eval.json"
    state = {"resume": last.exists() and not config.overwrite}
    state |= {"overwrite": config.overwrite or not any(folder.glob("[!.]*.pth")), "seed": seed, "env": folder.name}
    run = TrainConfig(**config.model_dump() | state)
    for name, values in changed_options(run, model.defaults).items():
        before, now = map(as_text, values)
        what = f"{folder} was trained with --{dashed(name)}={before}, not {now}"
        raise OptionError(f"{what}: --overwrite deletes the runs, --env names others")
    launch("train.py", "train", *as_words(run))
    if not result.exists() or result.stat().st_mtime <= last.stat().st_mtime:  # else it is that of last.pth
        names = {"device", "deterministic", "num_workers", "score_thresh", "nms_thresh", "max_detections"}
        options = run.model_dump(include=names if run.precision == "auto" else {*names, "precision"})
        launch("eval.py", *as_words(EvalConfig(load_path=str(last), json=str(result), **options)))
    return json.loads(result.read_text(encoding="utf-8"))


def launch(script, *words):
    """Run a script of this project in a process of its own, which a signal ends first; exit if it fails."""
    process = subprocess.Popen([sys.executable, ROOT / script, *words], start_new_session=True)
    try:
        code = process.wait()
    except BaseException:  # KeyboardInterrupt, or SystemExit of a signal
        process.terminate()  # once: the training finishes its step and saves last.pth
        process.wait()
        print("the same command of tools.run_seeds goes on from there")
        raise
    if code:
        sys.exit(f"error: {script} ended with exit code {code}; after mending it the same command goes on from there")


def as_words(config):
    """Return the options of a config that are not the defaults as words of a command line."""
    own = model.defaults(config.model, config.pretrained) if isinstance(config, TrainConfig) else {}
    words = []
    for name, value in config.model_dump(exclude_defaults=True).items():
        if name not in own or value != own[name]:
            text = ",".join(map(str, value)) or "()" if isinstance(value, tuple) else str(value)
            words.append(f"--{dashed(type(config).model_fields[name].alias or name)}={text}")
    return words


def format_row(config, results):
    """Return data, command, and mean and range of the mAP as a row of the README's table."""
    maps, first = [result["map"] for result in results], results[0]
    data = f"{Path(first['data']).name} {first['split']}, {counted(first['n_image'], 'image')}, evaluated in "
    data += f"{first['precision']}, {counted(len(maps), 'seed')}"
    words = as_words(config.model_copy(update={"resume": False, "overwrite": False}))
    line = shlex.join(["python", "-m", "tools.run_seeds", *words])
    values = "n/a" if None in maps else f"{statistics.mean(maps):.3f} ({min(maps):.3f} to {max(maps):.3f})"
    return f"| {data} | `{line}` | {values} |"


if __name__ == "__main__":
    fire.Fire(command(SeedsConfig, main, defaults=model.defaults))
