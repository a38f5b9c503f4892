"""The doctor: what is wrong with a checkpoint of any program, by as much as it is given.

    diagnosis = examine(open_subject("DiT-XL-2-256x256.pt"), bounds=None)

subject.py        opens a checkpoint: a file, a store's folder, a step of a study; bounds.py opens the dataset
weights.py        what the file alone shows; training_state.py: optimizer, label rows, EMA
noise.py          what the model makes of noise; interpretations.py, latents.py: of the dataset's latents
diagnosis.py      the findings, the line for people; examine.py puts it together
"""
