from tools.benchmarks.runtime_tools import remove_other_outputs

_PARAM = """7767517
5 6
Input                    in0                      0 1 pixels
InnerProduct             linear                   1 1 pixels value 0=5 1=1 2=640
Split                    split                    1 3 value logits first second
Softmax                  softmax                  1 1 first probabilities
Reduction                unknown                  1 1 second unknown_score 0=4
"""


def test_remove_other_outputs_ends_the_network_at_the_logits() -> None:
    lines = remove_other_outputs(_PARAM).splitlines()
    assert lines == ["7767517", "3 6", *_PARAM.splitlines()[2:5]]
