"""The choice of backend, tile and chunk: automatic, forced, explained."""

from __future__ import annotations

import importlib.util
import threading
from types import ModuleType
from typing import Any

import pytest

from acmix_zoo.ops import dispatch, explain_plan, use_backend
from acmix_zoo.ops.dispatch import backend_name, choose_tile, forced_backend, plan_attention
from acmix_zoo.ops.sliding_window import SlidingWindow, key_extent

WINDOW = SlidingWindow(7)


class TestForcedBackend:
    def test_context_overrides_the_automatic_choice(self) -> None:
        assert plan_attention(56, 56, WINDOW).backend == "tiles"
        with use_backend("offset"):
            with use_backend("global"):
                assert plan_attention(56, 56, WINDOW).backend == "global"
            assert plan_attention(56, 56, WINDOW).backend == "offset"
            with use_backend(None):
                assert plan_attention(56, 56, WINDOW).backend == "tiles"
        assert plan_attention(56, 56, WINDOW).backend == "tiles"

    def test_python_is_the_automatic_choice_without_the_native_library(self) -> None:
        with use_backend("python"):
            assert [plan_attention(side, side, WINDOW).backend for side in (16, 17)] == ["global", "tiles"]
            assert explain_plan((1, 64, 56, 56), 64).startswith("layer: Python, because the backend 'python' was")
            assert backend_name() == "python"

    def test_unknown_backend_is_rejected(self) -> None:
        message = r"Unknown backend 'fast'\. Expected one of reference, global, tiles, offset"
        with pytest.raises(ValueError, match=message), use_backend("fast"):
            pass

    def test_context_affects_only_its_own_thread(self) -> None:
        forced, done = threading.Event(), threading.Event()

        def force_reference() -> None:
            with use_backend("reference"):
                forced.set()
                done.wait(60)

        thread = threading.Thread(target=force_reference)
        thread.start()
        forced.wait(60)
        try:
            assert forced_backend() is None
        finally:
            done.set()
            thread.join()

    def test_environment_variable_forces_a_backend(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ACMIX_BACKEND", "global")
        fresh = imported_again(dispatch)
        assert fresh.explain_plan((1, 64, 56, 56), 64).startswith("layer: Python, because the backend 'global' was")

    def test_unknown_backend_in_the_environment_is_rejected(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ACMIX_BACKEND", "quick")
        with pytest.raises(ValueError, match="Unknown backend 'quick'"):
            imported_again(dispatch).forced_backend()


def imported_again(module: ModuleType) -> ModuleType:
    """Return a second copy of a module, which reads the environment again."""
    spec = importlib.util.spec_from_file_location("fresh_copy", str(module.__file__))
    assert spec is not None and spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    return fresh


class TestTile:
    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_device_entry_overrides_the_chosen_tile(self, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(dispatch.TILES, "cuda", (8, 16))
        expected = (8, 16) if device == "cuda" else choose_tile(56, 56, WINDOW)
        with use_backend("python"):
            assert plan_attention(56, 56, WINDOW, device).tile == expected

    @pytest.mark.parametrize("window", [SlidingWindow(7), SlidingWindow(3, 2), SlidingWindow(5, 1, 2)])
    def test_key_extent_counts_the_positions_between_the_outermost_keys(self, window: SlidingWindow) -> None:
        reach = window.kernel // 2 * window.dilation
        for queries in (1, 4):
            first, last = -reach, (queries - 1) * window.stride + reach
            assert key_extent(queries, window) == last - first + 1


class TestExplainPlan:
    def test_tiles_and_recomputation(self) -> None:
        text = explain_plan((8, 64, 56, 56), 64)
        assert "tiles: 4×7 queries share 10×13 keys, 2.7 times the keys of one window" in text
        assert "of 8 images per chunk, because an image needs" in text and "everything is recomputed" in text

    def test_wide_layers_keep_their_projections(self) -> None:
        assert "gradient: projections are kept" in explain_plan((8, 256, 28, 28), 256, stride=2)

    def test_small_maps_use_the_global_backend_on_the_whole_batch(self) -> None:
        text = explain_plan((8, 512, 7, 7), 512)
        assert "global backend" in text and "8 of 8 images per chunk" in text and "results are kept" in text

    def test_other_devices_have_no_chunks(self) -> None:
        text = explain_plan((8, 64, 56, 56), 64, device="cuda")
        assert "8 of 8 images per chunk, because only a CPU profits from chunks, and the device is cuda" in text

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"heads": 32}, "supports up to 16 heads, but this layer has 32"),
            ({"itemsize": 2}, "computes in float32; these elements have 2 bytes"),
            ({"device": "cuda"}, "runs on a CPU only; this is cuda"),
        ],
    )
    def test_python_runs_what_the_native_library_does_not_take(self, options: dict[str, Any], reason: str) -> None:
        with use_backend("native"):
            text = explain_plan((8, 64, 56, 56), 64, **options)
        assert text.startswith(f"layer: Python, because the native library {reason}\n")

    def test_forced_backend_is_named_as_the_reason(self) -> None:
        with use_backend("offset"):
            assert "attention: offset backend, because it was requested" in explain_plan((1, 64, 56, 56), 64)
