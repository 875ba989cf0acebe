"""Training CLIP-style preference scorers on pairs: PickScore, HPS and MPS recipes.

    records ──addressed sampler──> batches ──PairModel──> loss ──accelerate──> checkpoints, best and final
    scorer
                                                 └──> margins ──> held-out accuracy, calibration

`train(config, train_records, validation_records)` is the entry; see `reward_models.training.loop`.
"""
