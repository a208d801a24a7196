import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from cldiff.diffusion import Diffusion, log_likelihood


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def schedule(timesteps: int) -> tuple[np.ndarray, np.ndarray]:
    """beta and alpha_bar, by Ho et al.'s definitions."""
    beta = np.minimum(np.linspace(1e-4, 0.02, timesteps) * 1000 / timesteps, 0.999)
    return beta, np.cumprod(1 - beta)


def best_predictor(timesteps: int, std: float):
    """E[noise | x_t] where the data are N(0, std^2)."""
    alpha_bar = torch.from_numpy(schedule(timesteps)[1])

    def model(x, t):
        a = alpha_bar[t].view(-1, 1, 1, 1)
        return (1 - a).sqrt() * x / (a * std**2 + 1 - a)

    return model


def perfect_predictor(timesteps: int, x0: float):
    """The noise itself, where every pixel of the data is x0."""
    alpha_bar = torch.from_numpy(schedule(timesteps)[1])

    def model(x, t):
        a = alpha_bar[t].view(-1, 1, 1, 1)
        return (x - a.sqrt() * x0) / (1 - a).sqrt()

    return model


def far_above_white(x, t):
    """Noise that stands for an x_0 far above 1: with clipping, the guess is 1 and the bound has no randomness."""
    return torch.full_like(x, -1e6)


