"""The errors a user can mend: one sentence each, saying what, where and what to do."""


class FuncnetError(ValueError):
    """A request that cannot be met. The message is one sentence; the command line exits with 2."""


class RecipeError(FuncnetError):
    """A recipe, or one field of it, is wrong."""


class AdapterError(FuncnetError):
    """The model has no adapter, or its modules are not what the adapter says."""


class BudgetError(FuncnetError):
    """The requested ratio cannot be reached."""


class CalibrationError(FuncnetError):
    """The calibration data is missing, empty or too small."""


class CheckpointError(FuncnetError):
    """A model cannot be loaded from, or saved to, the place asked for."""


class DecompositionError(FuncnetError):
    """The ICA cannot be run on these signals, or no start gave finite maps."""


class NumbersError(FuncnetError):
    """A weight, an activation, a gradient or a score is NaN or infinite."""
