"""One run: the trainer's step, without its checkpoints and logs, on data that lie in memory.

The steps are those of `geoclip.training`; a test compares the weights. The encoders work in bfloat16, which
makes a step twice as fast on processors with matrix units for it, the loss in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.accuracy.world import World
from geoclip.calibration import calibrated_logit_scale
from geoclip.gallery import Gallery
from geoclip.metrics import great_circle_km
from geoclip.model import GeoCLIP
from geoclip.optimisation import learning_rate_schedule, parameter_groups
from geoclip.queue import PlaceQueue, jitter, same_photo
from geoclip.support import CANDIDATES, order_by_support
from geoclip.training import LARGEST_LOGIT_SCALE, start_model
from semivario_kernels import NegativePolicy, semivariogram_info_nce

# the gallery's place with the largest cosine, and the one with the most probability around it, once the
# probabilities are calibrated
MOST_ALIKE, SUPPORTED = ANSWERS = ("most alike", "supported")
CALIBRATED = 500  # validation photos


@dataclass(frozen=True)
class Training:
    """Settings that all contestants share; those of `geoclip demo`, but for batch and queue.

    `logit_scale` is where that parameter starts; `learning_rate` is its and the others' peak, the best one of
    plain InfoNCE in the field of those in `contestants.SETTINGS`. No queue: its places go through the
    location encoder at every step, and no photo asks for them. A larger batch learns more in the same time.
    """

    steps: int = 400
    batch_size: int = 512
    neighbours: int = 7
    queue_size: int = 0
    learning_rate: float = 1e-3
    logit_scale: float = 1 / 0.07
    warm_up: float = 0.1
    weight_decay: float = 0.01
    sigma: tuple[float, ...] = (2.0, 16.0, 64.0, 512.0)
    width: int = 256
    encoded_size: int = 256
    batch_noise_m: float = 150.0
    queue_noise_m: float = 1000.0
    precision: Literal["bfloat16", "float32"] = "bfloat16"


def train(
    world: World,
    rows: NDArray[np.int32],
    policy: Callable[[float], NegativePolicy],
    training: Training,
    seed: int,
    *,
    on_step: Callable[[int], None] = lambda step: None,
    backend: str | None = None,
) -> GeoCLIP:
    """Train a model from the start.

    Args:
        world: the photos.
        rows: (steps, batch_size) training photos of each step.
        policy: from the fraction of the steps done to the policy; applied once the queue is full.
        training: settings.
        seed: of the weights' start and of the noise on places.
        on_step: called after each step with its number.
        backend: of the loss.
    """
    dim = world.train.shape[1]
    model = start_model(
        dim,
        dim,
        training.sigma,
        width=training.width,
        encoded_size=training.encoded_size,
        head="linear",
        seed=seed,
    )
    with torch.no_grad():
        model.logit_scale.fill_(math.log(training.logit_scale))
    queue = PlaceQueue(training.queue_size, dim)
    groups = parameter_groups(
        model.parameters(), learning_rate=training.learning_rate, weight_decay=training.weight_decay
    )
    optimizer = torch.optim.AdamW(groups, fused=True)
    schedule = learning_rate_schedule(
        optimizer, "one_cycle", steps=training.steps, warm_up=training.warm_up, decay=1.0, decay_every=1
    )
    latlon_of = torch.from_numpy(world.train_latlon)
    low_precision = training.precision == "bfloat16"
    for step in range(training.steps):
        batch = torch.from_numpy(rows[step].astype(np.int64))
        latlon, v = latlon_of[batch], world.train[batch].float()
        queue_latlon, queue_v, queue_rows = queue.entries()
        noise = torch.Generator().manual_seed(
            int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])
        )
        places = torch.cat(
            (
                jitter(latlon, training.batch_noise_m, noise),
                jitter(queue_latlon, training.queue_noise_m, noise),
            )
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
            x, y = model.image_encoder(v), model.location_encoder(places.float())
        chosen = policy(step / training.steps) if queue.full else NegativePolicy.none()
        loss = semivariogram_info_nce(
            x.float(),
            y.float(),
            latlon,
            torch.cat((latlon, queue_latlon)),
            model.logit_scale.exp(),
            variogram=world.fit.model if chosen.reads_dissimilarity else None,
            policy=chosen,
            query_embeddings=v,
            gallery_embeddings=torch.cat((v, queue_v.to(v))),
            exclude=same_photo(batch, torch.cat((batch, queue_rows))),
            backend=backend,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(LARGEST_LOGIT_SCALE))
        queue.enqueue(latlon, v, batch)
        on_step(step)
    return model.eval()


def errors_km(
    model: GeoCLIP, world: World, answers: Sequence[str] = ANSWERS
) -> dict[str, NDArray[np.float64]]:
    """Distance of the answered gallery place from the true one, (n,) km, for each of `answers`."""
    gallery = Gallery(model, world.gallery)
    latlon, similarity = gallery.place(world.held_out, min(CANDIDATES, len(world.gallery)))
    answered = {MOST_ALIKE: latlon[:, 0]}
    if SUPPORTED in answers:
        known = slice(min(CALIBRATED, world.validation))
        scale = calibrated_logit_scale(gallery, world.held_out[known], world.held_out_latlon[known])
        first = order_by_support(latlon, similarity, scale, world.fit.model)[:, 0]
        answered[SUPPORTED] = latlon[np.arange(len(first)), first]
    return {answer: great_circle_km(answered[answer], world.held_out_latlon) for answer in answers}
