"""Batches: determinism, resuming, sharing between processes, and each evaluation record exactly once."""

import contextlib
import itertools
from collections import Counter

import numpy as np
import pytest

from hfgd_jax import config as configuration
from hfgd_jax.data import augment, canvases, pipeline, prepared
from hfgd_jax.errors import UserError

MEAN = (123.7, 116.3, 103.5)


def data_config(**fields):
    config = configuration.default().data
    config.update({"crop": (33, 49), "threads": 2, "prefetch": 2} | fields)
    return config


@pytest.fixture(scope="module")
def shapes(shapes_dir):
    return prepared.open_split(shapes_dir, "shapes", "train")


@pytest.fixture(scope="module")
def camvid(camvid_dir):
    return prepared.open_split(camvid_dir, "camvid", "val")


def take(split, count, config=None, **options):
    options = {"batch_size": 4, "seed": 7, "mean_pixel": MEAN} | options
    with pipeline.train_batches(split, config or data_config(), **options) as batches:
        return list(itertools.islice(batches, count))


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


# -- training --


def test_shapes_and_types_of_a_batch(shapes):
    for batch in take(shapes, 3):
        assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
            "image": ((4, 33, 49, 3), "uint8"),
            "label": ((4, 33, 49), "uint8"),
            "index": ((4,), "int32"),
            "corrupt": ((4,), "bool"),
        }
        assert set(np.unique(batch["label"])) <= {*range(9), 255}
        assert not batch["corrupt"].any()


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(shapes):
    one = take(shapes, 4)
    assert_same(one, take(shapes, 4))
    other = take(shapes, 4, seed=8)
    assert (np.stack([b["index"] for b in one]) != np.stack([b["index"] for b in other])).any()
    assert all((a["image"] != b["image"]).any() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("fields", [{"threads": 1}, {"threads": 5, "prefetch": 1}, {"prefetch": 6}])
def test_threads_and_prefetching_change_nothing(shapes, fields):
    assert_same(take(shapes, 9), take(shapes, 9, data_config(**fields)))


def test_worker_processes_change_nothing(shapes):
    assert_same(take(shapes, 5, start=3), take(shapes, 5, data_config(workers=2), start=3))


def test_resuming_at_every_step_equals_not_stopping(shapes):
    whole = take(shapes, 14)  # two epochs and more of 24 records
    for start in range(14):
        assert_same(whole[start : start + 2], take(shapes, min(2, 14 - start), start=start))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_same_global_batch(shapes, processes):
    whole = take(shapes, 8)
    parts = [take(shapes, 8, process_index=p, process_count=processes) for p in range(processes)]
    joined = [
        {key: np.concatenate([part[step][key] for part in parts]) for key in whole[0]} for step in range(8)
    ]
    assert_same(whole, joined)


def test_each_epoch_takes_each_record_once_in_another_order(shapes):
    index = np.concatenate([b["index"] for b in take(shapes, 12)]).reshape(2, 24)
    assert all(sorted(epoch) == list(range(24)) for epoch in index)
    assert (index[0] != index[1]).any() and (index[0] != np.arange(24)).any()


def test_a_record_looks_different_in_each_epoch(shapes):
    seen = {}
    for batch in take(shapes, 12):
        for index, image in zip(batch["index"], batch["image"], strict=True):
            seen.setdefault(int(index), []).append(image.tobytes())
    assert all(len(set(images)) == 2 for images in seen.values())


def test_a_batch_may_be_larger_than_the_split(shapes):
    (batch,) = take(shapes, 1, batch_size=60)
    assert sorted(Counter(batch["index"].tolist()).values())[0] >= 2


def test_input_scale_multiplies_the_random_scale(shapes):
    fields = {"scale_range": (1.0, 1.0), "photometric": "none", "flip": 0.0, "crop": (161, 193)}
    (batch,) = take(shapes, 1, data_config(input_scale=0.5, **fields))
    for row, index in enumerate(batch["index"]):
        image = shapes.example(int(index))["image"]
        np.testing.assert_array_equal(batch["image"][row, :80, :96], augment.resize_image(image, 0.5))
        assert (batch["label"][row, 80:] == 255).all() and (batch["label"][row, :, 96:] == 255).all()


def test_a_corrupt_record_raises_with_its_name(spoilt_dir):
    split = prepared.open_split(spoilt_dir, "camvid", "train")
    with pytest.raises(prepared.CorruptRecordError, match=r"'camvid' .*split 'train', record [23] "):
        take(split, 5)


def test_a_corrupt_record_is_named_from_a_worker_process(spoilt_dir):
    split = prepared.open_split(spoilt_dir, "camvid", "train")
    with pytest.raises(UserError, match=r"'camvid' .*split 'train', record [23] "):
        take(split, 5, data_config(workers=1))


def test_corrupt_records_are_skipped_and_counted(spoilt_dir):
    split = prepared.open_split(spoilt_dir, "camvid", "train")
    batches = take(split, 3, data_config(skip_corrupt=True))  # two epochs of six records
    index = np.concatenate([b["index"] for b in batches])
    corrupt = np.concatenate([b["corrupt"] for b in batches])
    assert Counter(index[corrupt].tolist()) == {2: 2, 3: 2}
    labels = np.concatenate([b["label"] for b in batches])
    images = np.concatenate([b["image"] for b in batches])
    assert (labels[corrupt] == 255).all() and (images[corrupt] == (124, 116, 104)).all()
    assert all((label != 255).any() for label in labels[~corrupt])
    # the others are what they are without their bad neighbours' being bad
    assert_same(batches, take(split, 3, data_config(skip_corrupt=True, threads=1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 6, "process_count": 4}, "batch size 6: cannot be shared by 4 processes"),
        ({"batch_size": 2, "process_count": 4}, "batch size 2: cannot be shared by 4 processes"),
        ({"process_index": 2, "process_count": 2}, "process 2: want one from 0 to 1"),
    ],
)
def test_batch_sizes_that_processes_cannot_share_are_refused(shapes, options, message):
    with pytest.raises(UserError, match=message):
        take(shapes, 1, **options)


