"""Worlds a policy can be evaluated in. A new one is a file here and a line in the table.

A world module offers `World(kwargs)`: see `vla_cli.worlds.tabletop.world.TabletopWorld` for the contract that suites
rely on (tasks by condition, a Gymnasium vector environment, and outcomes that keep success, grounding and locked
behaviour apart).
"""

from vla_cli.lookup import Table

WORLDS = Table("world", {"tabletop": "vla_cli.worlds.tabletop.world:TabletopWorld"})
