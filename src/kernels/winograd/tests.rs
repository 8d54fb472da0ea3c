use super::super::gemm::pack;
use super::*;

/// Relative to Σ (|x| of three taps)·(|w| of three taps), which bounds each product of an output: m1 and m2 hold terms of taps
/// that are not its own and cancel. Fifty roundings of 2⁻²⁴, with room for the sums before and behind the products.
const RELATIVE: f64 = 1e-6;

fn values(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..n).map(|_| rng.f32() * 2.0 - 1.0).collect()
}

/// Plain loops: Σ x·w of each output, and what the error is relative to.
fn oracle(g: &ConvGeometry, axis: usize, x: &[f32], w: &[f32]) -> Vec<[f64; 2]> {
    let mut y = vec![[0.0; 2]; g.output_len()];
    for (at, y) in y.iter_mut().enumerate() {
        let (position, o) = (at / g.output_channels, at % g.output_channels);
        let output = [position / g.output[1], position % g.output[1]];
        let others = g.kernel[1 - axis];
        let mut sizes = vec![[0.0; 2]; others * g.input_channels];
        for ky in 0..g.kernel[0] {
            for kx in 0..g.kernel[1] {
                let inside = g.taps(0, output[0]).contains(&ky) && g.taps(1, output[1]).contains(&kx);
                for c in 0..g.input_channels {
                    let tap = [ky, kx];
                    let size = &mut sizes[tap[1 - axis] * g.input_channels + c];
                    let w = w[((ky * g.kernel[1] + kx) * g.input_channels + c) * g.output_channels + o] as f64;
                    size[1] += w.abs();
                    if inside {
                        let line = g.position(0, output[0], ky) * g.input[1];
                        let x = x[(line + g.position(1, output[1], kx)) * g.input_channels + c] as f64;
                        size[0] += x.abs();
                        y[0] += x * w;
                    }
                }
            }
        }
        y[1] = sizes.iter().map(|[x, w]| x * w).sum();
    }
    y
}

fn geometry(input: [usize; 2], channels: [usize; 2], kernel: [usize; 2], pads: [usize; 4]) -> ConvGeometry {
    let [input_channels, output_channels] = channels;
    let output = [input[0] + pads[0] + pads[2] + 1 - kernel[0], input[1] + pads[1] + pads[3] + 1 - kernel[1]];
    ConvGeometry {
        input,
        input_channels,
        output,
        output_channels,
        kernel,
        stride: [1, 1],
        dilation: [1, 1],
        pads_begin: [pads[0], pads[1]],
        groups: 1,
    }
}

fn geometries() -> Vec<(ConvGeometry, usize)> {
    let mut all = Vec::new();
    for width in 1..=9 {
        for (pads, channels) in
            [([1, 1, 1, 1], [3, 5]), ([0, 2, 0, 2], [8, 17]), ([0, 0, 1, 2], [1, 24]), ([2, 2, 0, 0], [9, 4])]
        {
            if width + pads[1] + pads[3] >= 3 {
                all.push((geometry([4, width], channels, [3, 3], pads), 1));
                all.push((geometry([1, width], channels, [1, 3], [0, pads[1], 0, pads[3]]), 1));
                all.push((geometry([width, 5], channels, [3, 1], [pads[1], 0, pads[3], 0]), 0));
            }
        }
    }
    // More lines than are made at a time.
    all.push((geometry([33, 20], [4, 6], [3, 3], [1, 1, 1, 1]), 1));
    all.push((geometry([75, 13], [6, 4], [3, 1], [0, 0, 0, 0]), 0));
    all.push((geometry([9, 7], [16, 16], [5, 3], [2, 1, 2, 1]), 1));
    let strided = geometry([12, 11], [7, 9], [3, 3], [1, 1, 0, 1]);
    all.push((ConvGeometry { stride: [2, 1], output: [6, 11], ..strided.clone() }, 1));
    all.push((ConvGeometry { dilation: [2, 1], pads_begin: [2, 1], output: [12, 11], ..strided }, 1));
    all
}

fn transformed(layer: Winograd, w: &[f32]) -> Vec<f32> {
    let g = layer.g;
    let (mut packed, mut u) = (vec![0.0; w.len()], vec![f32::NAN; layer.weights_len()]);
    pack(g.patch(), g.output_channels, w, &mut packed);
    layer.weights(&packed, &mut u);
    u
}

#[test]
fn agrees_with_the_oracle() {
    for (index, (g, axis)) in geometries().into_iter().enumerate() {
        let layer = Winograd::along(&g, axis).unwrap();
        let seed = 10 * index as u64;
        let (x, w) = (values(seed, g.input_len()), values(seed + 1, g.patch() * g.output_channels));
        let (bias, before) = (values(seed + 2, g.output_channels), values(seed + 3, g.output_len()));
        let u = transformed(layer, &w);
        let sums = oracle(&g, axis, &x, &w);
        for generic in [false, true] {
            for (start, clamp) in [
                (Start::Zero, None),
                (Start::Bias(&bias), Some([-0.4, 0.7])),
                (Start::Add, None),
                (Start::Add, Some([-0.4, 0.7])),
            ] {
                let mut y = before.clone();
                let mut work = vec![f32::NAN; layer.work_len()];
                layer.run_on(start, &x, &u, None, &mut y, clamp, &mut work, generic);
                for (at, (got, [sum, magnitude])) in y.iter().zip(&sums).enumerate() {
                    let first = match start {
                        Start::Zero => 0.0,
                        Start::Add => before[at] as f64,
                        Start::Bias(bias) => bias[at % bias.len()] as f64,
                    };
                    let [low, high] = clamp.map_or([f64::MIN, f64::MAX], |bounds| bounds.map(f64::from));
                    let want = (first + sum).clamp(low, high);
                    let room = RELATIVE * (magnitude + first.abs());
                    assert!((*got as f64 - want).abs() <= room, "{g:?} {start:?} {generic} at {at}: {got} {want}");
                }
            }
        }
    }
}

