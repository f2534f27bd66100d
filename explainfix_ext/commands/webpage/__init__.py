"""Makes the web page that `explainfix explain` writes. `commands/explain.py` calls the first three, in this order:

1. `run.explain` has `subject.find_subject` turn MODEL, a checkpoint or a model's name, into a network; then it computes
   the numbers of each part of the report, into `explained.Explained`.
2. `page.report_page` arranges sections from `tables` and `pictures`, and adds to `missing` what cannot be drawn.
3. `findings.findings` says what the numbers mean, on the page and in the terminal.
4. `html` makes the markup that `page`, `tables` and `pictures` use.
"""
