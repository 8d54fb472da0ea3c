use super::*;

/// Relative to Σ|a·b|: k ≤ 40 roundings of 2⁻²⁴ each, with room for the last addition.
const RELATIVE: f64 = 4e-6;

fn values(seed: u64, n: usize) -> Vec<f32> {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    (0..n)
        .map(|_| {
            s = s.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((s >> 40) as f32 / (1u64 << 24) as f32) * 2.0 - 1.0
        })
        .collect()
}

fn check(m: usize, n: usize, k: usize, transposed: bool, generic: bool) {
    let a = values(1, m * k + 3);
    let b = values(2, k * (n + 2) + 1);
    let bias = values(3, n);
    let (a_row, a_col) = if transposed { (1, m) } else { (k, 1) };
    for start in [Start::Zero, Start::Add, Start::Bias(&bias)] {
        let c0 = values(4, m * (n + 1) + 1);
        let mut c = c0.clone();
        let matrix = Matrix { values: &a[1..], rows: Walk::even(a_row), columns: Walk::even(a_col) };
        product(start, m, n, k, matrix, &b[1..], Rows::Walk(Walk::even(n + 2)), &mut c[1..], n + 1, None, generic);
        let mut expected = c0.clone();
        for i in 0..m {
            for j in 0..n {
                let mut sum = match start {
                    Start::Zero => 0.0,
                    Start::Add => c0[1 + i * (n + 1) + j] as f64,
                    Start::Bias(bias) => bias[j] as f64,
                };
                for p in 0..k {
                    sum += a[1 + i * a_row + p * a_col] as f64 * b[1 + p * (n + 2) + j] as f64;
                }
                expected[1 + i * (n + 1) + j] = sum as f32;
            }
        }
        if !generic && !transposed {
            let rows: Vec<f32> = (0..k).flat_map(|p| b[1 + p * (n + 2)..][..n].to_vec()).collect();
            let (mut packed, mut from_packed, mut from_rows) = (vec![0.0; k * n], c0.clone(), c0.clone());
            gemm_walk(start, m, n, k, matrix, &rows, Walk::even(n), &mut from_rows[1..], n + 1, None);
            assert_eq!(c, from_rows, "{m}x{n}x{k} without a gap");
            pack(k, n, &rows, &mut packed);
            gemm_packed(start, m, n, k, matrix, &packed, &mut from_packed[1..], n + 1, None);
            assert_eq!(c, from_packed, "{m}x{n}x{k} packed");
        }
        for (got, want) in c.iter().zip(&expected) {
            assert!(((got - want).abs() as f64) <= RELATIVE * (k as f64 + 1.0), "{m}x{n}x{k}: {got} {want}");
        }
    }
}

#[test]
fn agrees_with_the_oracle_for_all_remainders() {
    for generic in [false, true] {
        for m in [0, 1, 2, 3, 5, 6, 7, 11, 13] {
            for n in (0..=68).chain([127, 129]) {
                check(m, n, 5, false, generic);
                check(m, n, 3, true, generic);
            }
        }
        for k in [0, 1, 2, 40] {
            check(7, 19, k, false, generic);
            check(7, 19, k, true, generic);
        }
        // Rows that are shared out among tiles of two heights, and more steps than stay in L1.
        for m in [16, 25, 26, 27, 28, 29, 49] {
            check(m, 41, 7, false, generic);
            check(m, 24, 1030, false, generic);
        }
    }
}

/// Rows and steps of k in two levels give what the same values written out give.
#[test]
fn walks_agree_with_matrices_written_out() {
    let sizes = [(7, 19, 3, 4), (1, 8, 2, 5), (12, 33, 1, 6), (9, 5, 4, 1), (13, 50, 10, 7), (26, 40, 9, 130)];
    for (m, n, outer, inner) in sizes.into_iter().chain([(13, 50, 3, 12), (9, 33, 5, 8), (25, 64, 10, 4)]) {
        let k = outer * inner;
        let rows = Walk { inner: 4, step: 3, jump: 29 };
        let columns = Walk { inner, step: 1, jump: 17 };
        let values_a = values(1, rows.at(m - 1) + columns.at(k - 1) + 1);
        let b_rows = Walk { inner, step: n + 1, jump: (n + 1) * inner + 5 };
        let values_b = values(2, b_rows.at(k - 1) + n);
        let a: Vec<f32> = (0..m * k).map(|i| values_a[rows.at(i / k) + columns.at(i % k)]).collect();
        let b: Vec<f32> = (0..k * n).map(|i| values_b[b_rows.at(i / n) + i % n]).collect();
        let (mut expected, mut got, mut turned) = (vec![1.0; m * n], vec![1.0; m * n], vec![1.0; m * n]);
        gemm(m, n, k, &a, k, 1, &b, n, &mut expected, n);
        let walked = Matrix { values: &values_a, rows, columns };
        gemm_walk(Start::Add, m, n, k, walked, &values_b, b_rows, &mut got, n, None);
        assert_eq!(got, expected, "{m}x{n}x{k}");
        let (mut packed, mut from_packed) = (vec![0.0; k * n], vec![1.0; m * n]);
        pack(k, n, &b, &mut packed);
        gemm_packed(Start::Add, m, n, k, walked, &packed, &mut from_packed, n, None);
        assert_eq!(from_packed, expected, "{m}x{n}x{k} packed");
        // The token without SIMD has four lanes, and with AVX2 panels of one width: short steps by fours.
        if on(true, Lanes) * wide(on(true, Lanes)) == panel() {
            from_packed.fill(1.0);
            product(Start::Add, m, n, k, walked, &packed, Rows::Packed, &mut from_packed, n, None, true);
            for (got, want) in from_packed.iter().zip(&expected) {
                assert!(((got - want).abs() as f64) <= RELATIVE * (k as f64 + 1.0), "{m}x{n}x{k}: {got} {want}");
            }
        }
        // The same with A's values in columns: not side by side along k.
        let mut at: Vec<f32> = vec![0.0; m * k];
        a.iter().enumerate().for_each(|(i, v)| at[i % k * m + i / k] = *v);
        let columns = Matrix { values: &at, rows: Walk::even(1), columns: Walk::even(m) };
        gemm_walk(Start::Add, m, n, k, columns, &values_b, b_rows, &mut turned, n, None);
        assert_eq!(turned, expected, "{m}x{n}x{k}");
    }
}
