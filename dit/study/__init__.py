"""What a study is: its configuration, variants, runs, records and addresses. Torch-free.

Example:
    config = study_file.load("configs/digits.yaml", ["train.steps=100"])
    run = config.run("mini-S/2")
    layout.train_record(config, run)  # studies/digits/mini-s-2/train.json
    config.training_hash(run)  # binds checkpoints to dataset, variant and recipe
"""
