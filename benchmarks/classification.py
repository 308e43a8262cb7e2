"""Sparse variational Student t and Gaussian processes on images of digits.

    python benchmarks/classification.py --data FILE [--train 8000] [--inducing 200] ...

`FILE` is an `.npz` with `images`, shape `(number, 28, 28)`, bytes, and `labels`. A random part
is trained on, another one is tested on. For both processes, of one ReLU network, are printed:
accuracy, mean negative log probability and calibration error of held-out labels, the ELBO per
row, and CPU time per update. Inducing inputs are rows of the training data, equally many of
each class; with `--trained` they and the variances of the network are optimised as well.
"""

import argparse
import dataclasses
import time

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist

import whence as wh
from whence.diagnostics import reliability
from whence.models import nngp


def digits(path, train, test, seed):
    """Return images as vectors of mean square 1 with their labels: to train on, to test on."""
    with np.load(path) as file:
        images, labels = file["images"], file["labels"]
    chosen = np.random.default_rng(seed).permutation(len(labels))[: train + test]
    x = images[chosen].reshape(len(chosen), -1).astype(np.float32) / 255
    x = x / np.sqrt(np.mean(x[:train] ** 2))
    y = labels[chosen].astype(np.int32)
    return (x[:train], y[:train]), (x[train:], y[train:])


def network(depth, trained):
    """Return a ReLU network; its bias variance is a latent if variances are trained."""
    bias = dist.LogNormal(-3.0, 1.0) if trained else 0.05
    layers = [layer for _ in range(depth) for layer in (nngp.Dense(2.0, bias), nngp.ReLU())]
    return nngp.Serial(*layers, nngp.Dense())


def measure(name, model, family, data, held_out, settings):
    """Fit one process and print a row of the table."""
    (x, y), (new_x, new_y) = data, held_out
    steps = settings.epochs * (len(y) // settings.batch)
    engine = wh.BBVI(
        family=family,
        steps=steps,
        samples=settings.samples,
        batch_size=settings.batch,
        draws=settings.draws,
        learning_rate=settings.rate,
    )
    start = time.process_time(), time.perf_counter()
    posterior = wh.infer(wh.condition(model, y, x), engine, key=jr.key(settings.seed))
    used = time.process_time() - start[0], time.perf_counter() - start[1]
    log_probs = nngp.class_log_probs(posterior, new_x, key=jr.key(settings.seed + 1))
    nll = -log_probs[np.arange(len(new_y)), new_y].mean()
    accuracy = np.mean(log_probs.argmax(1) == new_y)
    calibration = reliability(np.exp(log_probs), new_y)
    elbo = posterior.sample.record.elbo[-50:].mean() / len(y)
    print(
        f"{name}: accuracy {accuracy:.4f}, NLL {nll:.4f}, ECE {calibration.error:.4f}, ELBO "
        f"{elbo:.4f} per row; {steps} updates and {settings.draws} draws, "
        f"{used[0]:.0f} s of CPU, {used[1]:.0f} s",
        flush=True,
    )
    if settings.timing:
        print(f"    {1e3 * update_seconds(model, engine, data):.1f} ms of CPU per update")
    found = posterior.sample.record.parameters
    for key in found:
        if np.size(found[key]) == 1:
            print(f"    {key} = {float(np.ravel(found[key])[0]):.4g}")


def update_seconds(model, engine, data):
    """Return CPU time per update, of a second fit: nothing is compiled."""
    x, y = data
    steps = 200
    engine = dataclasses.replace(engine, steps=steps, draws=1)
    target = wh.condition(model, y, x)
    wh.infer(target, engine, key=jr.key(0))
    start = time.process_time()
    wh.infer(target, engine, key=jr.key(1))
    return (time.process_time() - start) / steps


def main():
    """Parse, fit both, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--trained", action="store_true")
    parser.add_argument("--timing", action="store_true")
    parser.add_argument("--only", choices=("svtp", "svgp"))
    for option, default in (
        ("train", 8_000),
        ("test", 2_000),
        ("inducing", 200),
        ("batch", 100),
        ("epochs", 20),
        ("depth", 3),
        ("samples", 4),
        ("draws", 200),
        ("seed", 0),
    ):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--rate", type=float, default=0.01)
    settings = parser.parse_args()
    data, held_out = digits(settings.data, settings.train, settings.test, settings.seed)
    rows = nngp.stratified_rows(data[1], settings.inducing, key=jr.key(settings.seed))
    options = {"jitter": 1e-4, "train_inducing": settings.trained}
    net = network(settings.depth, settings.trained)
    points = {"inducing": wh.Point(), "network.*": wh.Point()} if settings.trained else {}
    print(f"{settings}, {jax.devices()[0]}, jax {jax.__version__}, {jnp.result_type(float)}")
    rest = wh.ScaleMixtureFamily("v")
    if settings.only != "svgp":
        model = nngp.Classification(
            net, nngp.InverseGamma(2.0, 2.0), data[0][rows], 10, **options
        )
        measure("SVTP", model, wh.Factors(points, rest), data, held_out, settings)
    if settings.only != "svtp":
        known = nngp.PointMass(dist.LogNormal(0.0, 3.0))  # its scale is optimised
        model = nngp.Classification(net, known, data[0][rows], 10, **options)
        family = wh.Factors({**points, "scale.value": wh.Point()}, wh.MeanField())
        measure("SVGP", model, family, data, held_out, settings)


if __name__ == "__main__":
    main()
