use super::*;
use crate::ops::check::Case;

fn values(seed: u64, n: usize) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..n).map(|_| rng.f32() * 2.0 - 1.0).collect()
}

/// Plain loops over the formula of ONNX Conv, channels last.
pub(crate) fn oracle(g: &ConvGeometry, x: &[f64], w: &[f64], bias: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; g.output_len()];
    let (patch, inputs, outputs) = (g.patch(), g.group_inputs(), g.group_outputs());
    for oy in 0..g.output[0] {
        for ox in 0..g.output[1] {
            for o in 0..g.output_channels {
                let group = o / outputs;
                let mut sum = bias.get(o).copied().unwrap_or(0.0);
                for ky in 0..g.kernel[0] {
                    for kx in 0..g.kernel[1] {
                        let iy = (oy * g.stride[0] + ky * g.dilation[0]) as isize - g.pads_begin[0] as isize;
                        let ix = (ox * g.stride[1] + kx * g.dilation[1]) as isize - g.pads_begin[1] as isize;
                        if iy < 0 || ix < 0 || iy as usize >= g.input[0] || ix as usize >= g.input[1] {
                            continue;
                        }
                        for c in 0..inputs {
                            let at = (iy as usize * g.input[1] + ix as usize) * g.input_channels + group * inputs + c;
                            let k = (ky * g.kernel[1] + kx) * inputs + c;
                            sum += x[at] * w[(group * patch + k) * outputs + o % outputs];
                        }
                    }
                }
                y[(oy * g.output[1] + ox) * g.output_channels + o] = sum;
            }
        }
    }
    y
}

fn geometries() -> Vec<ConvGeometry> {
    let g = |input, cin, output, cout, kernel, stride, dilation, pads_begin, groups| ConvGeometry {
        input,
        input_channels: cin,
        output,
        output_channels: cout,
        kernel,
        stride,
        dilation,
        pads_begin,
        groups,
    };
    vec![
        ConvGeometry::dense(1, 7, 5),
        ConvGeometry::dense(3, 64, 12),
        g([5, 4], 3, [5, 4], 7, [3, 3], [1, 1], [1, 1], [1, 1], 1),
        g([7, 5], 3, [3, 2], 5, [2, 2], [3, 3], [1, 1], [0, 0], 1), // stride above the kernel
        g([6, 5], 2, [6, 5], 3, [4, 2], [1, 1], [1, 1], [2, 0], 1), // padding on one side
        g([9, 8], 4, [5, 4], 6, [3, 3], [1, 1], [2, 2], [0, 0], 2), // dilation, groups
        g([1, 16], 3, [1, 8], 13, [1, 5], [1, 2], [1, 1], [0, 2], 1), // 1-D
        g([13, 12], 17, [7, 6], 19, [3, 3], [2, 2], [1, 1], [1, 1], 1),
        g([4, 4], 3, [4, 4], 6, [3, 3], [1, 1], [1, 1], [1, 1], 3), // depthwise with a multiplier
        g([7, 4], 5, [7, 4], 6, [3, 1], [1, 1], [1, 1], [1, 0], 1), // three taps along the rows
        g([6, 7], 4, [3, 5], 9, [3, 3], [2, 1], [1, 1], [1, 0], 1), // three along the columns, no way back by a convolution
    ]
}

