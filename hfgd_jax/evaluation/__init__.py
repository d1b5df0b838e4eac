"""Scores of models: mIoU, boundary IoU, recall of small objects; evaluation of checkpoints; records.

Not here: tables for reading (`tools/scores.py`).
"""
