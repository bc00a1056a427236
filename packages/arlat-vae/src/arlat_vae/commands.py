"""The commands that arlat-vae adds: sub-command -> (help line, "module:function")."""

COMMANDS = {"vae": {"train": ("train a VAE on a folder of speech", "arlat_vae.train_command:main")}}
