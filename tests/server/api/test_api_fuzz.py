"""Every route, called as its OpenAPI document says it may be, and as it says it may not."""

import os

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import CHECKS
from schemathesis.config import SchemathesisConfig as Config
from server_harness import HANG_S, LiveServer

from server.app import create_app
from server.settings import Settings

EXAMPLES = int(os.environ.get("INNERLOOP_FUZZ_EXAMPLES", "10"))  # of each route
KEYED = 0
CHECKED = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
]


schemathesis.serializer.alias("application/zip", "application/octet-stream")
# A body may be too long as well as wrong.
REJECTED = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429, "5xx"]
config = Config.from_dict(
    {
        "request-timeout": HANG_S,
        "checks": {"negative_data_rejection": {"expected-statuses": REJECTED}},
    }
)
schema = schemathesis.openapi.from_dict(create_app(Settings()).openapi(), config=config).exclude(
    path="/sessions/{session_id}/events"  # its answer has no end
)


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_no_call_is_a_server_error(case: Case, guarded: LiveServer) -> None:
    response = case.call(guarded.urls[KEYED], headers={"Authorization": "Bearer operator-key"})
    case.validate_response(response, checks=CHECKS.get_by_names(CHECKED))
