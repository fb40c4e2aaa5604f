"""Many runs from one file: a W&B sweep file, run here by Optuna, without a server."""
