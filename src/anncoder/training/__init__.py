"""Training: the loop, its optimizer, checkpoints, several processes; knows no model and no AnnData."""
