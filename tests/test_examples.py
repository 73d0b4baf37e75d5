"""examples/: the data are the published ones, and a tiny run shows both libraries learning the same. Nothing
is timed here."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("tqdm", reason="examples need the packages of the extra `bench`")
# At the end, so that an installed birnn_ext keeps the upper hand over the one in the tree.
sys.path.append(str(Path(__file__).parents[1]))

from examples import japanese_vowels as example  # noqa: E402

SMALL = ["--epochs", "2", "--hidden", "16", "--lr", "3e-3"]


def test_data_are_the_published_ones():
    train, test = example.load()
    assert (len(train), len(test)) == (270, 370)
    assert train.speaker.bincount().tolist() == [30] * 9
    assert test.speaker.bincount().tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    assert train.x.shape[2] == test.x.shape[2] == 12
    lengths = torch.cat([train.lengths, test.lengths])
    assert (lengths.min(), lengths.max(), lengths.sum()) == (7, 29, 9961)
    assert example.DATA.stat().st_size < 300_000


def test_data_are_scaled_and_padded_with_zeros():
    train, test = example.load()
    for part in (train, test):
        beyond = torch.arange(part.x.shape[1]) >= part.lengths[:, None]
        assert beyond.any() and not part.x[beyond].any()
        # A row ends where its length says: true lengths, not rows filled up with something.
        assert part.x[~beyond].any(dim=1).all()
    inside = train.x[torch.arange(train.x.shape[1]) < train.lengths[:, None]]
    torch.testing.assert_close(inside.mean(0), torch.zeros(12), atol=1e-4, rtol=0)
    torch.testing.assert_close(inside.std(0), torch.ones(12), atol=1e-4, rtol=0)


def test_first_frame_of_the_data():
    with example.np.load(example.DATA, allow_pickle=False) as file:
        assert file["cepstra"][0, :3].tolist() == [18609, -2074, 2616]


def test_rows_are_padded_to_the_longest_of_them():
    train, _ = example.load()
    rows = train.rows(torch.tensor([5, 3]))
    assert rows.x.shape == (2, rows.lengths.max(), 12)
    assert torch.equal(rows.x[1], train.x[3, : rows.x.shape[1]])


@pytest.mark.parametrize("mode", example.MODES)
def test_both_learn_the_same(mode):
    learners = example.train_both(example.arguments([*SMALL, "--mode", mode]))
    facts = example.summary(learners)
    assert len(learners[example.OURS].losses) == 2 * 9
    assert facts["largest_loss_difference"] < 1e-4
    losses = learners[example.OURS].losses
    assert losses[-1] < 0.9 * losses[0]


def test_a_seed_decides_everything():
    args = example.arguments([*SMALL, "--epochs", "1"])
    first, again = (example.train_both(args)[example.OURS].losses for _ in range(2))
    other = example.train_both(example.arguments([*SMALL, "--epochs", "1", "--seed", "1"]))[example.OURS].losses
    assert first == again != other


def test_command_draws_a_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    facts, picture = example.main([*SMALL, "--threads", "1", "--out", str(tmp_path / "new")])
    assert picture.stat().st_size > 10_000
    assert facts["ratio"] > 0 and facts["accuracy"].keys() == {example.THEIRS, example.OURS}
    assert "losses of 18 batches differ by at most" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--mode", "CNN"], ["--hidden", "0"], ["--epochs", "0"], ["--batch", "0"]])
def test_bad_arguments_are_refused(argv, capsys):
    with pytest.raises(SystemExit):
        example.arguments(argv)
    assert argv[0] in capsys.readouterr().err
