"""The commands that arlat-dynamics adds: sub-command -> (help line, "module:function")."""

COMMANDS = {"dynamics": {"train": ("train a dynamics model on its own rollouts", "arlat_dynamics.train_command:main")}}
