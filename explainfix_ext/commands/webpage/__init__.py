"""The web page that `explainfix explain` writes. One report is made in this order, each step in its file:

1. `subject.find_subject` turns MODEL, a checkpoint or a model's name, into a network.
2. `run.explain` computes the numbers of each part of the report, into `explained.Explained`.
3. `findings.findings` says what the numbers mean; `page.report_page` arranges sections from `tables` and `pictures`.
4. `html` makes the markup that these three use. `commands/explain.py` calls the steps, and writes the file.
"""
