"""The error report of a run: a folder of files that a browser opens without a network.

`predictions.py` computes what a run says of each image, `collect.py` keeps a little of each, `write.py` makes
the page. Not here: scores for tables (`evaluation/`).
"""
