"""What a job has asked of models, over all its attempts, and whether it may ask more."""

from __future__ import annotations

from dataclasses import replace

from dspex.bus.errors import BudgetExceeded
from dspex.bus.records import Usage
from dspex.bus.serving.programs.optimizers import JobBudget


class JobMeter:
    """Counts the requests of a job. Used on the loop alone.

    What the journal answers counts too: an attempt asks again for all that the ones before it have asked, so what one attempt
    has counted is what the job has cost so far.

    Attributes:
        used: tokens, money and requests so far.
    """

    def __init__(self, budget: JobBudget) -> None:
        self._budget, self._begun = budget, 0
        self.used = Usage()

    def begin(self) -> BudgetExceeded | None:
        """A request is about to be made, or to be answered from the journal; why it must not be."""
        self._begun += 1
        for most, has, of in (
            (self._budget.requests, self._begun - 1, "requests"),
            (self._budget.tokens, self.used.input_tokens + self.used.output_tokens, "tokens"),
        ):
            if most and has >= most:
                why = f"the budget of the job is reached: {has:,} of {most:,} {of}"
                return BudgetExceeded(why, fix="submit the job anew with a larger budget, fewer rows or a smaller optimizer")
        return None

    def add(self, used: Usage | None) -> None:
        """A request was answered."""
        if used is not None:
            self.used = replace(self.used + used, finish="")
