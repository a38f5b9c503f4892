"""Sample sets: the noise and labels behind them, the model that draws them, their files and previews."""
