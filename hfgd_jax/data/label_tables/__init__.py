"""Names, ids and colours of the data sets' classes as their owners list them; `labels` makes the tables."""
