"""Both loaders in the hands of training frameworks, as these are."""

from __future__ import annotations

import itertools
import types

import pytest
import torch

from daskdmed.errors import UsageError
from tests.loading.contract import OfLightDL, OfLoader, OfSlidingWindowDL, names

# of the frameworks' own: of devices, cores, and of what they think could be faster
pytestmark = pytest.mark.filterwarnings("ignore")


def module_that_sees():
    """A LightningModule that keeps what it was given."""
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Conv2d(3, 1, 8)
            self.seen, self.validated = [], []

        def training_step(self, batch, index):
            assert len(batch[0]) == len(batch[1]) == len(batch[2])
            self.seen.append(batch)
            loss = self.model(batch[0].to(self.model.weight.dtype)).mean()
            return {"loss": loss, "patients": batch[1], "smallchunks": batch[2]}

        def on_validation_epoch_start(self):
            self.validated.append([])

        def validation_step(self, batch, index):
            self.validated[-1].append(batch)

        def predict_step(self, batch, index):
            return batch[0].float().mean((1, 2, 3)), batch[1]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    return Module()


def trainer(folder, **options):
    from lightning import Trainer

    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", default_root_dir=folder, **quiet, **options)


class FrameworkContract(OfLoader):
    def test_lightning_fits_and_validates_on_whole_passes(self, tmp_path):
        module = module_that_sees()
        with (
            self.make(**self.finite) as training,
            self.make(**self.finite) as validation,
            self.make(**self.finite) as plain,
        ):
            passes = [names(plain) for _ in range(3)]
            trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(
                module, training, validation
            )
            assert names(module.seen) == passes[0] + passes[1]
            # the sanity check has two batches, and is not taken from the validation
            assert [names(v) for v in module.validated] == [passes[0][:16], *passes[1:]]

    def test_lightning_validates_on_parts(self, tmp_path):
        module = module_that_sees()
        with self.make(**self.finite) as loader, self.make(**self.finite) as plain:
            passes = [names(plain) for _ in range(2)]
            for _ in range(2):
                trainer(tmp_path, limit_val_batches=3).validate(module, loader, verbose=False)
        assert [names(v) for v in module.validated] == [p[:24] for p in passes]

    @pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
    def test_lightning_in_any_precision(self, tmp_path, precision):
        module = module_that_sees()
        options = {"enable_checkpointing": False, "limit_train_batches": 2, "max_epochs": 1}
        with self.make(**self.finite, tfms=torch.Tensor.float) as loader:
            trainer(tmp_path, precision=precision, **options).fit(module, loader)
        assert len(module.seen) == 2

    def test_lightning_predicts_with_patients_in_what_comes_out(self, tmp_path):
        with self.make(**self.finite) as loader:
            found = trainer(tmp_path).predict(module_that_sees(), loader)
            assert len(found) == len(loader)
        assert all(len(means) == len(patients) for means, patients in found)

    def test_lightning_goes_on_in_the_middle_of_an_epoch(self, tmp_path):
        module = module_that_sees()
        from lightning.pytorch.callbacks import ModelCheckpoint

        with self.make(**self.finite) as loader:
            at = len(loader) + 3
            saving = ModelCheckpoint(tmp_path, "middle", every_n_train_steps=at, save_top_k=-1)
            trainer(tmp_path, max_epochs=2, callbacks=[saving]).fit(module, loader)
        again = module_that_sees()
        with self.make(**self.finite) as loader:
            trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(
                again, loader, ckpt_path=tmp_path / "middle.ckpt"
            )
        assert names(again.seen) == names(module.seen[at:])

    def test_fabric_moves_batches(self):
        lightning = pytest.importorskip("lightning")
        fabric = lightning.Fabric(accelerator="cpu", devices=1, precision="bf16-true")
        with self.make() as loader, self.make() as same:
            wrapped = torch.utils.data.DataLoader(loader, batch_size=None)
            moved = fabric.setup_dataloaders(wrapped)
            assert names(itertools.islice(moved, 3)) == names(itertools.islice(same, 3))

    def test_a_stateful_dataloader_goes_on(self):
        stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
        with self.make(**self.finite) as loader:
            loop = iter(wrapped := stateful(loader, batch_size=None))
            names(itertools.islice(loop, 3))
            state = wrapped.state_dict()
            rest = names(loop)
        with self.make(**self.finite) as loader:
            wrapped = stateful(loader, batch_size=None)
            wrapped.load_state_dict(state)
            assert names(wrapped) == rest

    # -- Accelerate -------------------------------------------------------------------

    def test_accelerate_leaves_the_loader_as_it_is(self):
        accelerate = pytest.importorskip("accelerate")
        with self.make() as loader:
            assert accelerate.Accelerator(cpu=True).prepare(loader) is loader

    @pytest.mark.parametrize("process", [0, 1])
    def test_accelerate_is_told_not_to_deal(self, process):
        """Before the processes wait for each other; with the remedy."""
        data = pytest.importorskip("accelerate.data_loader")
        pytest.importorskip("accelerate").PartialState(cpu=True)
        pytest.importorskip("accelerate").Accelerator(cpu=True)
        with self.make() as loader:
            wrapped = torch.utils.data.DataLoader(loader, batch_size=None)
            sharing = {"num_processes": 2, "process_index": process}
            with pytest.raises(UsageError, match="no DataLoader around it"):
                data.prepare_data_loader(wrapped, **sharing, dispatch_batches=False)
            dealt = data.prepare_data_loader(wrapped, **sharing, put_on_device=True)
            dealt.state = types.SimpleNamespace(
                process_index=process, num_processes=2, device=torch.device("cpu")
            )
            with pytest.raises(UsageError, match="no DataLoader around it"):
                next(iter(dealt))
            # one process has nobody to deal to
            alone = data.prepare_data_loader(wrapped, dispatch_batches=False)
            with self.make() as same:
                assert names(itertools.islice(alone, 3)) == names(itertools.islice(same, 3))


class TestLightDL(OfLightDL, FrameworkContract):
    pass


class TestSlidingWindowDL(OfSlidingWindowDL, FrameworkContract):
    pass
