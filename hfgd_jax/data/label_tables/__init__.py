"""Names, ids and colours of the data sets' classes as their owners list them: plain data.

Not here: the tables made of them (`hfgd_jax/data/labels.py`).
"""
