"""What a study is: its configuration, its variants, its records and where they lie. Torch-free."""
