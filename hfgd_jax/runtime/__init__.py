"""Processes, devices and files: meshes, several processes as one, storage, signals, how commands end.

Not here: anything that knows of models, data or runs.
"""
