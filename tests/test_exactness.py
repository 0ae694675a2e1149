# Shapes: B sequences, T positions, D width, V vocabulary
"""What a model says about a base depends on the bases before it and on nothing else.

Every reading of a model (loss, logits, embeddings, variant scores, class probabilities, generation, and the loss and
gradients that train it) is compared with the plain equations in float64, one sequence at a time and in one piece, while
hypothesis draws lengths, pieces, companions and padding. What is promised to the bit is compared to the bit.
"""

import hashlib
import itertools
import signal
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dna_mamba.data.intervals import Interval
from dna_mamba.data.objectives import Examples, TokenPolicy, next_base
from dna_mamba.data.store.build import build
from dna_mamba.data.vocabulary import tokens_of
from dna_mamba.model.backbone import DnaMamba
from dna_mamba.model.checkpoints.native import from_pretrained, save_sequence_model, shipped
from dna_mamba.model.config import POOLINGS, BackboneConfig
from dna_mamba.model.sequence_model import SequenceModel
from dna_mamba.pipelines.embed import embed_tokens
from dna_mamba.reading import forks
from dna_mamba.reading.forks import Allele, score_alleles
from dna_mamba.reading.generation import generate
from dna_mamba.reading.losses import losses_in_pieces, score_regions
from dna_mamba.reading.outputs import outputs_in_pieces
from dna_mamba.reading.pieces import PIECES
from dna_mamba.reading.settings import EmbedConfig
from dna_mamba.training.piecewise import backward_in_pieces
from tests.bad_input.test_tables import HEADER
from tests.conftest import classifier_from, random_letters
from tests.training.test_resume import losses
from tests.zygote import Zygote

# what rounding may do in float32. The promise is 1e-4 nats a base; the rest follows from it or was measured on the model in
# the package (its logits are about 5, its vectors 8 long) and is 5 to 50 times what was seen
TOLERANCE = {
    "log-likelihood of a base, nats": 1e-4,
    "logit": 2e-4,
    "vector, share of its length": 2e-5,
    "variant score, nats": 1e-4,  # times the bases that are compared
    "class probability": 1e-4,
    "loss that trains, share": 1e-5,
    "gradient, share of its norm": 1e-4,
}
BFLOAT16 = {"log-likelihood of a base, nats": 3e-2}

PLACES = [
    pytest.param(("cpu", "naive"), id="naive"),
    pytest.param(("cpu", "cpu"), id="cpu"),
    pytest.param(("interpreter", "triton"), id="triton-interpreted"),
    pytest.param(("cuda", "naive"), id="naive-gpu", marks=pytest.mark.gpu),
    pytest.param(("cuda", "triton"), id="triton", marks=pytest.mark.gpu),
]


LAYERS = 2


class Place:
    """A device, an implementation, and how much of it a test can afford."""

    def __init__(self, where: str, implementation: str):
        if where == "interpreter":
            pytest.importorskip("triton", reason="triton is not installed")
            if torch.cuda.is_available():
                pytest.skip("with a GPU the kernels are compiled, not interpreted")
        self.implementation = implementation
        self.device = "cuda" if where == "cuda" else "cpu"
        slow = self.slow = where == "interpreter"
        self.longest = 70 if slow else 200 if implementation == "naive" else 600 if where == "cpu" else 1500
        self.shortest_piece = 1 if implementation == "cpu" else 24
        self.examples = 2 if slow else 6 if implementation == "naive" else 20 if where == "cpu" else 8

    def load(self) -> DnaMamba:
        """Load the first two layers of the model in the package: trained weights, half the time."""
        model, _ = from_pretrained(shipped("human-4x64"))
        smaller = DnaMamba(BackboneConfig(pattern="M" * LAYERS, width=64)).eval()
        smaller.load_state_dict({k: v for k, v in model.state_dict().items() if k in smaller.state_dict()})
        return smaller.use_implementation(self.implementation).to(self.device)

    def pieces(self):
        return st.integers(self.shortest_piece, self.longest + 10)


