"""Ranks that Lightning's own launcher starts: trained.py FOLDER LABEL RANKS DEED.

Lightning starts this script once more for each further rank. The tracker is started where training begins.
"""

from __future__ import annotations

import sys

import lightning
import planted
import torch


class Model(lightning.LightningModule):
    """The smallest that can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        """Return the loss."""
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_train_start(self) -> None:
        """Do what the test wants of this rank."""
        planted.main(*sys.argv[1:])


if __name__ == "__main__":
    trainer = lightning.Trainer(
        devices=int(sys.argv[3]),
        strategy="ddp",
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), torch.utils.data.DataLoader(torch.ones(4, 2)))
