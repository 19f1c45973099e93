"""What people give `fit`, for the program that is killed and for quick tests.

`SOURCES` names each kind; `arguments(name)` makes it anew, as a program does at its
start, and returns the arguments of `fit`.
"""

import random
import warnings

import keras
import numpy as np

BACKEND = keras.backend.backend()
SIZE, ROWS, FEATURES, CLASSES = 8, 90, 6, 3


def samples():
    rng = np.random.RandomState(0)
    x = rng.rand(ROWS, FEATURES).astype(np.float32)
    return x, rng.randint(0, CLASSES, ROWS).astype(np.int32)


# Arrays


def arrays():
    x, y = samples()
    return {"x": x, "y": y, "batch_size": SIZE, "class_weight": {0: 2.0}}


def arrays_by_steps():
    return {**arrays(), "steps_per_epoch": 4}


def arrays_in_order():
    x, y = samples()
    weight = np.linspace(0.5, 1.5, ROWS).astype(np.float32)
    given = {"x": x, "y": y, "batch_size": SIZE, "sample_weight": weight}
    return {**given, "shuffle": False, "validation_split": 0.2}


def arrays_of_batches():
    return {**arrays(), "shuffle": "batch"}


def tensors():
    x, y = samples()
    convert = keras.ops.convert_to_tensor
    return {"x": convert(x), "y": convert(y), "batch_size": SIZE}


def dicts():
    x, y = samples()
    return {"x": {"all": x}, "y": y, "batch_size": SIZE}


def frame():
    import pandas

    x, y = samples()
    columns = [f"c{i}" for i in range(FEATURES)]
    return {
        "x": pandas.DataFrame(x, columns=columns),
        "y": pandas.Series(y),
        "batch_size": SIZE,
    }


# PyDataset


