"""Policy families: how to load, feed, train and act with one kind of vision-language-action model.

Nothing above this layer names a model class. A family offers `load(base, ...)` returning a policy with the methods of
`vla_cli.policies.flow.FlowPolicy`: `collate`, `losses`, `act`.
"""

from vla_cli.adapter import FLOW, TASK_ADAPTERS
from vla_cli.lookup import Table

POLICIES = Table(
    "policy family", {FLOW: "vla_cli.policies.flow:load", TASK_ADAPTERS: "vla_cli.policies.task_adapters:load"}
)
