"""Sample sets: their noise and labels, the model that draws them, their files and previews.

    generator = Generator(config, trained(config, spec, weights, device, compiled=False), codec, device, batch=64)
    drawn = generator.draw(range(8))

noise.py      noise and labels of sample i; generate.py: draws images from a model
sets.py       the files of a set; grid.py: its preview; adm.py: its export for the ADM evaluator
"""