class Pieces(keras.utils.PyDataset):
    """Batches cut from arrays, noisy if asked for, in an order of its own if so."""

    def __init__(self, *, own_order=False, noisy=False, **options):
        super().__init__(**options)
        self.x, self.y = samples()
        self.order = np.arange(ROWS)
        self.own_order, self.noisy = own_order, noisy

    @property
    def num_batches(self):
        return -(-ROWS // SIZE)

    def __getitem__(self, index):
        rows = self.order[index * SIZE : (index + 1) * SIZE]
        x = self.x[rows]
        if self.noisy:
            x = x + np.random.rand(*x.shape).astype(np.float32) * random.random()
        return x, self.y[rows]

    def on_epoch_end(self):
        if self.own_order:
            np.random.shuffle(self.order)


def pieces():
    return {"x": Pieces(noisy=True)}


def pieces_in_order():
    return {"x": Pieces(), "shuffle": False, "class_weight": {1: 0.5}}


def pieces_own_order():
    return {"x": Pieces(own_order=True), "shuffle": False}


def pieces_threads():
    return {"x": Pieces(workers=2, max_queue_size=3)}


def pieces_processes():
    return {"x": Pieces(workers=2, use_multiprocessing=True)}


# PyTorch's DataLoader


def _loader(dataset=None, **options):
    import torch

    x, y = samples()
    dataset = dataset or torch.utils.data.TensorDataset(
        torch.tensor(x), torch.tensor(y, dtype=torch.int64)
    )
    loader = torch.utils.data.DataLoader(dataset, batch_size=SIZE, **options)
    return {"x": loader, "shuffle": False}


def loader():
    return _loader(shuffle=True)


def loader_in_order():
    return _loader()


def loader_workers():
    return _loader(shuffle=True, num_workers=2)


def loader_generator():
    import torch

    return _loader(shuffle=True, generator=torch.Generator().manual_seed(3))


def loader_sampler():
    import torch

    weights = torch.linspace(1, 2, ROWS)
    draw = torch.utils.data.WeightedRandomSampler(weights, ROWS)
    return _loader(sampler=draw)


def loader_noisy():
    import torch

    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return ROWS

        def __getitem__(self, index):
            x, y = samples()
            return torch.tensor(x[index]) + torch.rand(FEATURES), int(y[index])

    return _loader(Noisy(), shuffle=True)


def loader_iterable():
    import torch

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            for x, y in zip(*samples(), strict=True):
                yield torch.tensor(x) + torch.rand(FEATURES), int(y)

    return _loader(Stream())


def loader_stateful():
    import torch
    from torchdata.stateful_dataloader import StatefulDataLoader

    x, y = samples()
    dataset = torch.utils.data.TensorDataset(
        torch.tensor(x), torch.tensor(y, dtype=torch.int64)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchdata on this PyTorch
        loader = StatefulDataLoader(dataset, batch_size=SIZE, shuffle=True)
    return {"x": loader, "shuffle": False}


def _hugging_face():
    import datasets

    x, y = samples()
    rows = datasets.Dataset.from_dict({"x": x.tolist(), "y": y.tolist()})
    return rows.with_format("torch")


def _pair(rows):
    import torch

    x = torch.stack([torch.as_tensor(row["x"]) for row in rows])
    return x.float(), torch.tensor([int(row["y"]) for row in rows])


def hugging_face():
    return _loader(_hugging_face(), shuffle=True, collate_fn=_pair)


def hugging_face_stream():
    stream = _hugging_face().to_iterable_dataset(num_shards=3)
    return _loader(stream.shuffle(seed=7, buffer_size=20), collate_fn=_pair)


# Grain


def _grain():
    import grain

    x, y = samples()

    class Noise(grain.transforms.RandomMap):
        def random_map(self, element, rng):
            x, y = element
            return x + rng.random(FEATURES, np.float32), y

    rows = grain.MapDataset.source(list(zip(x, y, strict=True))).seed(3)
    return rows.shuffle().random_map(Noise())


def grain_map():
    return {"x": _grain().batch(SIZE), "shuffle": False}


def grain_iter():
    stream = _grain().repeat().to_iter_dataset()
    stream = stream.batch(SIZE, drop_remainder=True)
    return {"x": stream, "shuffle": False, "steps_per_epoch": 11}


def grain_weighted():
    weights = np.array([2.0, 1.0, 0.5], np.float32)
    weighted = _grain().batch(SIZE).map(lambda batch: (*batch, weights[batch[1]]))
    given = {"x": weighted.repeat(), "steps_per_epoch": len(weighted)}
    return {**given, "shuffle": False}


def grain_loader():
    import grain

    x, y = samples()
    sampler = grain.samplers.IndexSampler(ROWS, shuffle=True, seed=3, num_epochs=1)
    batch = grain.transforms.Batch(SIZE, drop_remainder=True)
    rows = list(zip(x, y, strict=True))
    loader = grain.DataLoader(data_source=rows, sampler=sampler, operations=[batch])
    return {"x": loader, "shuffle": False}


# tf.data


def _dataset():
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(samples())


def dataset():
    return {"x": _dataset().shuffle(40).batch(SIZE).prefetch(2), "shuffle": False}


def dataset_seeded():
    rows = _dataset().cache().shuffle(40, seed=3)
    weights = {0: 2.0, 1: 1.0, 2: 0.5}
    return {"x": rows.batch(SIZE), "shuffle": False, "class_weight": weights}


def dataset_once():
    rows = _dataset().shuffle(40, reshuffle_each_iteration=False)
    return {"x": rows.batch(SIZE), "shuffle": False}


def dataset_endless():
    rows = _dataset().shuffle(40).repeat()
    return {"x": rows.batch(SIZE), "shuffle": False, "steps_per_epoch": 7}


def dataset_twice():
    return {"x": _dataset().shuffle(40).repeat(2).batch(SIZE), "shuffle": False}


def dataset_parallel():
    import tensorflow as tf

    def noisy(row):
        seed = tf.stack([row, 3])
        x, y = (tf.constant(part) for part in samples())
        return x[row] + tf.random.stateless_uniform([FEATURES], seed), y[row]

    rows = tf.data.Dataset.range(ROWS).shuffle(40)
    rows = rows.interleave(
        lambda row: tf.data.Dataset.from_tensors(row), cycle_length=4
    )
    rows = rows.map(noisy, num_parallel_calls=2).batch(SIZE).prefetch(2)
    return {"x": rows, "shuffle": False}


# One's own


class Endless:
    """Batches without an end, that know their place."""

    def __init__(self):
        self.rng = np.random.RandomState(5)
        self.given = 0

    def batches(self):
        x, y = samples()
        while True:
            rows = self.rng.permutation(ROWS)[:SIZE]
            self.given += 1
            yield x[rows] + np.float32(self.given), y[rows]

    def get_state(self):
        return {"rng": self.rng.get_state(), "given": self.given}

    def set_state(self, state):
        self.rng.set_state(state["rng"])
        self.given = state["given"]


def own_generator():
    source = Endless()
    given = {"x": source.batches(), "shuffle": False, "steps_per_epoch": 7}
    return {**given, "data": source}


_PLAIN = (arrays, arrays_by_steps, arrays_in_order, arrays_of_batches, tensors, dicts)
_PIECES = (pieces_in_order, pieces_own_order, pieces_threads, pieces_processes)
_LOADERS = (
    loader,
    loader_in_order,
    loader_workers,
    loader_generator,
    loader_sampler,
    loader_noisy,
    loader_iterable,
    loader_stateful,
    hugging_face,
    hugging_face_stream,
)
_GRAIN = (grain_map, grain_iter, grain_weighted, grain_loader)
_DATASETS = (
    dataset,
    dataset_seeded,
    dataset_once,
    dataset_endless,
    dataset_twice,
    dataset_parallel,
)
SOURCES = {
    each.__name__: each
    for each in (
        *_PLAIN,
        frame,
        pieces,
        *_PIECES,
        *_LOADERS,
        *_GRAIN,
        *_DATASETS,
        own_generator,
    )
}


def arguments(name):
    """Return the arguments of `fit`; `data` among them is `ExactResume`'s.

    Other libraries than Keras's backend are seeded as a program would, which has
    imported them at its beginning.
    """
    if name.startswith(("loader", "hugging_face")):
        import torch

        torch.manual_seed(3)
    if name.startswith("dataset"):
        import tensorflow as tf

        tf.random.set_seed(3)
    return SOURCES[name]()
