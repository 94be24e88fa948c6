"""Pictures of the kernels, by the names that pages ask for them: `<!-- picture: stem_conv -->`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from docs.figures import cuda, excite, network, triton

FIGURES: Mapping[str, Callable[[], str]] = {**triton.FIGURES, **excite.FIGURES, **cuda.FIGURES, **network.FIGURES}
