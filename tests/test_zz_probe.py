import pytest, hypothesis
@pytest.mark.gpu
def test_g(): assert 0
def test_p():
    print(hypothesis.settings().deadline, hypothesis.settings().derandomize)
