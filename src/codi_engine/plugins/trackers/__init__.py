"""Built-in trackers."""

from __future__ import annotations

from typing import Any

from codi_engine.core.plugin import Tracker
from codi_engine.plugins.trackers.announce import Command, Webhook
from codi_engine.plugins.trackers.tensorboard_files import TensorBoard
from codi_engine.plugins.trackers.weights_and_biases import Wandb

TRACKERS: list[type[Tracker[Any]]] = [Wandb, TensorBoard, Webhook, Command]
