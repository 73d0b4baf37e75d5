"""Every claim of the five documents that the project grew from, held by our layers.

Three notebooks (two of them the same, in two years) on a bidirectional GRU of one unit, a notebook that
writes a bidirectional RNN out by hand, and a forum thread about a stack of four layers whose second layer "is
not equal". The layers fed by hand are torch.nn's, so that nothing here is compared with itself.
"""

import compare
import numpy as np
import pytest
import torch
from torch import nn

import birnn_ext

T, BACKWARDS = 5, np.arange(4, -1, -1)


@pytest.fixture
def notebook():
    """A bidirectional GRU(1, 1) of ours, a torch.nn.GRU with its reverse weights, and a sequence."""
    bi = birnn_ext.GRU(input_size=1, hidden_size=1, num_layers=1, batch_first=False, bidirectional=True)
    reverse = nn.GRU(input_size=1, hidden_size=1, num_layers=1, batch_first=False, bidirectional=False)
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        setattr(reverse, name, getattr(bi, f"{name}_reverse"))
    return bi, reverse, torch.randn(T, 1, 1)


def test_reverse_output_is_the_latter_half_turned_back(notebook):
    bi, reverse, sequence = notebook
    output, _ = bi(sequence)
    fed_backwards, _ = reverse(sequence[BACKWARDS])
    torch.testing.assert_close(output[:, 0, 1], fed_backwards.flip(0)[:, 0, 0])
    assert compare.differs(output[:, 0, 1], fed_backwards[:, 0, 0])


def test_reverse_state_is_the_odd_row_of_h_n(notebook):
    bi, reverse, sequence = notebook
    output, h_n = bi(sequence)
    _, reverse_h_n = reverse(sequence[BACKWARDS])
    torch.testing.assert_close(h_n[1], reverse_h_n[0])
    assert h_n.shape == (2, 1, 1)


def test_states_are_those_after_the_whole_sequence(notebook):
    """Forward: after the last step; reverse: after the first."""
    bi, _, sequence = notebook
    output, h_n = bi(sequence)
    assert torch.equal(h_n[0], output[-1, :, :1])
    assert torch.equal(h_n[1], output[0, :, 1:])


def test_step_t_has_seen_the_past_forwards_and_the_future_backwards(notebook):
    """Output at t: forward has seen 1..t, reverse n..t; a change at one step shows on one side of it only."""
    bi, _, sequence = notebook
    changed = sequence.clone()
    changed[2] += 1
    same = (bi(sequence)[0] == bi(changed)[0])[:, 0]
    assert same[:, 0].tolist() == [True, True, False, False, False]
    assert same[:, 1].tolist() == [False, False, False, True, True]


def test_forward_half_is_a_layer_of_one_direction(notebook):
    bi, _, sequence = notebook
    forward = nn.GRU(1, 1)
    forward.load_state_dict({k: v for k, v in bi.state_dict().items() if "reverse" not in k})
    output, h_n = forward(sequence)
    torch.testing.assert_close(bi(sequence)[0][..., :1], output)
    torch.testing.assert_close(bi(sequence)[1][:1], h_n)


def test_repr_of_the_notebook():
    assert repr(birnn_ext.GRU(1, 1)) == "GRU(1, 1)"
    assert repr(birnn_ext.GRU(1, 1, bidirectional=True)) == "GRU(1, 1, bidirectional=True)"


def test_directions_come_apart_by_view():
    """`view` splits [forward | reverse] in the last dimension, as 0..4 and 4..0 in the notebook."""
    joined = torch.cat((torch.arange(5), torch.arange(5).flip(0))).view(1, 1, -1)
    assert joined.view(1, 1, 2, -1).tolist() == [[[[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]]]]

    L, B, H = 3, 2, 5
    theirs, ours = compare.pair("GRU", 4, H, L, bidirectional=True)
    x, h_0 = torch.randn(T, B, 4), torch.randn(2 * L, B, H)
    (output, h_n), (expected, expected_h_n) = ours(x, h_0), theirs(x, h_0)
    torch.testing.assert_close(output.view(T, B, 2, H), expected.view(T, B, 2, H))
    torch.testing.assert_close(h_n.view(L, 2, B, H), expected_h_n.view(L, 2, B, H))
    assert torch.equal(h_n.view(L, 2, B, H)[-1, 0], output.view(T, B, 2, H)[-1, :, 0])
    assert torch.equal(h_n.view(L, 2, B, H)[-1, 1], output.view(T, B, 2, H)[0, :, 1])


