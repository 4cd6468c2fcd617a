"""The stages of a batch job by themselves."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from serving.batch.jobs import Job
from serving.batch.pipeline import DecodedImage, bounded_map, group_by_size
from serving.model import engine


def sized(name, height, width):
    return DecodedImage(Job(name, name, name), np.zeros((height, width, 3), np.uint8), {"input": name})


def test_groups_are_of_one_size_and_bounded():
    images = [sized(f"{index}", 2 + index % 3, 4) for index in range(20)]
    batches = list(group_by_size(iter(images), 4))
    assert sorted(image.job.name for group in batches for image in group) == sorted(map(str, range(20)))
    for group in batches:
        assert len({image.image_HWC.shape for image in group}) == 1
        assert len(group) <= 4
    assert [len(group) for group in batches] == [3, 4, 4, 4, 3, 2]


def test_images_of_many_sizes_do_not_pile_up():
    taken = []

    def images():
        for index in range(50):
            taken.append(index)
            yield sized(f"{index}", 2 + index, 4)

    groups = group_by_size(images(), 4)
    for done, group in enumerate(groups):
        assert len(group) == 1
        assert len(taken) - done <= 2 * 4


def test_large_images_go_alone(monkeypatch):
    monkeypatch.setattr(engine, "MAX_BATCH_PIXELS", 20)
    batches = group_by_size([sized(f"{index}", 4, 5) for index in range(3)], 4)
    assert [len(group) for group in batches] == [1, 1, 1]


def test_bounded_map_keeps_order_and_bound():
    begun, lock = [], threading.Lock()

    def work(item):
        with lock:
            begun.append(item)
        time.sleep(0.001 * (item % 3))
        return item * item

    with ThreadPoolExecutor(4) as pool:
        for index, result in enumerate(bounded_map(pool, work, range(40), lambda: 5)):
            assert result == index * index
            assert len(begun) <= index + 5


def test_fewer_are_begun_where_images_turn_out_large():
    begun, ahead = [], [8]
    with ThreadPoolExecutor(1) as pool:
        for index, _ in enumerate(bounded_map(pool, begun.append, range(30), lambda: ahead[0])):
            if index >= 7:
                assert len(begun) <= index + 2
            ahead[0] = 1
