"""What a study is: its configuration, variants, records and addresses. Torch-free.

Example:
    config = study_file.load("configs/digits.yaml", ["train.steps=100"])
    spec = config.spec("mini-S/2")
    layout.train_record(config, spec)  # studies/digits/mini-s-2/train.json
    config.training_hash(spec)  # binds checkpoints to dataset, variant and recipe
"""