each_place = pytest.mark.parametrize("place", PLACES)


def reference() -> DnaMamba:
    """The plain equations in float64."""
    return Place("cpu", "naive").load().double()


def drawn(place: Place):
    """Run a test on the examples that a place can afford, the same ones every time."""
    options = settings(
        max_examples=place.examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    return lambda test: options(given(st.data())(test))


def draw_tokens(data, length: int, seed_name: str = "seed") -> np.ndarray:
    """Draw bases, now and then N among them, from a seed: their values matter less than lengths and pieces."""
    generator = np.random.default_rng(data.draw(st.integers(0, 2**31), label=seed_name))
    tokens = generator.integers(7, 11, length).astype(np.uint8)
    tokens[generator.random(length) < 0.02] = 11
    return tokens


def log_likelihoods(logits_TV: torch.Tensor, tokens_T: np.ndarray) -> np.ndarray:
    """Give log P of every base but the first over A, C, G and T; 0 where it is none of these."""
    log_p = logits_TV[:-1, 7:11].double().log_softmax(-1).cpu().numpy()
    targets = tokens_T[1:].astype(int) - 7
    return np.where(targets < 4, log_p[np.arange(len(targets)), np.minimum(targets, 3)], 0.0)


@torch.no_grad()
def logits_of(model: DnaMamba, tokens_T: np.ndarray) -> torch.Tensor:
    return model(torch.from_numpy(tokens_T)[None].to(model.lm_head.weight.device))[0][0]


@each_place
def test_logits_do_not_depend_on_pieces_or_companions(place):
    place = Place(*place)
    model, plain = place.load(), reference()

    @drawn(place)
    @torch.no_grad()
    def check(data):
        length, rows = data.draw(st.integers(1, place.longest)), data.draw(st.integers(1, 4))
        tokens_BT = np.stack([draw_tokens(data, length) for _ in range(rows)])
        bounds = [0]
        while bounds[-1] < length:  # pieces of different lengths
            bounds.append(min(length, bounds[-1] + data.draw(place.pieces())))
        parts, state = [], None
        for start, end in itertools.pairwise(bounds):
            logits_BTV, state = model(torch.from_numpy(tokens_BT[:, start:end]).to(place.device), state)
            parts.append(logits_BTV.cpu())
        found_BTV = torch.cat(parts, 1)
        for row, tokens_T in enumerate(tokens_BT):
            expected_TV = logits_of(plain, tokens_T)
            assert (found_BTV[row] - expected_TV).abs().max() < TOLERANCE["logit"]
            difference = log_likelihoods(found_BTV[row], tokens_T) - log_likelihoods(expected_TV, tokens_T)
            assert np.abs(difference).max(initial=0) < TOLERANCE["log-likelihood of a base, nats"]

    check()


@pytest.mark.gpu
def test_log_likelihoods_in_bfloat16_stay_within_the_promise():
    place = Place("cuda", "triton")
    model, plain = place.load(), reference()

    @drawn(place)
    @torch.no_grad()
    def check(data):
        tokens_T = draw_tokens(data, data.draw(st.integers(2, place.longest)))
        with torch.autocast("cuda", torch.bfloat16):
            found_TV = logits_of(model, tokens_T)
        difference = log_likelihoods(found_TV, tokens_T) - log_likelihoods(logits_of(plain, tokens_T), tokens_T)
        assert np.abs(difference).max() < BFLOAT16["log-likelihood of a base, nats"]

    check()


@each_place
def test_losses_do_not_depend_on_pieces_chunks_or_companions(place, tmp_path):
    place = Place(*place)
    model, plain = place.load(), reference()

    @drawn(place)
    def check(data):
        length, rows = data.draw(st.integers(2, place.longest)), data.draw(st.integers(1, 4))
        tokens_BT = np.stack([draw_tokens(data, length) for _ in range(rows)])
        expected = [log_likelihoods(logits_of(plain, tokens_T), tokens_T) for tokens_T in tokens_BT]
        piece = data.draw(place.pieces())
        pieces = losses_in_pieces(model, torch.from_numpy(tokens_BT).to(place.device), piece)
        found_BT = -torch.cat(list(pieces), 1).double().cpu().numpy()
        assert np.abs(found_BT - np.stack(expected)).max() < TOLERANCE["log-likelihood of a base, nats"]
        # the same bases as contigs of a genome, as evaluate and track read them
        text = "".join(f">c{i}\n{''.join('ACGTN'[t - 7] for t in row)}\n" for i, row in enumerate(tokens_BT))
        (tmp_path / "g.fa").write_text(text)
        genome = build([tmp_path / "g.fa"], tmp_path / "g.dna", overwrite=True)
        places = [Interval(f"c{i}", 0, length) for i in range(rows)]
        scores = score_regions(model, genome, places, TokenPolicy(), chunk=data.draw(place.pieces()))
        known = int((tokens_BT[:, 1:] < 11).sum())
        assert scores.total.num_bases == known
        assert (
            abs(scores.total.nats + sum(one.sum() for one in expected))
            < known * TOLERANCE["log-likelihood of a base, nats"]
        )

    check()


@each_place
def test_embeddings_do_not_depend_on_pieces_companions_or_padding(place):
    place = Place(*place)
    model, plain = place.load(), reference()

    @drawn(place)
    @torch.no_grad()
    def check(data):
        # of different lengths: those read together are filled up on the right
        lengths = data.draw(st.lists(st.integers(1, place.longest), min_size=1, max_size=5))
        sequences = [draw_tokens(data, length) for length in lengths]
        pool = data.draw(st.sampled_from(["none", "mean", "last", "max", "window:7"]))
        strands = data.draw(st.sampled_from(["forward", "both"]))
        config = EmbedConfig(pool=pool, strands=strands)
        found = embed_tokens(model, sequences, config, piece_bases=data.draw(place.pieces()))
        for given_, tokens_T in zip(found, sequences, strict=True):
            alone = embed_tokens(plain, [tokens_T], config, piece_bases=10**6)[0]
            difference = np.linalg.norm(given_ - alone, axis=-1)
            assert (difference <= TOLERANCE["vector, share of its length"] * np.linalg.norm(alone, axis=-1)).all()

    check()


@each_place
def test_variant_scores_do_not_depend_on_pieces_or_companions(place, monkeypatch):
    place = Place(*place)
    model, plain = place.load(), reference()

    def ratio(tokens_T, allele, left, right):
        """Score an allele from scratch."""
        start, end = allele.start, allele.start + allele.ref_bases
        begin = 0 if left is None else max(0, start - left)
        values = []
        for middle in (allele.tokens, tokens_T[start:end]):
            whole = np.concatenate([tokens_T[begin:start], middle, tokens_T[end : end + right]])
            values.append(log_likelihoods(logits_of(plain, whole), whole)[max(0, start - begin - 1) :].sum())
        return values[0] - values[1]

    @drawn(place)
    def check(data):
        length = data.draw(st.integers(20, place.longest))
        tokens_T = draw_tokens(data, length)
        alleles = []
        for _ in range(data.draw(st.integers(1, 6))):
            start = data.draw(st.integers(0, length - 8))
            new = draw_tokens(data, data.draw(st.integers(1, 5)))
            alleles.append(Allele(start, data.draw(st.integers(1, 4)), np.minimum(new, 10)))
        left, right = data.draw(st.sampled_from([None, 0, 5, 1000])), data.draw(st.integers(0, 20))
        piece = data.draw(place.pieces())
        for device, bases in {"cpu": piece, "cuda": max(64, piece)}.items():
            monkeypatch.setitem(PIECES, device, bases)  # one table, whoever reads by it
        monkeypatch.setattr(forks, "BATCH_BASES", dict.fromkeys(("cpu", "cuda"), data.draw(st.integers(8, 4000))))

        def read(start, end):
            return tokens_T[start:end]

        found = score_alleles(model, read, length, alleles, left=left, right=right).ratios
        for value, allele in zip(found, alleles, strict=True):
            bases = 2 * (right + 5)
            expected = ratio(tokens_T, allele, left, right)
            assert abs(value - expected) < bases * TOLERANCE["variant score, nats"], (allele, left, right)

    check()


def classifier_of(model: DnaMamba, pooling: str) -> SequenceModel:
    torch.manual_seed(0)
    classifier = classifier_from(model, ("a", "b", "c"), pooling)
    torch.nn.init.normal_(classifier.head.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    return classifier.eval()


@pytest.mark.parametrize("pooling", POOLINGS)
@each_place
def test_class_probabilities_do_not_depend_on_pieces_or_companions(place, pooling):
    place = Place(*place)
    classifier = classifier_of(Place("cpu", "naive").load(), pooling)
    plain = classifier_of(Place("cpu", "naive").load(), pooling).double().use_implementation("naive")
    classifier.use_implementation(place.implementation).to(place.device)

    @drawn(place)
    @torch.no_grad()
    def check(data):
        length, rows = data.draw(st.integers(1, place.longest)), data.draw(st.integers(1, 4))
        tokens_BT = torch.from_numpy(np.stack([draw_tokens(data, length) for _ in range(rows)]))
        scores_BK = outputs_in_pieces(classifier, tokens_BT.to(place.device), data.draw(place.pieces()))
        for row in range(rows):
            expected_K = plain(tokens_BT[row : row + 1])[0].softmax(-1)
            found_K = scores_BK[row].double().cpu().softmax(-1)
            assert (found_K - expected_K).abs().max() < TOLERANCE["class probability"]

    check()


@each_place
def test_generation_does_not_depend_on_pieces_or_companions(place):
    place = Place(*place)
    model, plain = place.load(), reference()

    @drawn(place)
    def check(data):
        prompt_T = torch.from_numpy(draw_tokens(data, data.draw(st.integers(1, place.longest))))
        most = 3 if place.slow else 12
        length, seed = data.draw(st.integers(1, most)), data.draw(st.integers(0, 2**40))
        many, few = data.draw(st.integers(2, 2 if place.slow else 4)), 1
        piece = data.draw(place.pieces())
        found = generate(model, prompt_T, length, num_sequences=many, seed=seed, piece_bases=piece)
        alone = generate(model, prompt_T, length, num_sequences=few, seed=seed, piece_bases=10**6)
        assert torch.equal(found.tokens_BT[:few], alone.tokens_BT)
        for row in range(many):
            whole = np.concatenate([prompt_T.numpy(), found.tokens_BT[row].numpy()])
            expected = log_likelihoods(logits_of(plain, whole), whole)[-length:].sum()
            difference = abs(float(found.log_likelihoods_B[row]) - expected)
            assert difference < length * TOLERANCE["log-likelihood of a base, nats"]

    check()


def gradients(model, run):
    model.zero_grad()
    model.requires_grad_(True)
    loss = run()
    return float(loss), {n: p.grad.double().cpu().clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_step(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=TOLERANCE["loss that trains, share"], abs=1e-7)
    assert found[1].keys() == expected[1].keys()
    whole = sum(float(g.square().sum()) for g in expected[1].values()) ** 0.5
    for name, gradient in expected[1].items():
        difference = float((found[1][name] - gradient).norm())
        assert difference < TOLERANCE["gradient, share of its norm"] * max(float(gradient.norm()), 1e-3 * whole), name


@each_place
def test_the_loss_that_trains_and_its_gradients_do_not_depend_on_pieces_or_companions(place):
    place = Place(*place)
    model, plain = place.load(), reference()

    @drawn(place)
    def check(data):
        length, rows = data.draw(st.integers(2, min(place.longest, 300))), data.draw(st.integers(1, 3))
        tokens_BT = torch.from_numpy(np.stack([draw_tokens(data, length) for _ in range(rows)]))
        weights_BT = (tokens_BT < 11).float()
        divisor = max(float(weights_BT[:, 1:].sum()), 1.0)
        piece, kept = data.draw(place.pieces()), data.draw(st.integers(1, 3))

        def ours():
            options = {"divisor": divisor, "piece_bases": max(2, piece), "kept_pieces": kept}
            examples = next_base(tokens_BT.to(place.device), weights_BT.to(place.device))
            return backward_in_pieces(model, examples, **options).loss

        def one_by_one():
            total = 0.0
            for row in range(rows):
                logits_TV = plain(tokens_BT[row : row + 1, :-1])[0][0]
                log_p = logits_TV.log_softmax(-1).gather(1, tokens_BT[row, 1:, None].long())[:, 0]
                total = total - (log_p * weights_BT[row, 1:]).sum() / divisor
            total.backward()
            return total.detach()

        assert_same_step(gradients(model, ours), gradients(plain, one_by_one))

    check()


@each_place
def test_the_loss_of_classes_and_its_gradients_do_not_depend_on_pieces(place):
    place = Place(*place)
    classifier = classifier_of(Place("cpu", "naive").load(), "mean")
    plain = classifier_of(Place("cpu", "naive").load(), "mean").double().use_implementation("naive")
    classifier.use_implementation(place.implementation).to(place.device)

    @drawn(place)
    def check(data):
        length, rows = data.draw(st.integers(1, min(place.longest, 300))), data.draw(st.integers(1, 3))
        tokens_BT = torch.from_numpy(np.stack([draw_tokens(data, length) for _ in range(rows)]))
        targets_B = torch.tensor([data.draw(st.integers(0, 2)) for _ in range(rows)])
        piece = data.draw(place.pieces())

        def step(model, tokens, targets, piece):
            return backward_in_pieces(model, Examples(tokens, targets, None), divisor=rows, piece_bases=piece).loss

        found = gradients(
            classifier, lambda: step(classifier, tokens_BT.to(place.device), targets_B.to(place.device), piece)
        )
        assert_same_step(found, gradients(plain, lambda: step(plain, tokens_BT, targets_B, 10**6)))

    check()


# ---- to the bit: the same command again, any number of workers, resumed or not, in shards or at once


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zygote")
    (folder / "g.fa").write_text("".join(f">c{i}\n{random_letters(20_000, i)}\n" for i in range(3)))
    letters = random_letters(20_000, 1)
    records = [
        f"c1\t{at}\t.\t{letters[at - 1]}\t{'C' if letters[at - 1] == 'A' else 'A'}\t.\t.\t.\n"
        for at in range(50, 9000, 500)
    ]
    (folder / "v.vcf").write_text(HEADER + "".join(records))
    save_sequence_model(classifier_of(Place("cpu", "naive").load(), "mean"), folder / "c", {"seq_len": 500})
    process = Zygote(folder)
    yield process
    process.close()


def trained(zygote, name, *more, stop=False):
    """Train for forty steps, stopped and resumed on the way or not; give the losses and the hash of the best weights."""
    out = zygote.folder / name
    settings_ = (
        "training.bases_per_step=1024",
        "training.validate_every_steps=10",
        "training.checkpoint_every_steps=7",
    )
    words = [
        *("pretrain", "--genome", "g.fa", "--model", "2x16", "--seq-len", "256", "--steps", "40", "--device", "cpu"),
        *("--out", out, "--set", *settings_, "evaluation.markov_max_order=-1"),
    ]
    child = zygote.start(*words, *more)
    if stop:
        while not (out / "metrics.csv").exists() or (out / "metrics.csv").read_text().count("\n") < 12:
            assert child.wait(0.005) is None, child.stderr
        child.kill(signal.SIGTERM)
        assert child.wait() == 143, child.stderr
        child = zygote.start("pretrain", "--out", out, "--resume", "--num-workers", "1")
    assert child.wait() == 0, child.stderr
    return losses(out), hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()


def test_losses_are_the_same_to_the_bit_again_with_workers_and_resumed(zygote):
    expected = trained(zygote, "first")
    assert len(expected[0]) == 40
    assert trained(zygote, "again") == expected
    assert trained(zygote, "workers", "data.num_workers=2") == expected
    assert trained(zygote, "resumed", stop=True) == expected
    assert trained(zygote, "other", "seed=1") != expected


READINGS = {
    "evaluate": ("evaluate", "human-4x64", "--genome", "g.fa", "--region", "c1:1-20000", "--json"),
    "embed": ("embed", "human-4x64", "g.fa", "--pool", "window:64", "--strands", "both", "-o", "{out}.npz"),
    "track": ("track", "human-4x64", "--genome", "g.fa", "-o", "{out}.bw"),
    "mutate": ("mutate", "human-4x64", "--genome", "g.fa", "--region", "c1:101-120", "-o", "{out}.tsv"),
    "score": ("score", "human-4x64", "v.vcf", "--genome", "g.fa", "--strands", "both", "-o", "{out}.vcf"),
    "classify": ("classify", "c", "g.fa", "--window", "500", "-o", "{out}.tsv"),
    "generate": ("generate", "human-4x64", "--length", "100", "--num", "3", "-o", "{out}.fa"),
}


@pytest.mark.parametrize("words", READINGS.values(), ids=READINGS.keys())
def test_a_reading_is_the_same_to_the_bit_when_it_is_run_again(zygote, tmp_path, words):
    found = []
    for number in range(2):
        place = [word.format(out=tmp_path / f"{number}") for word in words]
        child = zygote.run(*place, "--device", "cpu")
        assert child.code == 0, child.stderr
        files = sorted(tmp_path.glob(f"{number}.*"))
        found.append(files[0].read_bytes() if files else child.out.read_bytes())
        time.sleep(1.1)  # archives hold times in seconds
    assert found[0] == found[1] and len(found[0]) > 300


def test_shards_are_the_same_to_the_bit_as_one_run(zygote, tmp_path):
    letters = random_letters(100)
    text = "".join(f">r{i}\n{letters[: 40 + i % 50]}\n" for i in range(2100))
    (tmp_path / "many.fa").write_text(text)
    words = ("embed", "human-4x64", tmp_path / "many.fa", "--device", "cpu")
    assert zygote.run(*words, "-o", tmp_path / "whole.npz").code == 0
    for number in (1, 2):
        child = zygote.run(*words, "--shard", f"{number}/2", "-o", tmp_path / f"{number}.npz")
        assert child.code == 0, child.stderr
    parts = [np.load(tmp_path / f"{number}.npz")["embeddings"] for number in (1, 2)]
    assert all(len(part) for part in parts)
    assert np.array_equal(np.concatenate(parts), np.load(tmp_path / "whole.npz")["embeddings"])


def test_this_module_would_see_a_reading_that_depends_on_its_companions():
    # each comparison above is worth what it can see: a state that leaks from row to row
    model, plain = Place("cpu", "cpu").load(), reference()
    tokens_BT = np.stack([tokens_of(random_letters(50, seed)) for seed in (1, 2)])
    with torch.no_grad():
        _, state = model(torch.from_numpy(tokens_BT[:, :25]))
        leaking = [type(layer)(*(x.flip(0) for x in layer)) for layer in state]
        found = model(torch.from_numpy(tokens_BT[:, 25:]), leaking)[0][0]
    assert (found - logits_of(plain, tokens_BT[0])[25:]).abs().max() > 10 * TOLERANCE["logit"]
