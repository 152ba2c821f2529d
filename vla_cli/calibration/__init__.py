"""Calibrate before you fine-tune: bring the deployment to the base policy, instead of the weights to the deployment.

A camera that hangs elsewhere, another light, another table, an arm that answers more weakly or later, a task that must
be done more gently: weights can learn all that from demonstrations of one instruction, and go deaf while they do. A few
explicit transforms do it without touching a weight:

    look      table, lighting and colours          calibration.look
    camera    where the robot appears              calibration.camera
    action    displacement per command             calibration.action
    delay     how late the gripper follows         calibration.action
    timing    how fast a planned path is followed  calibration.timing

Each is fitted to demonstrations against a few facts about the base's own domain (`domain.json` beside the base, or
measured from base-domain data), applied at the policy's inputs and outputs, written to `policy.json` in numbers that a
person can read, and left out, with its reason, where the demonstrations do not determine it. Nothing here knows a
simulator.

The transforms hold for the deployment they were fitted in. A picture whose median colour is nearer to the base's own
domain is left alone, so that the same policy still serves there; where the two cannot be told apart, or the user says
that the policy serves nowhere else, they stay on.
"""

from __future__ import annotations

from vla_cli.calibration.domain import FILE_NAME, DomainFacts, load_domain, measure_domain, save_domain
from vla_cli.calibration.fitting import calibrate
from vla_cli.calibration.parts import PARTS
from vla_cli.calibration.tint import ALWAYS, are_told_apart
from vla_cli.calibration.transforms import FOLDER, Calibration

__all__ = [
    "ALWAYS",
    "FILE_NAME",
    "FOLDER",
    "PARTS",
    "Calibration",
    "DomainFacts",
    "are_told_apart",
    "calibrate",
    "load_domain",
    "measure_domain",
    "save_domain",
]
