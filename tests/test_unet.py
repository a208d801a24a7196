import pytest
import torch
import torch.nn.functional as F

from cldiff.unet import Attention, Resample, ResidualBlock, UNet, norm, timestep_embedding


def small(size: int = 8, **options) -> UNet:
    torch.manual_seed(0)
    return UNet(size, tasks=3, **{"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": 4, **options})


def perturbed(net: UNet) -> UNet:
    """Nothing is zero any more: each part of the net has a say."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return net.eval()


def inputs(batch: int, size: int = 8, colours: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(batch, colours, size, size, generator=torch.Generator().manual_seed(2))
    return x, torch.arange(batch) * 37, torch.arange(batch) % 3


@pytest.mark.parametrize(
    "size, options",
    [
        (8, {}),
        (8, {"multipliers": (1, 2, 2, 2), "attention": 1}),
        (8, {"multipliers": (2,), "blocks": 3, "colours": 3}),
        (28, {"multipliers": (1, 2, 2), "blocks": 2, "attention": 14}),
        (28, {"patch": 2, "attention": 7}),
        (12, {"patch": 3, "colours": 3}),
    ],
)
def test_output_has_the_shape_of_the_images(size, options):
    x, t, task = inputs(2, size, options.get("colours", 1))
    assert perturbed(small(size, **options))(x, t, task).shape == x.shape


@pytest.mark.parametrize("patch, colours", [(2, 1), (2, 3), (4, 1)])
def test_a_patched_net_is_the_unpatched_one_of_the_same_weights_on_images_cut_by_hand(patch, colours):
    places = 16 // patch
    net = perturbed(small(16, patch=patch, colours=colours, attention=places))
    plain = small(places, colours=colours * patch**2, attention=places).eval()
    plain.load_state_dict(net.state_dict())
    x, t, task = inputs(3, 16, colours)
    cut = torch.stack(
        [x[:, c, i::patch, j::patch] for c in range(colours) for i in range(patch) for j in range(patch)], dim=1
    )
    joined, found = torch.empty_like(x), iter(plain(cut, t, task).unbind(1))
    for c in range(colours):
        for i in range(patch):
            for j in range(patch):
                joined[:, c, i::patch, j::patch] = next(found)
    assert torch.allclose(net(x, t, task), joined, atol=1e-6)


def test_images_that_cannot_be_cut_are_an_error():
    with pytest.raises(
        ValueError, match="images of 28 pixels cannot be cut into patches of 3: use a patch that divides 28"
    ):
        small(28, patch=3)
    with pytest.raises(ValueError, match="images of 7 places cannot be halved 1 times"):
        small(28, patch=4)


def test_untrained_net_predicts_zero():
    x, t, task = inputs(2)
    assert torch.equal(small()(x, t, task), torch.zeros_like(x))


@pytest.mark.parametrize("t, task", [(11, 0), (0, 0), (999, 0), (10, 1), (10, 2)])
def test_output_depends_on_timestep_and_task(t, task):
    net, x = perturbed(small()), inputs(1)[0]
    output = lambda *condition: net(x, *(torch.tensor([c]) for c in condition))  # noqa: E731
    assert (output(t, task) - output(10, 0)).abs().max() > 1e-5


def test_output_of_an_image_does_not_depend_on_its_batch():
    net, (x, t, task) = perturbed(small(multipliers=(1, 2, 2), blocks=2)), inputs(4)
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1], task[i : i + 1]) for i in range(4)])
    assert torch.allclose(net(x, t, task), alone, atol=1e-5)


@pytest.mark.parametrize(
    "attention, expected",
    [(14, [7, 14, 14, 14, 14, 14]), (28, [7, 28, 28, 28, 28, 28]), (7, [7, 7, 7, 7, 7, 7]), (8, [7])],
)
def test_attention_is_at_the_resolution_asked_for_and_in_the_middle(attention, expected):
    net, found = small(28, multipliers=(1, 2, 2), blocks=2, attention=attention), []
    for module in net.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(lambda _, arguments, output: found.append(output.shape[-1]))
    net(*inputs(1, 28))
    assert sorted(found) == expected


def some_attention() -> Attention:
    torch.manual_seed(0)
    layer = Attention(8)
    torch.nn.init.normal_(layer.out.weight)
    return layer


def test_attention_treats_all_pixels_alike():
    layer, x = some_attention(), torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffle = lambda images: images.flatten(2)[:, :, order].view_as(images)  # noqa: E731
    assert torch.allclose(layer(shuffle(x), None), shuffle(layer(x, None)), atol=1e-5)


def test_attention_carries_what_is_seen_at_one_pixel_to_all():
    layer, x = some_attention(), torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    layer.norm = torch.nn.Identity()  # it would carry something, too
    changed = x.clone()
    changed[:, :4, 3, 3] += 1
    assert ((layer(changed, None) - layer(x, None)).abs().sum(1) > 1e-5).all()


def test_size_of_the_cifar10_net_is_that_of_ho_et_al():
    with torch.device("meta"):
        net = UNet(32, tasks=1, channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention=16, colours=3)
    assert sum(parameter.numel() for parameter in net.parameters()) == pytest.approx(35.7e6, rel=0.01)


def test_gradients_reach_every_parameter():
    net = perturbed(small(multipliers=(1, 2, 2), blocks=2))
    net(*inputs(3)).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_dropout_acts_in_training_alone():
    net, arguments = perturbed(small(dropout=0.5)), inputs(1)
    assert torch.equal(net(*arguments), net(*arguments))
    net.train()
    assert not torch.equal(net(*arguments), net(*arguments))


def test_timestep_embedding_is_that_of_diffusers():
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    t = torch.tensor([0, 1, 50, 999])
    theirs = embeddings.get_timestep_embedding(t, 32, flip_sin_to_cos=False, downscale_freq_shift=1)
    assert torch.allclose(timestep_embedding(t, 32), theirs, atol=1e-4)


@pytest.mark.parametrize("size, multipliers", [(28, (1, 2, 2, 2)), (9, (1, 2)), (6, (1, 1, 1))])
def test_images_that_cannot_be_halved_are_refused(size, multipliers):
    with pytest.raises(ValueError, match=f"images of {size} pixels cannot be halved {len(multipliers) - 1} times"):
        small(size, multipliers=multipliers)


@pytest.mark.parametrize("channels, groups", [(8, 2), (24, 6), (48, 12), (128, 32), (144, 24), (256, 32)])
def test_groups_of_a_normalisation_divide_its_channels(channels, groups):
    assert norm(channels).num_groups == groups


@pytest.mark.parametrize("channels, multipliers", [(24, (1, 2, 4)), (40, (1, 2, 4)), (48, (1, 2, 2)), (104, (1, 2))])
def test_networks_of_any_width_can_be_built(channels, multipliers):
    net = UNet(8, 5, channels, multipliers, 1)
    assert (
        net(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long)).shape[1] == 1
    )


def normalised(x: torch.Tensor, layer: torch.nn.GroupNorm) -> torch.Tensor:
    return F.group_norm(x, layer.num_groups, layer.weight, layer.bias)


@pytest.mark.parametrize("outputs", [8, 16])
def test_a_residual_block_is_that_of_ho_et_al(outputs):
    block = perturbed(ResidualBlock(8, outputs, 32, dropout=0.5))
    x, embedding = inputs(2, colours=8)[0], torch.randn(2, 32, generator=torch.Generator().manual_seed(3))
    h = F.conv2d(F.silu(normalised(x, block.norm1)), block.conv1.weight, block.conv1.bias, padding=1)
    h = h + (embedding @ block.condition.weight.T + block.condition.bias)[:, :, None, None]
    h = F.conv2d(F.silu(normalised(h, block.norm2)), block.conv2.weight, block.conv2.bias, padding=1)
    skipped = x if outputs == 8 else F.conv2d(x, block.skip.weight, block.skip.bias)
    torch.testing.assert_close(block(x, embedding), skipped + h, rtol=1e-4, atol=1e-5)


def test_attention_is_added_to_what_it_looks_at():
    layer, x = perturbed(Attention(8)), inputs(2, size=4, colours=8)[0]
    pixels = normalised(x, layer.norm).flatten(2).mT
    q, k, v = (pixels @ layer.qkv.weight.T + layer.qkv.bias).chunk(3, dim=-1)
    found = ((q @ k.mT / 8**0.5).softmax(-1) @ v) @ layer.out.weight.T + layer.out.bias
    torch.testing.assert_close(layer(x, None), x + found.mT.unflatten(2, (4, 4)), rtol=1e-4, atol=1e-5)


def test_the_resolution_is_doubled_by_nearest_neighbour_and_halved_by_a_stride():
    x = inputs(2, colours=8)[0]
    up, down = perturbed(Resample(8, up=True)), perturbed(Resample(8, up=False))
    twice = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(up(x, None), F.conv2d(twice, up.conv.weight, up.conv.bias, padding=1))
    every = F.conv2d(x, down.conv.weight, down.conv.bias, padding=1)[:, :, ::2, ::2]
    torch.testing.assert_close(down(x, None), every, rtol=1e-4, atol=1e-5)


def test_blocks_are_told_timestep_and_task_by_two_layers_with_silu_behind_each():
    net, told, (x, t, task) = perturbed(small()), [], inputs(3)
    net.middle[0].register_forward_hook(lambda _, arguments, output: told.append(arguments[1]))
    net(x, t, task)
    expected = torch.cat([timestep_embedding(t, 8), torch.eye(3)[task]], dim=1)
    for layer in (net.embed[0], net.embed[2]):
        expected = F.silu(expected @ layer.weight.T + layer.bias)
    torch.testing.assert_close(told[0], expected)
