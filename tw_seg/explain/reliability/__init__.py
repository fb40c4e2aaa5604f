"""Can a predicted mask be trusted? Features of a prediction, a calibrated score made of them, and how good it is."""
