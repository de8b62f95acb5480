"""If these fail, the maps of the report and of the page show as near what is not alike."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pipelines.curation.conftest import kinds
from vfm_ops.curate.projection import place_among, principal_components, project


@pytest.fixture
def vectors() -> tuple[np.ndarray, np.ndarray]:
    """Vectors of five kinds, and which."""
    return kinds([60] * 5, seed=1, spread=0.5)


def test_neighbours_in_the_map_are_neighbours_in_embedding_space(vectors):
    x, kind = vectors
    points = project(x.astype(np.float32))
    assert np.array_equal(points, project(x.astype(np.float32)))
    assert np.abs(points).max() <= 1.0
    distance = np.linalg.norm(points[:, None] - points[None], axis=2) + np.eye(len(points)) * 9
    agree = kind[distance.argsort(axis=1)[:, :5]] == kind[:, None]
    assert agree.mean() > 0.9
    assert project(x[:2]).shape == (2, 2)
    assert np.array_equal(points, project(8 * x.astype(np.float32))), "lengths do not matter"


def test_what_comes_later_lies_among_its_kind(vectors):
    x, kind = vectors
    shown = np.arange(0, len(x), 2)
    y = project(x[shown])
    later = place_among(x[1::2], x[shown], y)
    distance = np.linalg.norm(later[:, None] - y[None], axis=2)
    assert (kind[shown][distance.argmin(axis=1)] == kind[1::2]).mean() > 0.9


def test_principal_components_are_those_of_the_covariance():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 12)) * np.linspace(6, 0.5, 12)
    scores = principal_components(x, 2)
    centred = x - x.mean(axis=0)
    axes = np.linalg.svd(centred)[2][:2].T
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    np.testing.assert_allclose(scores, centred @ axes, atol=1e-4)
    assert not principal_components(np.ones((5, 3)), 2).any()
    assert principal_components(x[:, :1], 2).shape == (400, 2)
