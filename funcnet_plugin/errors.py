"""Names the errors a user can mend: one sentence each, saying what, where and what to do."""


class FuncnetError(ValueError):
    """Says in one sentence why a request cannot be met; the command line exits with 2."""


class RecipeError(FuncnetError):
    """Says that a recipe, or one field of it, is wrong."""


class AdapterError(FuncnetError):
    """Says that a model has no adapter, or that its modules are not what the adapter says."""


class AtlasError(FuncnetError):
    """Says that an atlas cannot be read, is of another model, or has no such network."""


class BudgetError(FuncnetError):
    """Says that the requested ratio cannot be reached."""


class CalibrationError(FuncnetError):
    """Says that the calibration data is missing, empty or too small."""


class CheckpointError(FuncnetError):
    """Says that a model cannot be loaded from, or saved to, the place asked for."""


class DecompositionError(FuncnetError):
    """Says that the ICA cannot be run on these signals, or that no start gave finite maps."""


class NumbersError(FuncnetError):
    """Says that a weight, an activation, a gradient or a score is NaN or infinite."""


class RoomError(FuncnetError):
    """Says that a run does not fit into memory, and what would."""