def bound_of_gaussian(timesteps: int, variance: str, std: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Expected L_t, t >= 1, of the best predictor in bits; the part that is a squared Gaussian; the prior."""
    beta, alpha_bar = schedule(timesteps)
    a, b, beta = alpha_bar[1:], alpha_bar[:-1], beta[1:]
    posterior = beta * (1 - b) / (1 - a)
    reverse = beta if variance == "fixedlarge" else posterior
    error = std**2 * (1 - a) / (a * std**2 + 1 - a) * b * (beta / (1 - a)) ** 2  # of the mean, squared
    random = error / (2 * reverse) / math.log(2)
    mismatch = (np.log(reverse / posterior) + posterior / reverse - 1) / 2 / math.log(2)
    a = alpha_bar[-1]
    return mismatch + random, random, (a * std**2 - a - math.log(1 - a)) / 2 / math.log(2)


def first_term_of_gaussian(timesteps: int, std: float) -> float:
    """Expected L_0 of the best predictor in bits, by quadrature; std small enough that no pixel nears -1 or 1."""
    beta, alpha_bar = schedule(timesteps)
    a, b = alpha_bar[:2]
    reverse = math.sqrt(beta[1] * (1 - a) / (1 - b))
    error = math.sqrt(std**2 * (1 - a) / (a * std**2 + 1 - a))
    d = np.linspace(-8, 8, 4001) * error
    bits = -np.log2(np.maximum(norm.cdf((d + 1 / 255) / reverse) - norm.cdf((d - 1 / 255) / reverse), 1e-12))
    return float(np.trapezoid(bits * norm.pdf(d, scale=error), d))


# Constants


@pytest.mark.parametrize("index, value", [(487, 0.00979157), (999, 0.0199999835)])
def test_posterior_variance_has_known_values(index, value):
    assert Diffusion().posterior_variance[index].item() == pytest.approx(value, abs=5e-9)


@pytest.mark.parametrize("timesteps", [20, 50, 1000])
def test_alpha_bar_is_that_of_the_scaled_linear_schedule(timesteps):
    assert torch.allclose(Diffusion(timesteps).alpha_bar, torch.from_numpy(schedule(timesteps)[1]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("variance, bits", [("fixedlarge", 0.48642), ("fixedsmall", 0.0)])
def test_perfect_prediction_pays_only_for_the_wrong_variance(variance, bits):
    x0 = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    _, prior, vlb = Diffusion(1000, variance).bits_per_dim(perfect_predictor(1000, 1), x0, False, seeded())
    assert vlb[:, 1:].sum().item() == pytest.approx(bits, abs=5e-6)
    assert prior.item() == pytest.approx(2.91129e-05, rel=1e-5)


# Forward process


def test_noised_images_have_the_mean_and_variance_of_eq_4():
    t = torch.tensor([0, 500, 999])
    x = Diffusion().noised(torch.ones(3, 1, 100, 100), t, torch.randn(3, 1, 100, 100, generator=seeded()))
    a = torch.from_numpy(schedule(1000)[1])[t]
    assert x.dtype == torch.float32
    assert torch.allclose(x.double().mean((1, 2, 3)), a.sqrt(), atol=0.03)
    assert torch.allclose(x.double().var((1, 2, 3)), 1 - a, rtol=0.04)


def test_loss_is_the_squared_error_of_the_noise_for_each_image():
    diffusion, x0, noise = Diffusion(), gaussian(4, 1, 3, 3, seed=2), gaussian(4, 1, 3, 3)
    t = torch.tensor([0, 10, 500, 999])
    offset = torch.arange(4.0)
    off = lambda x, s: noise + offset.view(-1, 1, 1, 1) * (s == t).view(-1, 1, 1, 1)  # noqa: E731
    assert torch.allclose(diffusion.losses(off, x0, t, noise), offset.double().square())


# Sampling, against diffusers


def bent(x, t):
    """A smooth model whose predicted x_0 needs clipping here and there."""
    return 0.9 * x + 0.2 * torch.sin(4 * x + t.view(-1, 1, 1, 1) / 50)


def our_path(diffusion: Diffusion, x_T: torch.Tensor, **options) -> list[torch.Tensor]:
    path = []

    def model(x, t):
        path.append(torch.cat([x.flatten(), t.double()]))
        return bent(x, t)

    last = diffusion.sample(model, x_T, generator=seeded(), **options)
    return path + [torch.cat([last.flatten(), -torch.ones(len(x_T))])]


def their_path(scheduler, timesteps, x_T: torch.Tensor, **options) -> list[torch.Tensor]:
    scheduler.alphas_cumprod = torch.from_numpy(schedule(1000)[1])  # theirs is float32
    x, generator, path = x_T, seeded(), []
    for step in timesteps:
        t = torch.full((len(x),), int(step))
        path.append(torch.cat([x.flatten(), t.double()]))
        x = scheduler.step(bent(x, t), int(step), x, generator=generator, **options).prev_sample
    return path + [torch.cat([x.flatten(), -torch.ones(len(x))])]


def assert_same_path(ours: list[torch.Tensor], theirs: list[torch.Tensor]):
    assert len(ours) == len(theirs)
    assert torch.allclose(torch.stack(ours), torch.stack(theirs), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("variance", ["large", "small"])
def test_ancestral_sampling_is_that_of_diffusers(variance, clip):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(
        beta_start=1e-4, beta_end=0.02, variance_type=f"fixed_{variance}", clip_sample=clip
    )
    x_T = gaussian(2, 1, 2, 2)
    assert_same_path(
        our_path(Diffusion(1000, f"fixed{variance}"), x_T, clip=clip), their_path(scheduler, range(999, -1, -1), x_T)
    )


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(
    "steps, eta", [(10, 0), (10, 0.5), (10, 1), (30, 1), (50, 0), (50, 0.5), (50, 1), (1000, 0), (1000, 0.5)]
)
def test_ddim_is_that_of_diffusers(steps, eta, clip):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, clip_sample=clip, timestep_spacing="leading", set_alpha_to_one=True
    )
    scheduler.set_timesteps(steps)
    x_T = gaussian(2, 1, 2, 2)
    assert_same_path(
        our_path(Diffusion(), x_T, steps=steps, eta=eta, clip=clip),
        their_path(scheduler, scheduler.timesteps, x_T, eta=eta, use_clipped_model_output=clip),
    )


@pytest.mark.parametrize("std", [0.3, 2.0])
def test_ddim_maps_noise_onto_gaussian_data(std):
    x_T = gaussian(1, 1, 3, 3)
    x = Diffusion().sample(best_predictor(1000, std), x_T, eta=0, clip=False)
    assert torch.allclose(x, std * x_T, rtol=0.02)


def test_samples_keep_the_type_of_the_noise_and_stay_in_range():
    x = Diffusion(50).sample(bent, 3 * torch.randn(4, 1, 4, 4, generator=seeded(3)), steps=10, generator=seeded())
    assert x.dtype == torch.float32
    assert x.abs().max() <= 1


# The bound, against data drawn from N(0, std^2)


@pytest.mark.parametrize("variance", ["fixedlarge", "fixedsmall"])
@pytest.mark.parametrize("timesteps", [50, 200, 1000])
@pytest.mark.parametrize("std", [0.2, 1.0, 3.0])
def test_bound_of_gaussian_data_is_the_closed_form(std, timesteps, variance):
    x0 = std * gaussian(32, 1, 6, 6)
    total, prior, vlb = Diffusion(timesteps, variance).bits_per_dim(best_predictor(timesteps, std), x0, False, seeded())
    expected, random, expected_prior = bound_of_gaussian(timesteps, variance, std)
    assert vlb.shape == (32, timesteps) and vlb.dtype == torch.float64
    error = random * math.sqrt(2 / x0.numel())
    assert np.abs((vlb[:, 1:].mean(0).numpy() - expected) / error).max() < 5
    late = vlb[:, 1:].sum(1)
    assert abs(late.mean().item() - expected.sum()) < 4 * late.std().item() / math.sqrt(32)
    prior_error = schedule(timesteps)[1][-1] * std**2 * math.sqrt(2 / x0.numel()) / 2 / math.log(2)
    assert abs(prior.mean().item() - expected_prior) < 4 * prior_error
    assert torch.allclose(total, prior + vlb.sum(1), rtol=1e-12)


@pytest.mark.parametrize("variance", ["fixedlarge", "fixedsmall"])
@pytest.mark.parametrize("timesteps", [50, 1000])
def test_first_term_of_gaussian_data_is_the_likelihood_of_its_bins(timesteps, variance):
    x0 = 0.2 * gaussian(400, 1, 4, 4)
    _, _, vlb = Diffusion(timesteps, variance).bits_per_dim(
        best_predictor(timesteps, 0.2), x0, False, seeded(), terms=min(timesteps, 5)
    )
    error = vlb[:, 0].std().item() / math.sqrt(len(x0))
    assert abs(vlb[:, 0].mean().item() - first_term_of_gaussian(timesteps, 0.2)) < 4 * error


@pytest.mark.parametrize("timesteps", [50, 1000])
def test_late_bound_of_standard_normal_data_is_the_information_in_the_first_noisy_image(timesteps):
    """There the reverse process with beta_t is exact, so that everything between cancels."""
    information = math.log2(1 / (1 - schedule(timesteps)[1][0])) / 2
    expected, _, expected_prior = bound_of_gaussian(timesteps, "fixedlarge", 1)
    assert expected.sum() + expected_prior == pytest.approx(information, rel=1e-9)
    x0 = gaussian(64, 1, 6, 6)
    _, prior, vlb = Diffusion(timesteps).bits_per_dim(best_predictor(timesteps, 1), x0, False, seeded())
    late = prior + vlb[:, 1:].sum(1)
    assert abs(late.mean().item() - information) < 4 * late.std().item() / math.sqrt(len(x0))


@pytest.mark.parametrize("clip", [True, False])
def test_only_clipping_bounds_the_guess(clip):
    beta, a = schedule(1000)
    x0 = torch.tensor([0.5, -0.25]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    _, _, vlb = Diffusion().bits_per_dim(far_above_white, x0, clip, seeded())
    posterior = beta[1:] * (1 - a[:-1]) / (1 - a[1:])
    mismatch = (np.log(beta[1:] / posterior) + posterior / beta[1:] - 1) / 2
    error = (1 - np.array([[0.5], [-0.25]])) ** 2 * a[:-1] * beta[1:] / (1 - a[1:]) ** 2 / 2
    expected = (mismatch + error) / math.log(2)
    if clip:
        assert vlb[:, 1:].numpy() == pytest.approx(expected, rel=1e-6)
        assert vlb[:, 0].numpy() == pytest.approx(-math.log2(1e-12))
    else:
        assert (vlb[:, 1:].numpy() > 1e4 * expected).all()


# The likelihood of a pixel

PIXELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


@pytest.mark.parametrize("mean", [-1.3, -0.5, 0.0, 0.7, 1.0])
@pytest.mark.parametrize("std", [0.001, 0.0074, 0.3, 2.0])
def test_likelihood_of_all_pixel_values_sums_to_one(mean, std):
    total = log_likelihood(PIXELS, torch.tensor(mean), torch.tensor(std)).exp().sum().item()
    assert total == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("pixel", [0, 1, 100, 254, 255])
def test_likelihood_of_a_pixel_is_that_of_its_bin(pixel):
    low = -math.inf if pixel == 0 else (pixel - 0.5) / 127.5 - 1
    high = math.inf if pixel == 255 else (pixel + 0.5) / 127.5 - 1
    expected = math.log(norm.cdf(high, 0.2, 0.7) - norm.cdf(low, 0.2, 0.7))
    assert log_likelihood(PIXELS, torch.tensor(0.2), torch.tensor(0.7))[pixel].item() == pytest.approx(expected, 1e-6)


@pytest.mark.parametrize("pixel", [0, 255])
def test_outer_bins_of_float32_images_reach_to_infinity(pixel):
    x0 = torch.tensor([pixel], dtype=torch.uint8).float() / 127.5 - 1
    mean = torch.tensor(3.0 if pixel else -3.0, dtype=torch.float64)
    assert log_likelihood(x0.double(), mean, torch.tensor(0.1)).item() == pytest.approx(0, abs=1e-9)


# Fewer terms


@pytest.mark.parametrize("terms", [1, 2, 8, 49])
def test_fewer_terms_leave_every_column_its_expectation(terms):
    x0 = 0.2 * gaussian(4000, 1, 1, 2)
    total, _, vlb = Diffusion(50).bits_per_dim(best_predictor(50, 0.2), x0, False, seeded(), terms, 4096)
    late, _, prior = bound_of_gaussian(50, "fixedlarge", 0.2)
    expected = np.concatenate([[first_term_of_gaussian(50, 0.2)], late])
    error = vlb.std(0).numpy() / math.sqrt(len(x0))
    assert np.abs((vlb.mean(0).numpy() - expected) / error).max() < 5
    assert abs(total.mean().item() - expected.sum() - prior) < 4 * total.std().item() / math.sqrt(len(x0))


@pytest.mark.parametrize("timesteps, terms", [(20, 1), (20, 3), (50, 7), (50, 49), (200, 100), (1000, 30), (1000, 999)])
def test_weights_of_the_evaluated_terms_sum_to_the_number_of_timesteps(timesteps, terms):
    x0 = torch.full((3, 1, 1, 1), 0.5)
    _, _, full = Diffusion(timesteps).bits_per_dim(far_above_white, x0, generator=seeded())
    _, _, some = Diffusion(timesteps).bits_per_dim(far_above_white, x0, generator=seeded(), terms=terms)
    assert ((some > 0).sum(1) == terms).all()
    assert torch.allclose((some / full).sum(1), torch.full((3,), float(timesteps), dtype=torch.float64), rtol=1e-4)


@pytest.mark.parametrize("terms", [None, 50])
def test_all_terms_evaluate_each_timestep_of_each_image_once(terms):
    seen = []

    def model(x, t):
        seen.append(t)
        return x

    _, _, vlb = Diffusion(50).bits_per_dim(model, gaussian(3, 1, 2, 2), False, seeded(), terms, batch_size=7)
    assert torch.cat(seen).bincount().tolist() == [3] * 50
    assert (vlb != 0).all()


def test_terms_stay_with_their_own_image():
    """Image by image, and all at once in batches that do not divide the number of terms."""
    x0 = torch.linspace(-0.9, 0.9, 4).view(4, 1, 1, 1).expand(4, 1, 2, 2)
    _, priors, together = Diffusion(50).bits_per_dim(far_above_white, x0, generator=seeded(), batch_size=13)
    for i in range(4):
        _, prior, alone = Diffusion(50).bits_per_dim(far_above_white, x0[i : i + 1], generator=seeded())
        assert torch.allclose(together[i], alone[0]) and torch.allclose(priors[i], prior[0])


@pytest.mark.parametrize("terms", [None, 1, 8])
def test_batch_size_changes_neither_timesteps_nor_bound(terms):
    x0 = torch.linspace(-0.9, 0.9, 5).view(5, 1, 1, 1).expand(5, 1, 3, 3)
    results = [
        Diffusion(50).bits_per_dim(far_above_white, x0, generator=seeded(), terms=terms, batch_size=size)[2]
        for size in (1, 7, 512)
    ]
    assert torch.allclose(results[0], results[2], rtol=1e-9)
    assert torch.allclose(results[1], results[2], rtol=1e-9)


# Randomness


def test_sampling_draws_from_its_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw = lambda seed: Diffusion(50).sample(bent, gaussian(2, 1, 4, 4), steps=20, generator=seeded(seed))  # noqa: E731
    first = draw(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert torch.equal(draw(1), first)
    assert not torch.equal(draw(2), first)


@pytest.mark.parametrize("terms", [None, 8])
def test_bound_draws_from_its_generator_alone(terms):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw = lambda seed: Diffusion(50).bits_per_dim(bent, gaussian(2, 1, 4, 4), True, seeded(seed), terms)  # noqa: E731
    first = draw(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert all(torch.equal(a, b) for a, b in zip(draw(1), first))
    assert not torch.equal(draw(2)[0], first[0])


# Errors


@pytest.mark.parametrize(
    "options, message",
    [
        ({"timesteps": 1}, "timesteps=1: expected at least 2"),
        ({"variance": "learned"}, "unknown variance 'learned'; known: fixedlarge, fixedsmall"),
    ],
)
def test_impossible_diffusion_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Diffusion(**options)


@pytest.mark.parametrize("count", [0, -1, 51])
def test_impossible_numbers_of_steps_and_terms_are_refused(count):
    with pytest.raises(ValueError, match=f"steps={count}: expected 1 .. 50"):
        Diffusion(50).sample(bent, gaussian(1, 1, 2, 2), steps=count)
    with pytest.raises(ValueError, match=f"terms={count}: expected 1 .. 50"):
        Diffusion(50).bits_per_dim(bent, gaussian(1, 1, 2, 2), terms=count)


def test_terms_of_the_bound_are_early_timesteps_one_by_one_and_then_parts_in_geometric_progression():
    low, size = Diffusion(1000)._strata(20)
    assert low[0] == 0 and (low[1:] == (low + size)[:-1]).all()
    assert (low + size).tolist() == [max(round(1000 ** (k / 19)), k + 1) for k in range(20)]
