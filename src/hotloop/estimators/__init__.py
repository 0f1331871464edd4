"""scikit-learn estimators: a net that cross-validates, searches and sits in a pipeline.

Needs ``pip install 'hotloop[sklearn]'``.
"""

from hotloop.errors import require_extra

require_extra("sklearn", "sklearn", "hotloop.estimators")

from hotloop.estimators.classifier import NetClassifier  # noqa: E402 - what is missing first
from hotloop.estimators.regressor import NetRegressor  # noqa: E402

__all__ = ["NetClassifier", "NetRegressor"]