def test_unlabelled_splits_are_not_trained_on(shapes_dir):
    split = prepared.open_split(shapes_dir, "shapes", "train")
    split.labelled = False
    with pytest.raises(UserError, match="has no labels to train on"):
        take(split, 1)


def test_batches_can_be_closed_early_and_twice(shapes):
    batches = pipeline.train_batches(shapes, data_config(), batch_size=4, seed=0, mean_pixel=MEAN)
    next(batches)
    batches.close()
    batches.close()


# -- evaluation --


def evaluate(split, **options):
    options = {"batch_size": 4, "mean_pixel": MEAN, "threads": 2} | options
    with pipeline.eval_batches(split, **options) as batches:
        out = list(batches)
        assert len(out) == batches.length
        return [batch | dict(batch.pop("views")[-1]) for batch in out]  # the last scale


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [6, 12])
def test_evaluation_takes_each_record_once_in_as_many_batches_a_process(
    camvid, shapes_dir, batch_size, processes, threads
):
    """5 records of several sizes and 8 of one: no batch size divides them."""
    for split in (camvid, prepared.open_split(shapes_dir, "shapes", "val")):
        runs = [
            evaluate(split, batch_size=batch_size, process_index=p, process_count=processes, threads=threads)
            for p in range(processes)
        ]
        assert len({len(run) for run in runs}) == 1
        for step in zip(*runs, strict=True):
            assert len({(b["image"].shape, b["label"].shape) for b in step}) == 1
            assert step[0]["image"].shape[0] == batch_size // processes
        index = np.concatenate([b["index"] for run in runs for b in run])
        assert sorted(index[index >= 0]) == list(range(len(split)))
        whole = evaluate(split, batch_size=batch_size)
        joined = [
            {k: np.concatenate([b[k] for b in step]) for k in whole[0]} for step in zip(*runs, strict=True)
        ]
        assert_same(whole, joined)


def together(split, processes, **options):
    """Each process's batches as `evaluate` gives them; all of their worker processes start at once."""
    options = {"mean_pixel": MEAN, "threads": 1, "process_count": processes} | options
    with contextlib.ExitStack() as stack:
        runs = [
            stack.enter_context(pipeline.eval_batches(split, process_index=p, **options))
            for p in range(processes)
        ]
        steps = [[dict(batch) for batch in step] for step in zip(*runs, strict=True)]
        assert {run.length for run in runs} == {len(steps)}
    return steps


@pytest.mark.parametrize(("processes", "batch_size", "workers"), [(1, 3, 2), (3, 3, 1)])
def test_evaluation_takes_each_record_once_from_worker_processes(camvid, processes, batch_size, workers):
    """5 records of several sizes; a worker takes every second batch, or all of them."""
    steps = together(camvid, processes, batch_size=batch_size, workers=workers)
    index = np.concatenate([batch["index"] for step in steps for batch in step])
    assert sorted(index[index >= 0]) == list(range(5))
    for step, whole in zip(steps, evaluate(camvid, batch_size=batch_size), strict=True):
        joined = [batch | dict(batch.pop("views")[-1]) for batch in step]
        assert_same([whole], [{key: np.concatenate([b[key] for b in joined]) for key in whole}])


