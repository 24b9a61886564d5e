from .trainer import DefaultTrainer as DefaultTrainer
