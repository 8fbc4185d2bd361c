"""What every function and command does with every kind of name: two tables for tests/cli/test_names.py."""

NETWORK = "acmix_resnet_pico"
NAMES = {
    "network": NETWORK,
    "tag": f"{NETWORK}.fashion_mnist",
    "folder": "packed",
    "its file": "packed/model.safetensors",
    "its config.json": "packed/config.json",
    "finished run": "finished",
    "its config": "finished/config.yaml",
    "its weights": "finished/weights",
    "repository": "org/pico",
    "revision": "org/pico@main",
    "hf-hub": "hf-hub:org/pico",
    "interrupted run": "interrupted",
    "its checkpoints": "interrupted/checkpoints",
    "checkpoint": "interrupted/checkpoints/best.ckpt",
    "state dict": "bare.pth",
    "safetensors": "bare.safetensors",
    "recipe": "finetune/full",
    "recipe file": "mine.yaml",
    # misspelt or unknown
    "misspelt network": "acmix_resnet_pic",
    "misspelt tag": f"{NETWORK}.fashion",
    "misspelt folder": "./packd",
    "misspelt run": "finishd",
    "misspelt subfolder": "finished/weigths",
    "misspelt best.ckpt": "interrupted/checkpoints/bst.ckpt",
    "misspelt file": "bare.pt",
    "unknown repository": "org/pic",
    "unknown revision": "hf-hub:org/pico@v9",
    "misspelt recipe": "finetune/ful",
}
# Each cell is the expected outcome of passing that name to the column's functions, which the test lists as `CALLS`: the
# loaded weights (shipped, trained, or new for untrained), a key of `ERRORS`, or 'closest'.
BUILDING = """
kind               | model          | weights        | pretrained     | load           | folder         | export
network            | new            | shipped        | shipped        | shipped        | shipped        | shipped
tag                | new            | shipped        | shipped        | shipped        | shipped        | shipped
folder             | shipped        | shipped        | shipped        | shipped        | shipped        | shipped
its file           | shipped        | shipped        | shipped        | shipped        | shipped        | shipped
its config.json    | shipped        | shipped        | shipped        | shipped        | shipped        | shipped
finished run       | shipped        | shipped        | shipped        | shipped        | shipped        | shipped
its config         | shipped        | shipped        | shipped        | shipped        | shipped        | shipped
its weights        | shipped        | shipped        | shipped        | shipped        | shipped        | shipped
repository         | shipped        | shipped        | shipped        | shipped        | shipped        | shipped
revision           | shipped        | shipped        | shipped        | shipped        | shipped        | shipped
hf-hub             | shipped        | shipped        | shipped        | shipped        | shipped        | shipped
interrupted run    | trained        | trained        | trained        | trained        | needs export   | trained
its checkpoints    | trained        | trained        | trained        | trained        | needs export   | trained
checkpoint         | trained        | trained        | trained        | trained        | needs export   | trained
state dict         | no network     | no network     | shipped        | shipped        | needs export   | no task
safetensors        | no network     | no network     | shipped        | shipped        | needs export   | no task
recipe             | not on the Hub | not on the Hub | not on the Hub | not on the Hub | not on the Hub | not on the Hub
recipe file        | is a recipe    | is a recipe    | is a recipe    | is a recipe    | is a recipe    | is a recipe
misspelt network   | closest        | closest        | not a tag      | closest        | closest        | closest
misspelt tag       | closest        | closest        | closest        | closest        | closest        | closest
misspelt folder    | closest        | closest        | closest        | closest        | closest        | closest
misspelt run       | closest        | closest        | closest        | closest        | closest        | closest
misspelt subfolder | closest        | closest        | closest        | closest        | closest        | closest
misspelt best.ckpt | closest        | closest        | closest        | closest        | closest        | closest
misspelt file      | closest        | closest        | closest        | closest        | closest        | closest
unknown repository | not on the Hub | not on the Hub | not on the Hub | not on the Hub | not on the Hub | not on the Hub
unknown revision   | not a revision | not a revision | not a revision | not a revision | not a revision | not a revision
misspelt recipe    | not on the Hub | not on the Hub | not on the Hub | not on the Hub | not on the Hub | not on the Hub
"""
# Here, a cell can also be the name of a recipe, a run or a checkpoint, or what `plan` calculates with.
TRAINING = """
kind               | reproduce      | plan           | config            | resume              | evaluate
network            | shipped        | network        | acmix_resnet_pico | not a checkpoint    | not a checkpoint
tag                | shipped        | network        | not a recipe      | not a checkpoint    | not a checkpoint
folder             | shipped        | network        | not a recipe      | no training state   | no training state
its file           | shipped        | network        | not a recipe      | no training state   | no training state
its config.json    | shipped        | network        | not a recipe      | no training state   | no training state
finished run       | shipped        | recipe         | finished          | no checkpoints left | no checkpoints left
its config         | shipped        | recipe         | finished          | no checkpoints left | no checkpoints left
its weights        | shipped        | network        | finished          | no checkpoints left | no checkpoints left
repository         | shipped        | network        | missing           | missing             | missing
revision           | shipped        | network        | missing           | missing             | missing
hf-hub             | shipped        | network        | not a recipe      | not a checkpoint    | not a checkpoint
interrupted run    | interrupted    | recipe         | interrupted       | best.ckpt           | best.ckpt
its checkpoints    | interrupted    | trained        | interrupted       | best.ckpt           | best.ckpt
checkpoint         | interrupted    | trained        | interrupted       | best.ckpt           | best.ckpt
state dict         | needs export   | no network     | not a recipe      | no training state   | no training state
safetensors        | needs export   | no network     | not a recipe      | no training state   | no training state
recipe             | full           | recipe         | full              | missing             | missing
recipe file        | mine           | recipe         | mine              | no training state   | no training state
misspelt network   | closest        | closest        | closest           | missing             | missing
misspelt tag       | closest        | closest        | closest           | missing             | missing
misspelt folder    | closest        | closest        | missing           | closest             | closest
misspelt run       | closest        | closest        | closest           | closest             | closest
misspelt subfolder | closest        | closest        | closest           | closest             | closest
misspelt best.ckpt | closest        | closest        | closest           | closest             | closest
misspelt file      | closest        | closest        | missing           | closest             | closest
unknown repository | not on the Hub | not on the Hub | missing           | missing             | missing
unknown revision   | not a revision | not a revision | not a recipe      | not a checkpoint    | not a checkpoint
misspelt recipe    | closest        | closest        | closest           | missing             | missing
"""
ERRORS = {
    "no network": r"does not state which network .* create_model\(NAME, pretrained=.* `acmix-zoo convert .* --model",
    "needs export": r"is not a weight folder: .*acmix-zoo export .* or with `acmix-zoo convert`",
    "no task": r"is damaged|is not a Lightning checkpoint of a task",
    "is a recipe": "mine.yaml is a recipe, which has no weights. Expected a weight folder, a run folder",
    "not a tag": f"{NETWORK} has no tag 'acmix_resnet_pic'. Expected fashion_mnist, or a weight folder",
    "not on the Hub": "is neither a path on this machine nor a repository on the Hub. Expected org/name",
    "not a revision": "org/pico has no revision 'v9'. Expected one of its branches, tags or commits",
    "missing": "does not exist. Expected (the name of a recipe|last, best, a run folder)",
    # --config
    "not a recipe": r"is (a|the) .*, which is not a recipe. Expected the name of a recipe .* weights use --model.pretr",
    # --ckpt_path
    "not a checkpoint": "is not a checkpoint. Expected last, best, a run folder .* Use --model.pretrained",
    "no training state": r"is damaged or not a checkpoint of a run. Expected last, best, .* Use --model.pretrained",
    "no checkpoints left": r"the run has no .*\.ckpt. Expected last, best, a run folder .* Use --model.pretrained",
}
# What the error for a misspelt name has to suggest.
CLOSEST = {
    "misspelt network": NETWORK, "misspelt tag": "fashion_mnist", "misspelt folder": "packed",
    "misspelt run": "finished", "misspelt subfolder": "finished/weights",
    "misspelt best.ckpt": "interrupted/checkpoints/best.ckpt", "misspelt file": "bare.pth",
    "misspelt recipe": "finetune/full",
}  # fmt: skip