def test_more_workers_than_batches_are_allowed(shapes_dir):
    split = prepared.open_split(shapes_dir, "shapes", "val")
    (batch,) = evaluate(split, batch_size=9, workers=3)
    assert batch["index"].tolist() == [*range(8), -1]


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_images_and_labels_lie_whole_in_their_canvases(camvid, batch_size):
    fillers = 0
    for batch in evaluate(camvid, batch_size=batch_size):
        assert {k: v.dtype.name for k, v in batch.items()} == {
            "image": "uint8",
            "label": "uint8",
            "image_size": "int32",
            "size": "int32",
            "index": "int32",
            "corrupt": "bool",
        }
        assert all(side % 64 == 1 for side in batch["label"].shape[1:])
        assert all(side % 32 == 1 for side in batch["image"].shape[1:3])
        for row, index in enumerate(batch["index"]):
            image, label = batch["image"][row].copy(), batch["label"][row].copy()
            if index < 0:
                fillers += 1
                assert (label == 255).all() and (image == (124, 116, 104)).all()
                assert tuple(batch["size"][row]) == tuple(batch["image_size"][row]) == (1, 1)
                continue
            example = camvid.example(int(index))
            h, w = batch["size"][row]
            assert (h, w) == example["label"].shape == tuple(batch["image_size"][row])
            np.testing.assert_array_equal(image[:h, :w], example["image"])
            np.testing.assert_array_equal(label[:h, :w], example["label"])
            label[:h, :w], image[:h, :w] = 255, (124, 116, 104)
            assert (label == 255).all() and (image == (124, 116, 104)).all()
    assert (fillers > 0) == (batch_size > 1)


@pytest.mark.parametrize(("geometry", "want"), [("align_corners", (161, 193)), ("half_pixel", (160, 192))])
def test_records_of_one_size_have_one_tight_canvas(shapes_dir, geometry, want):
    split = prepared.open_split(shapes_dir, "shapes", "val")
    batches = evaluate(split, batch_size=3, geometry=geometry)
    assert {b["image"].shape for b in batches} == {(3, *want, 3)}
    assert {b["label"].shape for b in batches} == {(3, *want)}


def test_scales_change_the_image_and_not_the_label(camvid):
    for batch in evaluate(camvid, scales=(1.25, 0.5)):
        for row, index in enumerate(batch["index"]):
            if index < 0:
                continue
            example = camvid.example(int(index))
            small = augment.resize_image(example["image"], 0.5)
            assert tuple(batch["image_size"][row]) == small.shape[:2]
            assert tuple(batch["size"][row]) == example["label"].shape
            np.testing.assert_array_equal(batch["image"][row, : small.shape[0], : small.shape[1]], small)


def test_every_view_is_the_same_image(camvid):
    scales = (0.5, 1.0, 1.75)
    with pipeline.eval_batches(camvid, batch_size=4, mean_pixel=MEAN, scales=scales, threads=2) as batches:
        for batch in batches:
            assert len(batch["views"]) == 3
            for row, index in enumerate(batch["index"]):
                if index < 0:
                    continue
                whole = camvid.example(int(index))["image"]
                for scale, view in zip(scales, batch["views"], strict=True):
                    want = augment.resize_image(whole, scale)
                    h, w = view["image_size"][row]
                    np.testing.assert_array_equal(view["image"][row, :h, :w], want)


def test_a_split_without_labels_is_all_ignored_at_its_own_size(camvid_dir):
    split = prepared.open_split(camvid_dir, "camvid", "val")
    split.labelled = False
    for batch in evaluate(split):
        assert (batch["label"] == 255).all()
        for row, index in enumerate(batch["index"]):
            assert index < 0 or tuple(batch["size"][row]) == split.size(int(index))


def test_corrupt_records_in_evaluation_raise_or_are_ignored(spoilt_dir):
    split = prepared.open_split(spoilt_dir, "camvid", "train")
    with pytest.raises(prepared.CorruptRecordError, match="record 3"):
        evaluate(split)
    batches = evaluate(split, skip_corrupt=True)
    index = np.concatenate([b["index"] for b in batches])
    corrupt = np.concatenate([b["corrupt"] for b in batches])
    assert sorted(index[corrupt]) == [2, 3] and sorted(index[index >= 0]) == list(range(6))
    for batch in batches:
        assert (batch["label"][batch["corrupt"]] == 255).all()


def test_many_sizes_share_few_shapes():
    rng = np.random.default_rng(0)
    sizes = [tuple(int(v) for v in rng.integers(100, 700, 2)) for _ in range(500)]
    for geometry, extra in (("align_corners", 1), ("half_pixel", 0)):
        scales = [augment.as_fraction(scale) for scale in (1.0, 0.5)]
        plan = canvases.plan(sizes, 8, scales, geometry)
        assert 1 < len({canvas for canvas, _ in plan}) <= canvases.MAX_SHAPES
        for canvas, rows in plan:
            for i in rows:
                for canvas_side, half, side in zip(*canvas.images, sizes[i], strict=True):
                    assert i < 0 or (side <= canvas_side and side // 2 <= half)
            assert all(side % 32 == extra for size in (*canvas.images, canvas.label) for side in size)
        taken = [i for _, rows in plan for i in rows if i >= 0]
        assert sorted(taken) == list(range(500))


def test_a_canvas_is_never_a_grid_step_too_large():
    one = [augment.as_fraction(1.0)]
    (canvas, _), *_ = canvases.plan([(33, 65)], 1, one, "align_corners")
    assert canvas.images == ((33, 65),)
    (canvas, _), *_ = canvases.plan([(1, 32)], 1, one, "half_pixel")
    assert canvas.images == ((32, 32),)
    with pytest.raises(UserError, match="geometry 'other'"):
        canvases.plan([(33, 65)], 1, one, "other")
