"""The commands that arlat-dynamics adds: sub-command -> (help line, "module:function")."""

COMMANDS = {"dynamics": {"train": ("train the one-step dynamics model on a store", "arlat_dynamics.one_step:main")}}
