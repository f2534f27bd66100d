"""Defines the commands of `explainfix`: the command line's options, progress and tables. The work is done elsewhere.

No file here imports torch, or a room that does, at its top (but progress.py and tables.py, which commands import when
they run): `explainfix_start` shows help and completes command lines without it.

The walk of a command: `cli.main` parses nothing and calls `app.app`; typer calls the command's function in train.py,
prune.py, explain.py or bench.py; that makes a configuration from the options and hands it to `training.runs`,
`training.prune_checkpoint`, `webpage.run` or `benchmarks`; what comes back is printed by tables.py,
or by benchmarks.report.
"""
