"""Policy families: how to load, feed, train and act with one kind of vision-language-action model.

Nothing above this layer names a model class. A family is a file with a `Policy` of its own (`vla_cli.policies.policy`)
and an instance of `Family` (`vla_cli.policies.family`) that says which bases are of it and how they are loaded.
"""

from vla_cli.adapter import FLOW, TASK_ADAPTERS, TOKENS
from vla_cli.lookup import Table

FAMILIES = Table("policy family", {FLOW: "vla_cli.policies.flow:FAMILY", TOKENS: "vla_cli.policies.tokens:FAMILY"})
"""In the order in which a base's configuration is asked for."""

POLICIES = Table(
    "kind of policy",
    {
        FLOW: "vla_cli.policies.loading:load_policy",
        TOKENS: "vla_cli.policies.loading:load_policy",
        TASK_ADAPTERS: "vla_cli.policies.task_adapters:load",
    },
)
"""What loads a policy, by the family in its `policy.json`."""
