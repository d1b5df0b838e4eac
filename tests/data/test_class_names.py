"""A data set is known by its classes' names, in other spellings and orders."""

import numpy as np
import pytest

from hfgd_jax.data import class_names
from hfgd_jax.data.labels import IGNORE, TABLES
from hfgd_jax.errors import UserError


@pytest.mark.parametrize("background", [False, True])
def test_pascal_context_is_known_in_the_alphabetical_order_and_with_its_background(background):
    """As mmsegmentation has it, in 59 and in 60 classes."""
    known = TABLES["pascal_context"]
    names = sorted("diningtable" if name == "table" else name for name in known.classes)
    table = class_names.known_table(["background", *names] if background else names)
    assert table.name == "pascal_context" and table.num_classes == 59 + background
    for train, name in enumerate(table.classes):
        raw = [i for i, value in table.raw_ids.items() if value == train]
        if name == "background":
            assert train == 0 and raw == [0] and not table.palette[0].any()
        else:
            assert raw == [known.classes.index(name) + 1]  # the owners' files
            np.testing.assert_array_equal(table.palette[train], known.palette[known.classes.index(name)])
    assert (IGNORE in table.raw_ids.values()) != background
    with pytest.raises(UserError, match=r"train id (0: .background|1: .bag)"):
        table.check_order(known)
    known.check_order(known)
    TABLES["camvid"].check_order(known)
