"""The tutorial's program, in PyTorch and here, step by step from the same weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import models, optim, training

torch = pytest.importorskip("torch", reason="parity needs torch")

BATCHES = (6, 6, 4, 6, 6)  # a partial one among them


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


class Block(torch.nn.Module):
    def __init__(self, channels, features):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(channels, features, 3, padding=1)
        self.bn1 = torch.nn.BatchNorm2d(features)
        self.conv2 = torch.nn.Conv2d(features, features, 3, padding=1)
        self.bn2 = torch.nn.BatchNorm2d(features)
        self.downsample = torch.nn.Conv2d(channels, features, 1)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.downsample(x))


class HResNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.b1, self.b2, self.b3 = Block(3, 64), Block(64, 128), Block(128, 256)
        self.fc1 = torch.nn.Linear(4096, 2048)
        self.fc2 = torch.nn.Linear(2048, 512)
        self.fc3 = torch.nn.Linear(512, 10)

    def forward(self, x):
        for block in (self.b1, self.b2, self.b3):
            x = torch.nn.functional.avg_pool2d(block(x), 2, 2)
        x = torch.relu(self.fc1(x.flatten(1)))
        return self.fc3(torch.relu(self.fc2(x)))


LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean"}
LEAVES |= {"var": "running_var"}


def from_torch(template, state_dict):
    """`template` with PyTorch's values: one rename and one transpose a leaf."""

    def leaf(path, _):
        _, *module, name = (key.key for key in path)  # without the collection
        value = state_dict[".".join([*module, LEAVES.get(name, name)])].numpy()
        axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[value.ndim]
        return jnp.array(value.transpose(axes))  # a copy: theirs goes on moving

    return jax.tree_util.tree_map_with_path(leaf, template)


def test_hresnet_trains_as_pytorchs():
    torch.manual_seed(0)
    theirs = HResNet().double().train()
    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-4)

    model = models.create_model("hresnet", num_classes=10, dtype=jnp.float64)
    init = partial(training.init_variables, model, (32, 32, 3))
    template = jax.eval_shape(init, key=jax.random.key(0))
    variables = from_torch(template, theirs.state_dict())
    schedule = optim.make_schedule("constant", lr=1e-4, total_steps=len(BATCHES))
    tx = optim.make_optimizer("adam", schedule)
    opt_state = tx.init(variables["params"])
    state = training.TrainState(
        step=jnp.zeros((), jnp.int32), opt_state=opt_state, **variables
    )

    def prepare(key, images, labels):  # float64 as it comes; augment works in float32
        return images, jax.nn.one_hot(labels, 10)

    step = jax.jit(partial(training.train_step, model, tx, prepare))

    rng = np.random.default_rng(0)
    for size in BATCHES:
        images = (rng.integers(0, 256, (size, 32, 32, 3)) / 255 - 0.5) / 0.25
        labels = rng.integers(0, 10, size).astype(np.int32)
        state, sums = step(
            state, {"images": images, "labels": labels}, jax.random.key(0)
        )
        x = torch.tensor(images.transpose(0, 3, 1, 2))
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(theirs(x), torch.tensor(labels).long())
        loss.backward()
        optimizer.step()
        assert float(sums["loss"]) / size == pytest.approx(loss.item(), rel=1e-10)

    expected = from_torch(template, theirs.state_dict())
    for part in ("params", "batch_stats"):
        found = jax.tree.leaves(getattr(state, part))
        wanted = jax.tree.leaves(expected[part])
        largest = max(np.abs(leaf).max() for leaf in wanted)
        for a, b in zip(found, wanted, strict=True):
            assert np.abs(a - b).max() <= 1e-8 * largest
