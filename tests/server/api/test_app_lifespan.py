"""`uvicorn server.app:create_app --factory`: the application starts and stops what it owns."""

from pathlib import Path

import httpx
import pytest
from api_calls import ok
from server_harness import make_settings

from server.app import create_app
from server.sessions import DataFolderLocked


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