@pytest.mark.parametrize("zeros", [True, False], ids=["zero_state", "random_state"])
def test_manual_loop(zeros):
    """The fourth document: both directions by hand, in the order of idx and of T - 1 - idx."""
    B, I, H = 4, 2, 3  # noqa: E741
    rnn = birnn_ext.RNN(input_size=I, hidden_size=H, num_layers=1, bidirectional=True)
    names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    assert [n for n, _ in rnn.named_parameters()] == names + [f"{n}_reverse" for n in names]
    sequence = torch.randn(T, B, I)
    h_0 = torch.zeros(2, B, H) if zeros else torch.randn(2, B, H)

    hidden, manual = h_0.clone(), torch.zeros(T, B, 2 * H)
    with torch.inference_mode():
        for idx in range(T):
            for d, (t, suffix) in enumerate(((idx, ""), (T - 1 - idx, "_reverse"))):
                w_ih, w_hh, b_ih, b_hh = (getattr(rnn, name + suffix) for name in names)
                hidden[d] = torch.tanh(sequence[t] @ w_ih.T + b_ih + hidden[d] @ w_hh.T + b_hh)
                manual[t, :, d * H : (d + 1) * H] = hidden[d]
        output, h_n = rnn(sequence, h_0)
    torch.testing.assert_close(output, manual)
    torch.testing.assert_close(h_n, hidden)


@pytest.fixture
def thread():
    """The stack of the forum thread, ours, and torch.nn layers of one direction with its weights."""
    L, B, I, H = 4, 15, 25, 50  # noqa: E741
    stack = birnn_ext.RNN(I, H, L, batch_first=True, bidirectional=True)
    singles = []
    for layer in range(L):
        for suffix in ("", "_reverse"):
            single = nn.RNN(I if layer == 0 else 2 * H, H, 1, batch_first=True)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                setattr(single, f"{name}_l0", nn.Parameter(getattr(stack, f"{name}_l{layer}{suffix}").detach()))
            singles.append(single)
    forward, backward = torch.randn(L, B, H), torch.randn(L, B, H)
    initial = torch.stack((forward, backward), 1).flatten(0, 1)  # row 2 * l + d
    return stack, singles, torch.randn(B, T, I), forward, backward, initial


def test_initial_states_alternate_and_the_reverse_one_is_for_the_last_step(thread):
    """Question 3: row 2l + 1 is the state before the reverse direction's first step, t = T - 1."""
    stack, singles, x, forward, backward, initial = thread
    _, h_n = stack(x, initial)
    _, first = singles[0](x, forward[:1])
    _, second = singles[1](x.flip(1), backward[:1])
    torch.testing.assert_close(h_n[:2], torch.cat((first, second)))


def stacked(singles, x, forward, backward, turn_back):
    """Layer upon layer by hand; `turn_back` flips the reverse output before the two are joined."""
    ends = []
    for layer in range(4):
        out_f, end_f = singles[2 * layer](x, forward[layer : layer + 1])
        out_b, end_b = singles[2 * layer + 1](x.flip(1), backward[layer : layer + 1])
        x = torch.cat((out_f, out_b.flip(1) if turn_back else out_b), -1)
        ends += [end_f, end_b]
    return x, torch.cat(ends)


def test_every_layer_matches_when_the_reverse_output_is_turned_back(thread):
    """Questions 1 and 2: both directions read both outputs of the layer below, in the order of time."""
    stack, singles, x, forward, backward, initial = thread
    output, h_n = stack(x, initial)
    expected, expected_h_n = stacked(singles, x, forward, backward, turn_back=True)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(h_n, expected_h_n, rtol=1e-4, atol=1e-5)


def test_the_posters_second_layer_differs(thread):
    stack, singles, x, forward, backward, initial = thread
    _, h_n = stack(x, initial)
    out_f, _ = singles[0](x, forward[:1])
    out_b, _ = singles[1](x.flip(1), backward[:1])
    as_posted = torch.cat((out_f, out_b), -1)  # the reverse output still runs backwards here
    _, second_forward = singles[2](as_posted, forward[1:2])
    _, second_backward = singles[3](as_posted, backward[1:2])
    assert compare.differs(h_n[2:3], second_forward, by=0.05)
    assert compare.differs(h_n[3:4], second_backward, by=0.05)
    # Fed backwards the second layer is still wrong as long as what it reads is joined that way.
    _, wrong = stacked(singles, x, forward, backward, turn_back=False)
    torch.testing.assert_close(h_n[:2], wrong[:2])
    assert compare.differs(h_n[2:4], wrong[2:4], by=0.05)


def test_deeper_layers_read_both_directions(thread):
    """Question 2: the weights of the second layer have 2H columns, for either direction."""
    stack, *_ = thread
    assert stack.weight_ih_l1.shape == stack.weight_ih_l1_reverse.shape == (50, 100)
    assert stack.weight_ih_l0.shape == stack.weight_ih_l0_reverse.shape == (50, 25)
