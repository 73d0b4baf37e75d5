"""Moving existing models over by `convert(model)` and nothing else: a tagger as tutorials write it, and a pretrained model.

The pretrained one is the package arabic-morph-segmenter (MIT licence), which carries its weights: two bidirectional LSTM layers
of 256 units under a conditional random field. It is of the extra `tryout`.
"""

import copy

import compare
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

import birnn_ext

# ---- a tagger that was written for torch.nn ----

SENTENCES = [
    ("the dog ate the apple", "D N V D N"),
    ("everybody read that book", "N V D N"),
    ("a bird sang", "D N V"),
    ("she sings", "N V"),
]


class Tagger(nn.Module):
    """Packs, calls flatten_parameters, makes its own initial state, and reads the layer's attributes: as people do."""

    def __init__(self, words, tags, mode):
        super().__init__()
        self.embedding = nn.Embedding(words, 8, padding_idx=0)
        self.rnn = getattr(nn, mode)(8, 6, num_layers=2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * self.rnn.hidden_size, tags)
        for name, weight in self.rnn.named_parameters():
            if "weight_hh" in name:
                nn.init.orthogonal_(weight)

    def initial(self, batch):
        state = self.out.weight.new_zeros(2 * self.rnn.num_layers, batch, self.rnn.hidden_size)
        return (state, state.clone()) if self.rnn.mode == "LSTM" else state

    def forward(self, words, lengths):
        self.rnn.flatten_parameters()
        packed = pack_padded_sequence(self.embedding(words), lengths, batch_first=True, enforce_sorted=False)
        output, _ = self.rnn(packed, self.initial(len(words)))
        return self.out(pad_packed_sequence(output, batch_first=True)[0])


def numbers():
    """(words [B, T], lengths [B], tags [B, T], -100 where there is none) and the sizes of both vocabularies."""
    texts = [(sentence.split(), tags.split()) for sentence, tags in SENTENCES]
    vocabulary = {word: i for i, word in enumerate(sorted({w for words, _ in texts for w in words}), 1)}
    names = {tag: i for i, tag in enumerate("DNV")}
    words = pad_sequence([torch.tensor([vocabulary[w] for w in words]) for words, _ in texts], batch_first=True)
    tags = pad_sequence([torch.tensor([names[t] for t in tags]) for _, tags in texts], batch_first=True, padding_value=-100)
    return words, torch.tensor([len(words) for words, _ in texts]), tags, len(vocabulary) + 1, len(names)


def train(model, words, lengths, tags, steps=25):
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = cross_entropy(model(words, lengths).flatten(0, 1), tags.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("mode", ["LSTM", "GRU", "RNN"])
def test_a_tagger_learns_the_same(mode):
    words, lengths, tags, vocabulary, names = numbers()
    theirs = Tagger(vocabulary, names, mode).double()
    ours = birnn_ext.convert(copy.deepcopy(theirs))
    assert type(ours.rnn) is getattr(birnn_ext, mode)
    found, expected = train(ours, words, lengths, tags), train(theirs, words, lengths, tags)
    assert expected[-1] < 0.5 * expected[0]  # it does learn
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-6, atol=1e-9)
    # A checkpoint of ours goes back into the model as it was written.
    again = Tagger(vocabulary, names, mode).double().eval()
    again.load_state_dict(ours.state_dict())
    torch.testing.assert_close(again(words, lengths), ours.eval()(words, lengths))


# ---- a pretrained model ----

WORDS = "وبكتابهم المدرسة والطلاب سيكتبونها بيت فاستقبلوه للناس ومدارسنا كتب أفلا".split()


@pytest.fixture(scope="module")
def segmenter():
    package = pytest.importorskip("arabic_morph_segmenter", reason="needs the packages of the extra `tryout`")
    return package.ArabicMorphSegmenter()


@pytest.fixture
def swapped(segmenter):
    """The same segmenter, its model swapped by convert."""
    ours = copy.copy(segmenter)
    ours.model = birnn_ext.convert(copy.deepcopy(segmenter.model))
    assert type(ours.model.lstm) is birnn_ext.LSTM and type(segmenter.model.lstm) is nn.LSTM
    return ours


def emissions(model, ids):
    with torch.no_grad():
        return model.classifier(model.lstm(model.embedding(ids))[0])


def ids_of(segmenter, word):
    return torch.tensor([[segmenter.char2id.get(letter, segmenter.char2id["<UNK>"]) for letter in word]])


def test_the_pretrained_model_gives_the_same_answers(segmenter, swapped):
    for word in WORDS:
        assert swapped.segment_word(word) == segmenter.segment_word(word)
        ids = ids_of(segmenter, word)
        exact = emissions(copy.deepcopy(segmenter.model).double(), ids)
        compare.check(emissions(swapped.model, ids), emissions(segmenter.model, ids), exact, inputs_up_to=9)
    # "and in their book", the example of its documentation: the weights are the trained ones.
    assert swapped.segment_word(WORDS[0])["segments"] == ["وب", "كتاب", "هم"]


def test_the_pretrained_model_in_one_padded_batch(segmenter, swapped):
    """What the model could not do before: all words at once, by `lengths`."""
    words = [ids_of(segmenter, word)[0] for word in WORDS]
    padded, lengths = pad_sequence(words, batch_first=True), [len(word) for word in words]
    assert len(set(lengths)) > 2
    model = swapped.model
    with torch.no_grad():
        scores = model.classifier(model.lstm(model.embedding(padded), lengths=lengths)[0])
    mask = torch.arange(padded.size(1)) < torch.tensor(lengths)[:, None]
    found = model.crf.decode(scores, mask=mask)
    labels = [[segmenter.id2label[i] for i in row] for row in found]
    assert labels == [segmenter.segment_word(word)["labels"] for word in WORDS]
