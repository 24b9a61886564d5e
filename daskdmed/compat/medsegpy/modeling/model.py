"""`Model`: a torch module with the verbs of keras that MedSegPy's scripts use.

Arrays are batch x rows x columns [x slices] x channels, as there; inside it is torch. Losses and
metrics are called with (truth, prediction) in that layout, or, torch modules, with (prediction,
truth), channels first.

Not covered: training with more than one device, or in half precision: new code has a torch loop,
or Lightning, over `daskdmed.LightDL`.
"""

from __future__ import annotations

import os
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from daskdmed.compat.medsegpy.config import Config
from daskdmed.compat.medsegpy.losses import METRICS, get_training_loss
from daskdmed.compat.medsegpy.modeling.batches import Batches, epoch
from daskdmed.core import events, progress
from daskdmed.core.checks import check_count
from daskdmed.core.errors import ImageNotFoundError, UsageError, listing, meant
from daskdmed.core.types import Array, PathLike

Logs: TypeAlias = dict[str, float]
Tensor: TypeAlias = torch.Tensor

_OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}


class History:
    """What `Model.fit_generator` gives: `history`, a list of values an epoch for each of "loss",
    the metrics, and both of the validation ("val_loss"...); `epoch`, their numbers."""

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = defaultdict(list)
        self.epoch: list[int] = []

    def add(self, number: int, logs: Mapping[str, float]) -> None:
        """An epoch that is over."""
        self.epoch.append(number)
        for name, value in logs.items():
            self.history[name].append(value)

    def __repr__(self) -> str:
        last = ", ".join(f"{k} {v[-1]:.4g}" for k, v in self.history.items())
        return f"<History of {len(self.epoch)} epochs: {last}>"

    def _repr_html_(self) -> str:
        from daskdmed.compat.medsegpy._html import history_html

        return history_html(self)


