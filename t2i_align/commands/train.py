"""``t2i-align train``."""

from __future__ import annotations

import shlex

from t2i_align.commands.common import ConfigFile, Overrides, Stopped, is_main_process


def train(config: ConfigFile, overrides: Overrides = None) -> None:
    """Train what a YAML file describes, then export it.

    Overrides are written key.path=value, for example training.max_train_steps=50. Several devices:
    accelerate launch -m t2i_align train CONFIG ...
    """
    from t2i_align.config.loading import load_config

    run = load_config(config, overrides or ())
    # Only a valid configuration is worth the seconds that the training stack takes to import.
    from t2i_align.training.loop import Interrupted
    from t2i_align.training.run import train as train_run

    try:
        result = train_run(run)
    except Interrupted as stop:
        kept = [word for word in overrides or () if not word.startswith("training.resume_from_checkpoint=")]
        again = shlex.join(["t2i-align", "train", str(config), *kept, "training.resume_from_checkpoint=latest"])
        raise Stopped(f"Stopped; {stop} is written. Resume with:\n  {again}") from stop
    if is_main_process():
        done = f"{result.steps} steps in {result.train_seconds:.1f} s"
        done = done if result.trained else f"finished before ({done}), nothing was written"
        print(f"{done}; weights and model card in {result.export_dir}")
