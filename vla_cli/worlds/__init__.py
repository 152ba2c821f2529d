"""Worlds a policy can be evaluated in, and demonstrations collected in. A new one is a file here and a line in a table.

A world module offers a class of `vla_cli.worlds.contract.World`, such as `vla_cli.worlds.tabletop.world.TabletopWorld`:
what suites rely on (tasks by condition, a Gymnasium vector environment, and outcomes that keep success, grounding and
locked behaviour apart). A world that can be collected from also offers `vla_cli.worlds.collecting.Collection`: one task
at a time, a single Gymnasium environment, and an expert.
"""

from vla_cli.lookup import Table

WORLDS = Table("world", {"tabletop": "vla_cli.worlds.tabletop.world:TabletopWorld"})

COLLECTABLE = Table("world to collect from", {"tabletop": "vla_cli.worlds.tabletop.collect:TabletopCollection"})