class Model:
    """A network, and how it is trained.

    Parameters
    ----------
    module : torch.nn.Module
        Of batch x channels x rows x columns [x slices], giving batch x classes x the same.
    cfg : Config, optional
        Whose LOSS, CLASS_WEIGHTS, INITIAL_LEARNING_RATE and NUM_WORKERS are taken where nothing
        else is said.
    device : str or torch.device, optional
        Where it computes. Default: "cuda" where there is one, else "cpu".
    """

    def __init__(self, module: nn.Module, cfg: Config | None = None, device: Any = None) -> None:
        if not isinstance(module, nn.Module):
            raise UsageError(f"a Model is made of a torch.nn.Module, got {type(module).__name__}")
        self.cfg = cfg or Config()
        found = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.device(found)
        self.module = module.to(self.device)
        self.optimizer: torch.optim.Optimizer | None = None
        #: a callback sets it to end the training after the epoch
        self.stop_training = False
        self._loss: Any = None
        self._metrics: dict[str, Any] = {}

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.module.parameters())
        return f"<Model: {type(self.module).__name__}, {count:,} parameters, on {self.device}>"

    def _repr_html_(self) -> str:
        from daskdmed.compat.medsegpy._html import model_html

        return model_html(self)

    # ------------------------------------------------------------------ training
    def compile(
        self, optimizer: Any = "adam", loss: Any = None, metrics: Sequence[Any] | None = None
    ) -> None:
        """Say how it is trained.

        Parameters
        ----------
        optimizer : str, torch.optim.Optimizer or callable
            "adam", "adamw", "sgd" or "rmsprop", with ``cfg.INITIAL_LEARNING_RATE``; an optimizer of
            this module's parameters; or a function that makes one of them.
        loss : str, callable or torch.nn.Module, optional
            See `daskdmed.compat.medsegpy.losses`. Default: ``cfg.LOSS``.
        metrics : sequence of str or callable, optional
            Further numbers that are reported: "dice", "accuracy", or as a loss.

        Raises
        ------
        UsageError
            No optimizer, loss or metric of that name.
        """
        self._loss = get_training_loss(self.cfg.LOSS if loss is None else loss, self._weights)
        self._metrics = dict(_metric(one) for one in metrics or ())
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        if isinstance(optimizer, torch.optim.Optimizer):
            self.optimizer = optimizer
        elif isinstance(optimizer, str):
            if optimizer.lower() not in _OPTIMIZERS:
                raise UsageError(
                    f"no optimizer {optimizer!r}{meant(optimizer, _OPTIMIZERS)}; there are "
                    f"{listing(list(_OPTIMIZERS))}, or give lambda p: torch.optim.SGD(p, 0.1)"
                )
            rate = float(self.cfg.INITIAL_LEARNING_RATE)
            self.optimizer = _OPTIMIZERS[optimizer.lower()](parameters, lr=rate)
        elif callable(optimizer):
            self.optimizer = optimizer(parameters)
        else:
            raise UsageError(f"an optimizer is a name, one of torch, or makes one: {optimizer!r}")

    @property
    def _weights(self) -> Sequence[float] | None:
        found: Sequence[float] | None = self.cfg.CLASS_WEIGHTS
        return found

    def fit_generator(
        self,
        generator: Any,
        steps_per_epoch: int | None = None,
        epochs: int = 1,
        verbose: int = 1,
        callbacks: Sequence[Any] | None = None,
        validation_data: Any = None,
        validation_steps: int | None = None,
        max_queue_size: int = 10,
        workers: int | None = None,
        use_multiprocessing: bool = False,
        initial_epoch: int = 0,
    ) -> History:
        """Train.

        Parameters
        ----------
        generator, validation_data : loader
            With ``len(loader)`` and ``loader[i]``, or iterators; of batches (x, y, ...).
        steps_per_epoch, validation_steps : int, optional
            Batches an epoch; default all.
        epochs, initial_epoch : int
            Number of the epoch at which training ends, and of the first.
        verbose : int
            0 shows no progress bar.
        callbacks : sequence, optional
            Functions of (epoch, logs), called when an epoch is over; or objects with
            ``on_epoch_end(epoch, logs)``, and perhaps ``set_model(model)``, ``on_train_begin()``,
            ``on_train_end()``.
        max_queue_size, workers : int
            So many batches are made ahead by so many threads (``cfg.NUM_WORKERS``); 0 workers: none
            are.
        use_multiprocessing : bool
            Processes are not used; True is refused.

        Returns
        -------
        History

        Raises
        ------
        UsageError
            `compile` was not called, a loader without batches, or batches without masks.
        """
        if self.optimizer is None:
            raise UsageError("say how to train first: model.compile(optimizer=..., loss=...)")
        if use_multiprocessing:
            raise UsageError("batches are made by threads: use_multiprocessing=False, workers=n")
        count = int(self.cfg.NUM_WORKERS) if workers is None else workers
        options = {"workers": count, "ahead": max_queue_size}
        training = Batches(generator, steps_per_epoch, **options)
        checking = None
        if validation_data is not None:
            checking = Batches(validation_data, validation_steps, **options)
        check_count("epochs", epochs, initial_epoch)
        history, self.stop_training = History(), False
        total = (training.steps + (checking.steps if checking else 0)) * (epochs - initial_epoch)
        callbacks = list(callbacks or ())
        _tell(callbacks, "set_model", self)
        _tell(callbacks, "on_train_begin")
        with _reported("fit", total, show=bool(verbose)) as step:
            for number in range(initial_epoch, epochs):
                logs = self._pass(training, step, train=True)
                training.end_epoch()
                if checking is not None:
                    found = self._pass(checking, step, train=False)
                    checking.end_epoch()
                    logs |= {f"val_{name}": value for name, value in found.items()}
                history.add(number, logs)
                for one in callbacks:
                    getattr(one, "on_epoch_end", one)(number, logs)
                if self.stop_training:
                    break
        _tell(callbacks, "on_train_end")
        return history

    def evaluate_generator(
        self, generator: Any, steps: int | None = None, max_queue_size: int = 10, workers: int = 1
    ) -> Logs:
        """Loss and metrics over a loader, by name; arguments as of `fit_generator`."""
        if self._loss is None:
            raise UsageError("say what the loss is first: model.compile(loss=...)")
        batches = Batches(generator, steps, workers=workers, ahead=max_queue_size)
        return self._pass(batches, lambda: None, train=False)

    def _pass(self, batches: Batches, step: Callable[[], None], *, train: bool) -> Logs:
        """One pass over batches: the means of what is reported, over elements."""
        sums: dict[str, float] = defaultdict(float)
        seen = 0
        with self._mode(train), epoch(batches) as loop:
            for batch in loop:
                x, y = self._tensors(batch)
                with torch.set_grad_enabled(train):
                    predicted = self.module(x)
                    if predicted.shape != y.shape:
                        raise UsageError(
                            f"the model gives {tuple(predicted.shape)}, the masks are "
                            f"{tuple(y.shape)} (batch, classes, extent): check CATEGORIES, "
                            "INCLUDE_BACKGROUND and IMG_SIZE"
                        )
                    loss = _measured(self._loss, y, predicted)
                if train:
                    assert self.optimizer is not None
                    self.optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    self.optimizer.step()
                values = {"loss": loss}
                with torch.no_grad():
                    for name, metric in self._metrics.items():
                        values[name] = _measured(metric, y, predicted.detach())
                for name, value in values.items():
                    sums[name] += float(value.detach()) * len(x)
                seen += len(x)
                step()
        if not seen:
            raise UsageError(
                "the iterator of batches has ended; give one that goes on, or a loader"
            )
        return {name: value / seen for name, value in sums.items()}

    @contextmanager
    def _mode(self, train: bool) -> Iterator[None]:
        """Training or evaluation, and what it was afterwards."""
        before = self.module.training
        self.module.train(train)
        try:
            yield
        finally:
            self.module.train(before)

    def _tensors(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Images and masks of a batch, channels first, on the device."""
        if not isinstance(batch, (tuple, list)) or len(batch) < 2:
            raise UsageError("a batch for training is (x, y, ...): images and their masks")
        x, y = (np.asarray(one, np.float32) for one in batch[:2])
        if np.isnan(y).any():
            raise UsageError(
                "a batch has no masks (y is NaN), so that nothing can be learnt from it: leave "
                "scans without sem_seg_file out (get_sem_seg_dataset_dicts does)"
            )
        if x.ndim == y.ndim - 1:  # slices in the place of channels
            x = x[..., None]
        return self._first(x), self._first(y)

    def _first(self, array: Array) -> Tensor:
        return torch.from_numpy(np.array(array, np.float32)).movedim(-1, 1).to(self.device)

    # ---------------------------------------------------------------- prediction
    def predict_on_batch(self, x: Array) -> Array:
        """Predictions, batch x rows x columns [x slices] x classes, of images like these."""
        with self._mode(False), torch.inference_mode():
            found: Tensor = self.module(self._first(np.asarray(x)))
        return np.ascontiguousarray(found.movedim(1, -1).float().cpu().numpy())

    def inference_generator(
        self,
        generator: Any,
        steps: int | None = None,
        max_queue_size: int = 10,
        workers: int = 1,
        use_multiprocessing: bool = False,
        verbose: int = 0,
    ) -> Iterator[tuple[Array, Array, Array]]:
        """Batch by batch the images (those before any transform, where the loader gives them), the
        masks and the predictions. Arguments as of `fit_generator`.

        Whole scans, in their place, are what ``loader.inference(model)`` gives.
        """
        if use_multiprocessing:
            raise UsageError("batches are made by threads: use_multiprocessing=False, workers=n")
        batches = Batches(generator, steps, workers=workers, ahead=max_queue_size)
        return self._predicted(batches, bool(verbose))

    def _predicted(self, batches: Batches, show: bool) -> Iterator[tuple[Array, Array, Array]]:
        with _reported("inference", batches.steps, show=show) as step, epoch(batches) as loop:
            for x, y, *raw in loop:
                yield (raw[0] if raw else x), y, self.predict_on_batch(x)
                step()

    # ------------------------------------------------------------------- weights
    def save_weights(self, filepath: PathLike) -> None:
        """Write its parameters, as ``torch.save(module.state_dict())``."""
        torch.save(self.module.state_dict(), os.fspath(filepath))

    def load_weights(self, filepath: PathLike) -> None:
        """Read them again.

        Raises
        ------
        UsageError
            They are of another network, or of keras.
        ImageNotFoundError
            There is no such file.
        """
        path = os.fspath(filepath)
        if not os.path.isfile(path):
            raise ImageNotFoundError.of(path, "there is no such file of weights")
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.module.load_state_dict(state)
        except Exception as error:
            raise UsageError(
                f"{path} holds no weights of this network ({type(error).__name__}: {error}); "
                "weights of keras (.h5) cannot be read"
            ) from error

    def summary(self) -> str:
        """The layers, and how many parameters they have."""
        count = sum(p.numel() for p in self.module.parameters())
        return f"{self.module}\n{count:,} parameters on {self.device}"


def _measured(function: Any, y_true: Tensor, y_pred: Tensor) -> Tensor:
    """A loss or metric, as it wants its arguments."""
    if isinstance(function, nn.Module):
        value = function(y_pred, y_true)
    else:
        value = function(y_true.movedim(1, -1), y_pred.movedim(1, -1))
    # keras' functions may give a number for each element
    found: Tensor = torch.as_tensor(value)
    return found.mean() if found.ndim else found


def _metric(given: Any) -> tuple[str, Any]:
    if isinstance(given, str):
        if given.lower() not in METRICS:
            raise UsageError(
                f"no metric {given!r}{meant(given, METRICS)}; there are {listing(list(METRICS))}, "
                "or give a function of (y_true, y_pred)"
            )
        return given, METRICS[given.lower()]
    if not callable(given):
        raise UsageError(f"a metric is a name or a function, got {given!r}")
    return getattr(given, "__name__", type(given).__name__), given


def _tell(callbacks: Sequence[Any], method: str, *arguments: Any) -> None:
    for one in callbacks:
        if hasattr(one, method):
            getattr(one, method)(*arguments)


@contextmanager
def _reported(name: str, total: int, *, show: bool) -> Iterator[Callable[[], None]]:
    """Events of a run of so many batches, and a progress bar over them; gives what is called after
    each."""
    run, done = uuid.uuid4().hex, 0

    def step() -> None:
        nonlocal done
        events.emit(events.BlockDone(run, name, "batches", index=(done,)))
        done += 1

    with progress.bar(run, name, show, unit="batch"):
        events.emit(events.RunStarted(run, name, "batches", total=total, done=0))
        error = ""
        try:
            yield step
        except BaseException as failed:
            error = f"{type(failed).__name__}: {failed}"
            raise
        finally:
            events.emit(
                events.RunFinished(run, name, "batches", total=total, done=done, error=error)
            )