#[test]
fn frozen_layer_against_oracle_and_central_differences() {
    for (index, g) in geometries().into_iter().enumerate() {
        let x = values(index as u64, g.input_len());
        let rows = values(50 + index as u64, g.groups * g.patch() * g.group_outputs());
        let bias = if index % 2 == 0 { values(90, g.output_channels) } else { vec![] };
        let mut weights = ConvWeights::new(&g, &rows, bias);
        let mut back = vec![0.0; rows.len()];
        unpack_groups(&g, &weights.w, &mut back);
        assert_eq!(back, rows);
        let w: Vec<f64> = rows.iter().map(|v| *v as f64).collect();
        let bias: Vec<f64> = weights.bias.iter().map(|v| *v as f64).collect();
        for tiled in [None, Some(0), Some(1)] {
            let conv = Conv { tiled, ..Conv::new(g.clone(), Activation::None) };
            if tiled.is_some() && conv.tiles(&g).is_none() {
                continue;
            }
            weights.derive(&conv, true);
            assert_eq!(weights.u.is_empty(), tiled.is_none());
            let op = FrozenConv { conv, weights: Arc::new(weights.clone()) };
            Case { op: &op, x: vec![x.clone()], oracle: &|x| oracle(&g, &x[0], &w, &bias) }.run();
        }
    }
}

/// Relative to the norm of the tensor: f32 sums of some hundred products.
const RELATIVE: f64 = 1e-6;

fn close(got: &[f32], want: &[f64], what: &str) {
    let difference: f64 = got.iter().zip(want).map(|(g, w)| (*g as f64 - w).powi(2)).sum();
    let norm: f64 = want.iter().map(|w| w * w).sum();
    assert!(
        norm > 0.0 && difference.sqrt() <= RELATIVE * norm.sqrt(),
        "{what}: {} of {}",
        difference.sqrt(),
        norm.sqrt()
    );
}

#[test]
fn weight_and_low_rank_gradients_against_the_oracle() {
    for (index, g) in geometries().into_iter().enumerate() {
        let (patch, outputs) = (g.patch(), g.group_outputs());
        let x = values(index as u64, g.input_len());
        let dz = values(7 + index as u64, g.output_len());
        let conv = Conv::new(g.clone(), Activation::None);
        // The loss Σ dz·y is linear in each weight, so its derivative is y with that weight one and all others zero.
        let xd: Vec<f64> = x.iter().map(|v| *v as f64).collect();
        let mut expected = vec![0.0; g.groups * patch * outputs];
        for at in 0..expected.len() {
            let mut one = vec![0.0; expected.len()];
            one[at] = 1.0;
            expected[at] = oracle(&g, &xd, &one, &[]).iter().zip(&dz).map(|(y, d)| y * *d as f64).sum();
        }
        let mut dw = vec![0.0; expected.len()];
        let mut work = vec![f32::NAN; conv.low_rank_work(4 * g.groups)];
        conv.weight_gradient(&x, &dz, &mut dw, &mut work);
        close(&dw, &expected, "dw");

        let rank = 2 * g.groups;
        let a = values(21, rank * patch);
        let bt = values(22, 2 * g.output_channels);
        let scale = 0.75;
        let mut factors = Factors { a_t: vec![0.0; a.len()], b: vec![0.0; bt.len()], ..Factors::default() };
        let (mut da_want, mut dbt_want) = (vec![0.0; a.len()], vec![0.0; bt.len()]);
        for group in 0..g.groups {
            transpose(&a[group * 2 * patch..][..2 * patch], 2, patch, &mut factors.a_t[group * 2 * patch..]);
            transpose(&bt[group * 2 * outputs..][..2 * outputs], 2, outputs, &mut factors.b[group * 2 * outputs..]);
            for j in 0..2 {
                for k in 0..patch {
                    for o in 0..outputs {
                        let d = scale as f64 * expected[(group * patch + k) * outputs + o];
                        da_want[(group * 2 + j) * patch + k] += d * bt[(group * 2 + j) * outputs + o] as f64;
                        dbt_want[(group * 2 + j) * outputs + o] += d * a[(group * 2 + j) * patch + k] as f64;
                    }
                }
            }
        }
        let (mut da, mut dbt) = (vec![0.0; a.len()], vec![0.0; bt.len()]);
        conv.low_rank_gradient(&factors, rank, scale, &x, &dz, &mut da, &mut dbt, &mut work);
        close(&da, &da_want, "da");
        close(&dbt, &dbt_want, "dbt");
    }
}
