"""Going on with a loader: epochs, saved states, feedback.

The part of `LightDL` that is about where it stands; what it stands in is `Progress`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from daskdmed.cohort.record import Patient
from daskdmed.core.errors import LoaderClosedError, UsageError
from daskdmed.loading.progress import Progress, epoch_seed, packed_feedback
from daskdmed.loading.stats import LoaderStats

if TYPE_CHECKING:
    from daskdmed.loading.planning import Planning
    from daskdmed.loading.session import Session
    from daskdmed.persistence.catalogue import Catalogue
    from daskdmed.persistence.cluster import Cluster


class Continuing:
    """Epochs, state and feedback of a loader; a base class of `LightDL` alone."""

    batch_size: int
    epoch_length: int | None
    drop_last: bool
    seed: int
    rank: int
    world_size: int
    _catalogue: Catalogue
    _planning: Planning
    _progress: Progress
    _session: Session | None
    _closed: bool
    _closer: weakref.finalize[[], Any] | None
    #: a cluster that a session has handed over to the next one
    _cluster: Cluster | None = None
    #: counters of earlier epochs
    _past: LoaderStats | None = None
    #: whether the next iteration is the rest of one that was interrupted
    _resumed = False
    #: draws of a finite plan, by epoch
    _draws: Mapping[int, int] = {}

    #: ids of the patients, for `feedback`
    _names: frozenset[str] | None = None

    # -- what LightDL has -------------------------------------------------------------

    def stats(self) -> LoaderStats:
        """See `LightDL`."""
        raise NotImplementedError

    def _parameters(self) -> dict[str, Any]:
        raise NotImplementedError

    def _close_with(self, close: Callable[[], None]) -> None:
        """What closing (or forgetting) the loader does from now on."""
        if self._closer is not None:
            self._closer.detach()
        self._closer = weakref.finalize(self, close)

    def _epoch_planning(self) -> Planning:
        """How the visits of the present epoch are chosen."""
        return replace(self._planning, seed=epoch_seed(self.seed, self._progress.epoch))

    # -- epochs -----------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches per iteration, at most.

        A finite plan has fewer when the collector ends visits, or big chunks cannot be read.

        Raises
        ------
        TypeError
            The loader is endless, or nobody can know where its policy ends.
        """
        whole = self._batches_of_plan()
        if whole is None and self.epoch_length is None:
            raise TypeError(
                "this loader is endless (or has a policy of your own, which may end anywhere); "
                "give epoch_length= for it to have a length"
            )
        return min(n for n in (whole, self.epoch_length) if n is not None)

    def _batches_of_plan(self) -> int | None:
        """Our batches of a finite plan, None for others."""
        if not getattr(self._planning.policy, "each_once", False):
            return None
        epoch = self._progress.epoch
        if epoch not in self._draws:
            plan, _ = self._epoch_planning().plan()
            self._draws = {epoch: sum(len(turn) for turn in plan)}
        whole, rest = divmod(self._draws[epoch], self.batch_size)
        if self.drop_last:
            return whole // self.world_size
        dealt = whole + bool(rest)
        return dealt // self.world_size + (self.rank < dealt % self.world_size)

    @property
    def epoch(self) -> int:
        """Number of the present epoch, see `set_epoch`."""
        return self._progress.epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to the first batch of an epoch.

        Every epoch has a plan of its own, made from the seed and its number: another order of
        big chunks, other crops. Within an epoch batches are a function of dataset, parameters,
        seed and epoch. Nothing happens when the epoch is the present one and its plan has not
        ended, so that a loop that calls this at the start of every epoch can be resumed in
        the middle of one. States of patients go on from epoch to epoch.

        An endless plan needs none of this: its iterations go on with one plan, and no big
        chunk leaves memory early between them. The next epoch of a finite plan begins by
        itself with the next iteration.

        Parameters
        ----------
        epoch : int
            0 or more.

        Raises
        ------
        UsageError
            Not such a number.
        LoaderClosedError
            The loader is closed.
        """
        if isinstance(epoch, bool) or int(epoch) != epoch or epoch < 0:
            raise UsageError(f"epoch must be an integer >= 0, got {epoch!r}")
        if self._closed:
            raise LoaderClosedError("the loader is closed; make a new one")
        if epoch == self._progress.epoch and not self._progress.over:
            return
        if self._session is not None:
            self._past = self.stats()
            self._cluster = self._session.hand_over()
            self._session = None
            self._close_with(self._cluster.close)
        self._progress.begin(int(epoch))
        self._resumed = False

    def _begin_iteration(self) -> None:
        """Count batches anew, unless this is the rest of an iteration that was interrupted."""
        resumed, self._resumed = self._resumed, False
        if resumed and self._progress.iterated != self.epoch_length:
            return
        if self._progress.over:
            self.set_epoch(self._progress.epoch + 1)
        self._progress.iterated = 0

    # -- feedback -----------------------------------------------------------------------

    def feedback(self, patient: Patient | str | int, payload: Any) -> int:
        """Tell the collector something about a patient: a loss, an attention map.

        With ``n`` batches taken so far, it counts for batches ``n + feedback_lag`` and later:
        every visit of the patient that is in memory by then sees it in ``context.feedback``
        at its next draw. When there is none it is kept for those that are admitted next; of
        feedback that no draw has seen, the last 64 per patient are kept. The same feedback at
        the same batches gives the same batches, on any cluster, and after
        `load_state_dict`. With several ranks, it is for this rank's draws.

        Parameters
        ----------
        patient : Patient, str or int
            The patient or its id.
        payload : object
            Anything that pickles (for a `state_dict` in JSON: that JSON can hold).

        Returns
        -------
        int
            Number of the first batch, counted from 0, that can differ for it.

        Raises
        ------
        UsageError
            The loader has no such patient, or a collector that does not listen.
        StateError
            The payload cannot be pickled.
        LoaderClosedError
            The loader is closed.
        """
        if self._closed:
            raise LoaderClosedError("the loader is closed; feedback reaches nobody any more")
        if self._progress.mailbox is None:
            raise UsageError(
                "the collector does not listen to feedback: write stateful = True in its class, "
                "or decorate the function with daskdmed.stateful"
            )
        name = str(patient.id if isinstance(patient, Patient) else patient)
        if self._names is None:
            self._names = frozenset(self._catalogue.population.patients)
        if name not in self._names:
            raise UsageError(
                f"feedback to patient {name!r}: the loader has no such patient (it has "
                f"{len(self._catalogue.entries)})"
            )
        return self._progress.mailbox.post(name, packed_feedback(name, payload))

    # -- state --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on with the batch after the last one taken.

        Made of plain values (and of those that a stateful collector keeps): save it as JSON,
        or beside the model's weights. With ``rotation="adaptive"`` what follows is valid but
        not identical.
        """
        return self._progress.to_dict(self._parameters())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the batch at which a state was saved, here or on another machine.

        Call it before the first batch is taken. The first iteration then gives what is left of
        the one that was interrupted; after the last batch of an iteration, a whole one.

        Raises
        ------
        StateError
            The state is damaged, of another dataset, or of other parameters; names the
            differences.
        UsageError
            The loader has already started.
        """
        if self._session is not None:
            raise UsageError("load_state_dict must be called before the loader starts")
        self._progress.load(state, self._parameters())
        self._resumed = True
