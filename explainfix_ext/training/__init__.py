"""Trains a network with fixed filters beside the same network learned: the main job.

`explainfix train` calls `runs.train_networks`. For each `config.TrainConfig` it builds the network (`network`, from
`models`), trains it on the images (`trainer`, on `data`), saves it (`checkpoint`) and counts what it costs (`costs`).
`explainfix prune` calls `prune_checkpoint.prune_checkpoint`, which trains with the same `Trainer`.
"""