#[test]
fn a_pair_beside_is_the_sum_of_both() {
    for (index, (g, axis)) in geometries().into_iter().enumerate() {
        let (layer, seed) = (Winograd::along(&g, axis).unwrap(), 10 * index as u64);
        let (x, w) = (values(seed, g.input_len()), values(seed + 1, g.patch() * g.output_channels));
        let bias = values(seed + 2, g.output_channels);
        for rank in [1, 3, 11] {
            let narrow = ConvGeometry { output_channels: rank, ..g.clone() };
            let (a, b) = (values(seed + 3, g.patch() * rank), values(seed + 4, rank * g.output_channels));
            let mut packed = vec![0.0; b.len()];
            pack(rank, g.output_channels, &b, &mut packed);
            let (u, a_u) = (transformed(layer, &w), transformed(Winograd::along(&narrow, axis).unwrap(), &a));
            let pair = Pair { rank, u: &a_u, b: &packed };
            let (mut y, mut work) = (vec![f32::NAN; g.output_len()], vec![f32::NAN; layer.beside_work_len(rank)]);
            layer.convolve_beside(Start::Bias(&bias), &x, &u, pair, &mut y, Some([-0.4, 0.7]), &mut work);
            let (base, h) = (oracle(&g, axis, &x, &w), oracle(&narrow, axis, &x, &a));
            for (at, (got, [sum, magnitude])) in y.iter().zip(base).enumerate() {
                let (position, o) = (at / g.output_channels, at % g.output_channels);
                let (mut want, mut room) = (bias[o] as f64 + sum, bias[o].abs() as f64 + magnitude);
                for r in 0..rank {
                    let ([h, magnitude], b) = (h[position * rank + r], b[r * g.output_channels + o] as f64);
                    want += h * b;
                    room += magnitude * b.abs();
                }
                assert!(
                    (*got as f64 - want.clamp(-0.4f32 as f64, 0.7f32 as f64)).abs() <= RELATIVE * room,
                    "{g:?} {rank}"
                );
            }
        }
    }
}

#[test]
fn not_a_number_comes_to_what_reads_it() {
    for (g, axis) in geometries() {
        let layer = Winograd::along(&g, axis).unwrap();
        let w = vec![1.0; g.patch() * g.output_channels];
        let u = transformed(layer, &w);
        for at in 0..g.input_len().min(60) {
            let mut x = vec![0.5; g.input_len()];
            x[at] = f32::NAN;
            let (mut y, mut work) = (vec![0.0; g.output_len()], vec![0.0; layer.work_len()]);
            layer.convolve(Start::Zero, &x, &u, &mut y, None, &mut work);
            for (y, [sum, _]) in y.iter().zip(oracle(&g, axis, &x, &w)) {
                assert_eq!(y.is_nan(), sum.is_nan(), "{g:?} at {at}");
            }
        }
    }
}

#[test]
fn the_way_back_is_the_convolution_with_reversed_taps() {
    for (index, (g, axis)) in geometries().into_iter().enumerate() {
        let Some(mirror) = g.mirrored() else { continue };
        let layer = Winograd::along(&g, axis).unwrap();
        let w = values(index as u64, g.patch() * g.output_channels);
        let mut ut = vec![f32::NAN; layer.weights_len()];
        layer.mirror_weights(&transformed(layer, &w), &mut ut);
        let taps = g.kernel[0] * g.kernel[1];
        let mut reversed = vec![0.0; w.len()];
        for tap in 0..taps {
            for c in 0..g.input_channels {
                for o in 0..g.output_channels {
                    reversed[((taps - 1 - tap) * g.output_channels + o) * g.input_channels + c] =
                        w[(tap * g.input_channels + c) * g.output_channels + o];
                }
            }
        }
        // Sums of three in the other order: the same to a rounding.
        let want = transformed(Winograd::along(&mirror, axis).unwrap(), &reversed);
        assert!(ut.iter().zip(&want).all(|(got, want)| (got - want).abs() <= 4.0 * f32::EPSILON), "{g:?}");
    }
}

#[test]
fn a_value_depends_on_nothing_but_its_place_along_the_axis() {
    let whole = geometry([40, 17], [8, 16], [3, 3], [1, 1, 1, 1]);
    let part = ConvGeometry { input: [6, 17], output: [4, 17], pads_begin: [0, 1], ..whole.clone() };
    let (x, w) = (values(1, whole.input_len()), values(2, whole.patch() * 16));
    let run = |g: &ConvGeometry, x: &[f32]| {
        let layer = Winograd::along(g, 1).unwrap();
        let (mut y, mut work) = (vec![0.0; g.output_len()], vec![0.0; layer.work_len()]);
        layer.convolve(Start::Zero, x, &transformed(layer, &w), &mut y, None, &mut work);
        y
    };
    let y = run(&whole, &x);
    for row in 1..34 {
        let found = run(&part, &x[(row - 1) * 17 * 8..][..part.input_len()]);
        assert_eq!(found, y[row * 17 * 16..][..part.output_len()], "row {row}");
    }
}
