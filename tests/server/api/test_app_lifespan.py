"""`uvicorn server.app:create_app --factory`: the application starts and stops what it owns."""

import gc
import re
from pathlib import Path

import httpx
import pytest
from api_calls import ok
from server_harness import make_settings

from server.app import create_app
from server.sessions import DataFolderLocked
from server.settings import Settings, SettingsError


@pytest.mark.anyio
async def test_lifespan_owns_redis_and_engine(model_folder: Path, tmp_path: Path) -> None:
    app = create_app(make_settings(model_folder, tmp_path))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        async with app.router.lifespan_context(app):
            assert ok(await http.get("/readyz"))["model"] == "tiny-test"
            second = create_app(make_settings(model_folder, tmp_path))
            with pytest.raises(DataFolderLocked):
                await second.router.lifespan_context(second).__aenter__()
        response = await http.get("/readyz")
        assert response.status_code == 503
    again = create_app(make_settings(model_folder, tmp_path))
    async with again.router.lifespan_context(again):
        pass


@pytest.mark.anyio
async def test_collections_leave_out_what_a_server_starts_with(
    model_folder: Path, tmp_path: Path
) -> None:
    app = create_app(make_settings(model_folder, tmp_path))
    async with app.router.lifespan_context(app):
        assert gc.get_freeze_count() > 100_000  # libraries, the model, the application
        assert len(gc.get_objects()) < gc.get_freeze_count() / 10
    assert gc.get_freeze_count() == 0


@pytest.mark.anyio
async def test_kv_memory_that_holds_no_answer_stops_the_start(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SettingsError, match="nothing can be answered in that") as caught:
        await _started(make_settings(model_folder, tmp_path, kv_bytes=10))
    found = re.search(r"takes (\d+) bytes, .* of 192 tokens (\d+)$", str(caught.value))
    assert found is not None
    short, whole = int(found[1]), int(found[2])
    await _started(make_settings(model_folder, tmp_path, kv_bytes=short))
    assert "whole context of 192 tokens are refused" in caplog.text
    caplog.clear()
    await _started(make_settings(model_folder, tmp_path, kv_bytes=whole))
    assert "KV_BYTES" not in caplog.text


@pytest.mark.anyio
async def test_short_keys_are_warned_of_where_others_may_try_them(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await _started(make_settings(model_folder, tmp_path, operator_keys="secret"))
    assert "characters" not in caplog.text
    await _started(make_settings(model_folder, tmp_path, operator_keys="secret", host="0.0.0.0"))
    assert "1 of the environment's keys have fewer than 16 characters" in caplog.text


async def _started(settings: Settings) -> None:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        pass
