"""Long files begin first: two processes share the files, and a long one at the end would leave a core idle."""

import pytest

LONGEST = (
    "test_three_nodes",
    "test_docs_run",
    "test_demo_small",
    "test_pareto",
    "test_submit",
    "test_lm_eval",
    "test_http_contract",
    "test_evaluate_faults",
    "test_serving_faults",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
