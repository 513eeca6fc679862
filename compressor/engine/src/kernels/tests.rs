//! Every instruction set against the scalar loops, and those against sums in f64.

use alloc::vec::Vec;
use std::io::Write;

use compressor_format::{Activation, Dtype, QuantizedMatrix, Scales, Scheme, TensorSlice, Values, WeightBytes, pack};

use super::attention::Attend;
use super::dense::{Dense, Dots, Widen};
use super::integer::{Dequantize, MultiplyReal, MultiplyRounded, Rest, Rounded, Vectors};
use super::lines::Arena;
use super::vector::{Activate, Add, InputScales, Round, exp, softmax};
use super::view::ViewMut;
use super::{BLOCK, Kernel, Kernels, LANES, Simd};
use crate::cache::{KvType, LayerCache};
use crate::half::f32_to_f16;
use crate::packed::{Blocks, Packed};
use crate::pool::Pool;

const LENGTHS: [usize; 7] = [0, 1, 31, 32, 33, 576, 1536];

/// Two threads where there are threads.
fn pool() -> Pool {
    #[cfg(feature = "std")]
    return Pool::new(2).expect("threads start");
    #[cfg(not(feature = "std"))]
    return Pool;
}

/// Numbers without a pattern, of both signs.
fn wave(len: usize, step: f32) -> Vec<f32> {
    (0..len).map(|index| (index as f32 * step).sin() * 2.0).collect()
}

/// A sum of `terms` computed in f32, in any order, is off by at most this much: one rounding for each of the terms at worst,
/// in practice the square root of it.
fn rounding(terms: &[f64]) -> f64 {
    let size: f64 = terms.iter().map(|term| term.abs()).sum();
    size * (4.0 + f64::sqrt(terms.len() as f64)) * f64::from(f32::EPSILON)
}

fn check_sum(found: f32, terms: &[f64], what: &str) {
    let (expected, allowed): (f64, f64) = (terms.iter().sum(), rounding(terms));
    assert!((f64::from(found) - expected).abs() <= allowed, "{what}: {found}, expected {expected} ± {allowed}");
}

/// What `run` gives with every instruction set; those with fused multiply-add must agree in every bit.
fn with_all(run: impl Fn(Kernels) -> Vec<f32>, mut check: impl FnMut(&str, Vec<f32>)) {
    let mut fused: Option<Vec<u32>> = None;
    for kernels in Kernels::available() {
        let found = run(kernels);
        if kernels != Kernels::Scalar {
            let bits: Vec<u32> = found.iter().map(|x| x.to_bits()).collect();
            assert!(fused.get_or_insert_with(|| bits.clone()) == &bits, "{} gives other bits", kernels.name());
        }
        check(kernels.name(), found);
    }
}

/// All but the scalar loops, which are the judge.
fn others() -> impl Iterator<Item = Kernels> {
    Kernels::available().into_iter().filter(|kernels| *kernels != Kernels::Scalar)
}

/// Says it past the capture of output, which only keeps what macros print: the table is shown when all is well too.
fn tell(line: &str) {
    #[allow(clippy::disallowed_methods)]
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// One integer product of every kind.
struct Products<'a> {
    weights: [&'a [u8; LANES * BLOCK]; 2],
    x: [&'a [i8; BLOCK]; 6],
    start: i32,
}

impl Kernel for Products<'_> {
    /// Two blocks times six vectors, one times one, and the first half of its bytes as nibbles times another.
    type Output = Vec<[i32; LANES]>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        let start = simd.splat_i32(self.start);
        // What the offset of unsigned bytes amounts to, where the instruction set takes it off.
        let offset = |x: &[i8; BLOCK]| if S::SIGNED { 128 * x.iter().map(|x| i32::from(*x)).sum::<i32>() } else { 0 };
        let starts = self.x.map(|x| simd.splat_i32(self.start + offset(x)));
        let mut found = Vec::new();
        let mut keep = |x: S::I32| {
            let mut lanes = [0; LANES];
            simd.store_i32(x, &mut lanes);
            found.push(lanes);
        };
        simd.dots(self.weights, self.x, starts).into_iter().flatten().for_each(&mut keep);
        simd.dots([self.weights[1]], [self.x[0]], [starts[0]]).into_iter().flatten().for_each(&mut keep);
        keep(simd.dot_nibbles(self.weights[0].first_chunk().expect("half of a block"), self.x[1], start));
        found
    }
}

#[test]
fn integer_products_are_those_of_the_scalar_loops() {
    let mut random = 1u64;
    let mut byte = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 56) as u8
    };
    tell(&format!("{:<14}{:>18}{:>12}", "kernels", "integer products", "extremes"));
    for kernels in others() {
        let mut counts = [0, 0];
        // Extremes in all places, one after the other; then anything.
        let extremes = [(0, 0), (255, 127), (255, 128), (0, 128), (128, 1), (127, 255)];
        for case in 0..300 {
            let extreme = extremes.get(case);
            let weights: [[u8; LANES * BLOCK]; 2] =
                std::array::from_fn(|_| std::array::from_fn(|_| extreme.map_or_else(&mut byte, |extreme| extreme.0)));
            let x: [[i8; BLOCK]; 6] =
                std::array::from_fn(|_| std::array::from_fn(|_| extreme.map_or_else(&mut byte, |extreme| extreme.1) as i8));
            let products = || Products { weights: weights.each_ref(), x: x.each_ref(), start: -7 * case as i32 };
            assert_eq!(kernels.run(products()), Kernels::Scalar.run(products()), "{}, case {case}", kernels.name());
            counts[usize::from(extreme.is_some())] += 14;
        }
        tell(&format!("{:<14}{:>18}{:>12}", kernels.name(), counts[0], counts[1]));
        assert_eq!(counts, [294 * 14, 6 * 14]);
    }
    // By hand: 255 · −128 · 32 columns + start.
    let (weights, x) = ([255; LANES * BLOCK], [-128; BLOCK]);
    let found = Kernels::Scalar.run(Products { weights: [&weights; 2], x: [&x; 6], start: 5 });
    assert!(found[..13].iter().flatten().all(|sum| *sum == 255 * -128 * 32 + 5));
    assert!(found[13].iter().all(|sum| *sum == 15 * -128 * 32 + 5));
}

/// A matrix with values in every place, an all-zero group among them.
fn matrix(rows: usize, columns: usize, bits: u8, group_size: Option<usize>, zero_points: bool, signed: bool) -> QuantizedMatrix {
    let scheme = Scheme { bits, group_size, symmetric: !zero_points };
    let (low, high) = scheme.range();
    let span = high - low + 1;
    let groups = scheme.groups(columns);
    let integer = |row: usize, column: usize| match column / (columns / groups) {
        0 if row == 0 => 0,
        _ if column % 7 == 3 => {
            if row.is_multiple_of(2) {
                low
            } else {
                high
            }
        }
        _ => (row * 89 + column * 31 + column / 5) as i32 % span + low,
    };
    let integers: Vec<i8> = (0..rows * columns).map(|at| integer(at / columns, at % columns) as i8).collect();
    let values = match signed {
        true => Values::Signed(WeightBytes::Owned(integers.iter().map(|q| *q as u8).collect())),
        false => {
            let packed: Vec<u8> = integers.chunks_exact(columns).flat_map(|row| pack(row, bits)).collect();
            Values::Packed(WeightBytes::Owned(packed.into()))
        }
    };
    let scales: Vec<f32> = wave(rows * groups, 0.77).iter().map(|scale| scale.abs() + 0.01).collect();
    let zero_points = zero_points.then(|| (0..rows * groups).map(|at| (at * 5 % 16) as i8 - 8).collect());
    QuantizedMatrix { rows, columns, scheme, values, scales: scales.into(), zero_points }
}

/// Scales as a file has them in f16.
fn as_f16(scales: &Scales) -> Scales {
    let bytes: Vec<u8> = scales.iter().flat_map(|scale| f32_to_f16(scale).to_le_bytes()).collect();
    let slice = TensorSlice { dtype: Dtype::F16, shape: vec![scales.len()], bytes: bytes.into() };
    Scales::stored(&slice).expect("a float type")
}

/// Every width, storage, type of scales and split of columns, with rows that do not fill a tile.
fn matrices(mut check: impl FnMut(&QuantizedMatrix, &str)) -> usize {
    let mut count = 0;
    for columns in LENGTHS {
        for group_size in [None, Some(16), Some(24), Some(32), Some(64), Some(96), Some(192)] {
            if columns == 0 || group_size.is_some_and(|size| columns % size != 0 || size > columns) {
                continue;
            }
            for rows in [1, 15, 16, 33, 49] {
                for (bits, signed) in [(4, false), (8, false), (8, true)] {
                    for zero_points in [false, true] {
                        let mut matrix = matrix(rows, columns, bits, group_size, zero_points, signed);
                        let half = (count / 6 + count) % 2 == 1;
                        if half {
                            matrix.scales = as_f16(&matrix.scales);
                        }
                        let what = format!("{rows} × {columns}, {}, signed {signed}, f16 scales {half}", matrix.scheme);
                        check(&matrix, &what);
                        count += 1;
                    }
                }
            }
        }
    }
    count
}

fn round(kernels: Kernels, x: &[f32], blocks: Blocks) -> (Vec<Rounded>, Vec<Rest>) {
    let (mut rounded, mut rests) = (vec![Rounded::ZERO; blocks.count()], Vec::new());
    kernels.run(Round { x, group: blocks.group, scales: InputScales::PerBlock, out: &mut rounded, rests: &mut rests });
    (rounded, rests)
}

#[test]
fn products_of_matrices_are_those_of_integers_worked_one_by_one() {
    let pool = pool();
    let mut with_rests = 0;
    let count = matrices(|matrix, what| {
        let packed = Packed::new(matrix, &pool, &Arena::default());
        let blocks = packed.blocks();
        let tokens = if matrix.rows == 33 { 13 } else { 2 };
        let x: Vec<Vec<f32>> = (0..tokens).map(|token| with_outlier(matrix.columns, 0.37 + token as f32, token)).collect();
        let (rounded, rests): (Vec<_>, Vec<_>) = x.iter().map(|x| round(Kernels::Scalar, x, blocks)).unzip();
        with_rests += rests.iter().filter(|rests| !rests.is_empty()).count();
        let mut expected = Vec::new();
        for (rounded, rests) in rounded.iter().zip(&rests) {
            for row in 0..matrix.rows {
                let integers = matrix.row_integers(row);
                let twice = rests.iter().map(|rest| (rest.block, &rest.rounded));
                let terms = rounded.iter().enumerate().chain(twice).map(|(block, x)| {
                    let columns = columns_of(block, blocks);
                    let group = row * matrix.groups() + columns.start / matrix.group_size();
                    let point = matrix.zero_points.as_ref().map_or(0, |points| i64::from(points[group]));
                    let products = integers[columns].iter().zip(x.integers).map(|(q, x)| (i64::from(*q) - point) * i64::from(x));
                    products.sum::<i64>() as f64 * f64::from(matrix.scales.get(group)) * f64::from(x.scale)
                });
                expected.push(terms.collect::<Vec<f64>>());
            }
        }
        let all: Vec<Rounded> = rounded.concat();
        let together = |kernels: Kernels| {
            let mut out = vec![f32::NAN; tokens * matrix.rows];
            let view = ViewMut::new(&mut out, matrix.rows);
            kernels.run(MultiplyRounded {
                matrix: &packed,
                first_tile: 0,
                x: Vectors { blocks: &all, rests: &rests },
                out: view,
            });
            out
        };
        with_all(together, |name, found| {
            for (found, terms) in found.iter().zip(&expected) {
                check_sum(*found, terms, &format!("{name}, {what}"));
            }
        });
        for kernels in Kernels::available() {
            let alone: Vec<f32> = rounded
                .iter()
                .zip(rests.chunks(1))
                .flat_map(|(blocks, rests)| {
                    let mut out = vec![f32::NAN; matrix.rows];
                    let view = ViewMut::new(&mut out, matrix.rows);
                    kernels.run(MultiplyRounded { matrix: &packed, first_tile: 0, x: Vectors { blocks, rests }, out: view });
                    out
                })
                .collect();
            assert_eq!(alone, together(kernels), "{}, {what}: one by one and together", kernels.name());
        }
    });
    assert_eq!(count, (1 + 1 + 3 + 1 + 7 + 7) * 5 * 6, "lengths with their groups, row counts, storages");
    assert!(with_rests > 1000, "vectors with blocks that are rounded twice: {with_rests}");
}

/// A wave with one value far above the others, at a place that `token` decides.
fn with_outlier(len: usize, step: f32, token: usize) -> Vec<f32> {
    let mut x = wave(len, step);
    if let Some(x) = x.get_mut((token * 37 + 5) % len.max(1)) {
        *x = 60.0;
    }
    x
}

/// The columns of a block.
fn columns_of(block: usize, Blocks { group, .. }: Blocks) -> std::ops::Range<usize> {
    let per_group = group.div_ceil(BLOCK);
    let first = block / per_group * group + block % per_group * BLOCK;
    first..(first + BLOCK).min((block / per_group + 1) * group)
}

#[test]
fn what_rounding_leaves_of_the_largest_blocks_is_rounded_too() {
    for kernels in Kernels::available() {
        // Nine blocks with scales 1, one with 10: the root mean square is √10.9, and 10 is above 2.5 times that.
        let mut x = vec![0.3; 10 * BLOCK];
        x.iter_mut().step_by(BLOCK).for_each(|x| *x = 127.0);
        x[5 * BLOCK] = -1270.0;
        let (rounded, rests) = round(kernels, &x, Blocks { columns: x.len(), group: x.len() });
        assert_eq!(rounded.iter().map(|block| block.scale).collect::<Vec<_>>(), [1., 1., 1., 1., 1., 10., 1., 1., 1., 1.]);
        assert_eq!(rounded[5].integers[..3], [-127, 0, 0]);
        let [Rest { block: 5, rounded: rest }] = rests.as_slice() else { panic!("one rest, of block 5: {rests:?}") };
        assert_eq!((rest.integers[0], rest.integers[1], rest.integers[31]), (0, 127, 127));
        assert_eq!((rest.scale, rest.minus_sum), (0.3 / 127.0, -31 * 127));
        // One scale for all leaves none, and takes back those of the vector before.
        let (mut rounded, mut rests) = (rounded, rests);
        kernels.run(Round { x: &x, group: x.len(), scales: InputScales::PerToken, out: &mut rounded, rests: &mut rests });
        assert!(rests.is_empty());
        // Neither do equal blocks, nor zeros.
        assert!(round(kernels, &[1.0; 64], Blocks { columns: 64, group: 64 }).1.is_empty());
        assert!(round(kernels, &[0.0; 64], Blocks { columns: 64, group: 64 }).1.is_empty());
    }
}

#[test]
fn whole_sums_of_integers_are_those_of_the_scalar_loops() {
    let pool = pool();
    tell(&format!("{:<14}{:>18}", "kernels", "matrices"));
    for kernels in others() {
        let count = matrices(|matrix, what| {
            // Scales of one: what is added is whole, and rounds alike fused or not.
            let matrix = QuantizedMatrix { scales: vec![1.0; matrix.scales.len()].into(), ..matrix.clone() };
            let packed = Packed::new(&matrix, &pool, &Arena::default());
            let x = with_outlier(matrix.columns, 0.81, 3);
            let (mut rounded, mut rests) = round(Kernels::Scalar, &x, packed.blocks());
            rounded.iter_mut().chain(rests.iter_mut().map(|rest| &mut rest.rounded)).for_each(|block| block.scale = 1.0);
            for tokens in [1, 7] {
                let (rounded, rests) = (rounded.repeat(tokens), vec![rests.clone(); tokens]);
                let x = Vectors { blocks: &rounded, rests: &rests };
                let run = |kernels: Kernels| {
                    let mut out = vec![f32::NAN; tokens * matrix.rows];
                    let view = ViewMut::new(&mut out, matrix.rows);
                    kernels.run(MultiplyRounded { matrix: &packed, first_tile: 0, x, out: view });
                    out
                };
                assert_eq!(run(kernels), run(Kernels::Scalar), "{}, {what}, {tokens} tokens", kernels.name());
            }
        });
        tell(&format!("{:<14}{count:>18}", kernels.name()));
        assert_eq!(count, 600);
    }
}

#[test]
fn nothing_gives_nothing() {
    for kernels in Kernels::available() {
        kernels.run(Add { out: &mut [], x: &[] });
        kernels.run(Widen { values: Dense::Bf16(&[]), out: &mut [] });
        kernels.run(Activate { activation: Activation::Silu, gate: Some(&[]), up: &[], out: &mut [] });
        kernels.run(Round { x: &[], group: 32, scales: InputScales::PerBlock, out: &mut [], rests: &mut Vec::new() });
        kernels.run(Dots { rows: Dense::F32(&[]), x: &[1.0], columns: 1, out: ViewMut::new(&mut [], 0) });
        let packed = Packed::new(&matrix(1, 1, 4, None, false, false), &pool(), &Arena::default());
        let x = Vectors { blocks: &[], rests: &[] };
        kernels.run(MultiplyRounded { matrix: &packed, first_tile: 0, x, out: ViewMut::new(&mut [], 1) });
        kernels.run(Dequantize { matrix: &packed, first_tile: 0, out: &mut [] });
        let head = LayerCache::new(1, 8, 0, KvType::F32);
        let write = &mut |_: usize, _: &[f32]| unreachable!("no rows");
        kernels.run(Attend { head: head.head(0), queries: &[], seen: &[], write });
    }
}

#[test]
fn packed_rows_stand_for_the_same_numbers() {
    let pool = pool();
    matrices(|matrix, what| {
        let packed = Packed::new(matrix, &pool, &Arena::default());
        let expected: Vec<f32> = (0..matrix.rows).flat_map(|row| matrix.row(row)).collect();
        let mut rows = vec![f32::NAN; matrix.rows * matrix.columns];
        for (row, out) in rows.chunks_exact_mut(matrix.columns).enumerate() {
            packed.widen_row(row, out);
        }
        assert_eq!(rows, expected, "{what}");
        for kernels in Kernels::available() {
            rows.fill(f32::NAN);
            kernels.run(Dequantize { matrix: &packed, first_tile: 0, out: &mut rows });
            assert_eq!(rows, expected, "{}, {what}", kernels.name());
        }
        let x = wave(matrix.columns, 1.3);
        let run = |kernels: Kernels| {
            let mut out = vec![f32::NAN; matrix.rows];
            kernels.run(MultiplyReal { matrix: &packed, first_tile: 0, x: &x, out: &mut out });
            out
        };
        with_all(run, |name, found| {
            for (found, row) in found.iter().zip(expected.chunks_exact(matrix.columns)) {
                let terms: Vec<f64> = row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).collect();
                check_sum(*found, &terms, &format!("{name}, {what}"));
            }
        });
    });
}

#[test]
fn dense_products_agree_with_sums_in_f64() {
    for len in LENGTHS.into_iter().filter(|len| *len > 0) {
        let (a, b) = (wave(3 * len, 0.37), wave(2 * len, 1.91));
        let f16: Vec<u16> = a.iter().map(|a| f32_to_f16(*a)).collect();
        let bf16: Vec<u16> = a.iter().map(|a| (a.to_bits() >> 16) as u16).collect();
        for (name, rows) in [("f32", Dense::F32(&a)), ("f16", Dense::F16(&f16)), ("bf16", Dense::Bf16(&bf16))] {
            let wide: Vec<f32> = match rows {
                Dense::F32(values) => values.to_vec(),
                Dense::F16(values) => values.iter().map(|bits| half::f16::from_bits(*bits).to_f32()).collect(),
                Dense::Bf16(values) => values.iter().map(|bits| half::bf16::from_bits(*bits).to_f32()).collect(),
            };
            for kernels in Kernels::available() {
                let mut out = vec![f32::NAN; 3 * len];
                kernels.run(Widen { values: rows, out: &mut out });
                assert_eq!(out, wide, "{name}, {}", kernels.name());
            }
            let run = |kernels: Kernels| {
                let mut out = vec![f32::NAN; 6];
                kernels.run(Dots { rows, x: &b, columns: len, out: ViewMut::new(&mut out, 3) });
                out
            };
            with_all(run, |kernels, found| {
                for (at, found) in found.iter().enumerate() {
                    let (row, x) = (&wide[at % 3 * len..][..len], &b[at / 3 * len..][..len]);
                    let terms: Vec<f64> = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).collect();
                    check_sum(*found, &terms, &format!("{name} of {len}, {kernels}"));
                }
            });
        }
    }
}

/// A softmax over the first `len` elements of a slice of whole vectors.
struct Softmax<'a>(&'a mut [f32], usize);

impl Kernel for Softmax<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        softmax(simd, self.0, self.1)
    }
}

#[test]
fn softmax_sums_to_one_and_keeps_ratios() {
    for len in LENGTHS.into_iter().filter(|len| *len > 0) {
        let x = wave(len, 0.7);
        let sum: f64 = x.iter().map(|x| f64::from(*x).exp()).sum();
        let run = |kernels: Kernels| {
            let mut padded = x.clone();
            padded.resize((len + LANES).next_multiple_of(LANES), 1e9);
            let factor = kernels.run(Softmax(&mut padded, len));
            padded.iter().map(|x| x * factor).collect()
        };
        with_all(run, |name, found| {
            for (found, x) in found.iter().zip(&x) {
                let expected = f64::from(*x).exp() / sum;
                assert!((f64::from(*found) / expected - 1.0).abs() < 1e-6, "{name} of {len}");
            }
            assert!(found[len..].iter().all(|x| *x == 0.0), "{name} of {len}: what does not count is zero");
        });
    }
    for kernels in Kernels::available() {
        let mut far = [f32::NAN; LANES];
        far[..4].copy_from_slice(&[1000.0, 0.0, -1000.0, 1000.0]);
        let factor = kernels.run(Softmax(&mut far, 4));
        assert_eq!((far[0] * factor, far[3] * factor), (0.5, 0.5));
        assert!(far[1] < 1e-37 && far[2] < 1e-37);
    }
}

struct Exp<'a>(&'a mut [f32; LANES]);

impl Kernel for Exp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        simd.store(exp(simd, simd.load(self.0)), self.0);
    }
}

#[test]
fn exponentials_are_close_and_keep_nan() {
    for kernels in Kernels::available() {
        for step in -870..=880 {
            let mut lanes = [step as f32 * 0.1; LANES];
            kernels.run(Exp(&mut lanes));
            let expected = f64::from(step as f32 * 0.1).exp();
            // Two units in the last place.
            assert!((f64::from(lanes[5]) / expected - 1.0).abs() <= 2.0 * f64::from(f32::EPSILON), "{step}: {}", lanes[5]);
        }
        let mut nan = [f32::NAN; LANES];
        kernels.run(Exp(&mut nan));
        assert!(nan.iter().all(|x| x.is_nan()), "damage is not hidden");
    }
}

#[test]
fn activations_agree_with_f64() {
    let x: Vec<f32> = (-4000..4001).map(|index| index as f32 * 0.005).collect();
    let up = wave(x.len(), 0.3);
    let of = |activation, gated: bool| {
        let (x, up) = (&x, &up);
        move |kernels: Kernels| {
            let mut out = vec![f32::NAN; x.len()];
            let (gate, up) = if gated { (Some(x.as_slice()), up) } else { (None, x) };
            kernels.run(Activate { activation, gate, up, out: &mut out });
            out
        }
    };
    let exact = |activation, x: f64| match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh()),
        Activation::Gelu => 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)),
    };
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        for gated in [false, true] {
            with_all(of(activation, gated), |name, found| {
                for (at, found) in found.iter().enumerate() {
                    let factor = if gated { f64::from(up[at]) } else { 1.0 };
                    let expected = exact(activation, f64::from(x[at])) * factor;
                    let allowed = 1e-6 * expected.abs().max(1.0);
                    assert!((f64::from(*found) - expected).abs() <= allowed, "{name}, {activation:?}({})", x[at]);
                }
            });
        }
    }
}

#[test]
fn a_block_is_rounded_to_even_by_its_largest_magnitude() {
    for kernels in Kernels::available() {
        // Scale 254 / 127 = 2: halves go to the even neighbour.
        let mut x = [0.0; 40];
        x[..6].copy_from_slice(&[1.0, 3.0, -5.0, 254.0, -254.0, 2.9]);
        x[39] = -0.5;
        let blocks = Blocks { columns: 40, group: 40 };
        let (rounded, _) = round(kernels, &x, blocks);
        assert_eq!(rounded.len(), 2);
        assert_eq!(rounded[0].integers[..7], [0, 2, -2, 127, -127, 1, 0]);
        assert_eq!((rounded[0].scale, rounded[0].minus_sum, rounded[0].starts), (2.0, -1, [-8, -128]));
        assert_eq!((rounded[1].integers[7], rounded[1].scale, rounded[1].minus_sum), (-127, 0.5 / 127.0, 127));
        assert_eq!(rounded[1].integers[8..], [0; 24], "padding");

        let (zeros, _) = round(kernels, &[0.0; 32], Blocks { columns: 32, group: 32 });
        assert_eq!((zeros[0].integers, zeros[0].scale, zeros[0].minus_sum), ([0; 32], 0.0, 0));
        for damage in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; 32];
            x[17] = damage;
            assert!(round(kernels, &x, Blocks { columns: 32, group: 32 }).0[0].scale.is_nan(), "damage is not hidden");
        }
    }
}

#[test]
fn groups_that_are_no_whole_blocks_are_padded_one_by_one() {
    let x: Vec<f32> = (1..=48).map(|x| x as f32).collect();
    let (rounded, _) = round(Kernels::best(), &x, Blocks { columns: 48, group: 24 });
    assert_eq!(rounded.len(), 2);
    assert_eq!((rounded[0].integers[23], rounded[0].integers[24]), (127, 0));
    assert_eq!((rounded[1].integers[0], rounded[1].integers[23], rounded[1].integers[24]), (66, 127, 0));
}

#[test]
fn one_scale_for_a_token_rounds_to_even_and_reaches_both_ends() {
    for kernels in Kernels::available() {
        let (mut out, rests) = ([Rounded::ZERO; 1], &mut Vec::new());
        // Scale 127.5 / 127.5 = 1: ties go to the even neighbour, the largest is cut to 127, the smallest reaches −128.
        kernels.run(Round { x: &[0.5, 1.5, -2.5, 127.5, -127.5], group: 5, scales: InputScales::PerToken, out: &mut out, rests });
        assert_eq!(out[0].integers[..6], [0, 2, -2, 127, -128, 0]);
        assert_eq!((out[0].scale, out[0].minus_sum), (1.0, 1));
        kernels.run(Round { x: &[0.0; 5], group: 5, scales: InputScales::PerToken, out: &mut out, rests });
        assert_eq!((out[0].scale, out[0].integers), (f32::EPSILON, [0; 32]));
    }
}

#[test]
fn a_static_scale_rounds_to_even_and_cuts_what_lies_beyond() {
    for kernels in Kernels::available() {
        let run = |x: &[f32]| {
            let (mut out, mut rests) = ([Rounded::ZERO; 2], vec![Rest { block: 0, rounded: Rounded::ZERO }]);
            let scales = InputScales::Static(0.5);
            kernels.run(Round { x, group: x.len(), scales, out: &mut out[..x.len().div_ceil(BLOCK)], rests: &mut rests });
            assert!(rests.is_empty());
            out
        };
        // Halves of the step 0.5 go to the even neighbour; 63.75 is 127.5 steps, 64 is 128, and so on to what no float holds.
        let x = [0.25, 0.75, -1.25, 63.25, 63.75, 64.0, -64.0, -64.5, 1e9, -1e9, f32::MAX, f32::MIN, 0.0, -0.0, 1e-30];
        let [first, _] = run(&x);
        assert_eq!(first.integers[..15], [0, 2, -2, 126, 127, 127, -128, -128, 127, -128, 127, -128, 0, 0, 0]);
        assert_eq!((first.scale, first.minus_sum, &first.integers[15..]), (0.5, -122, [0; 17].as_slice()));
        // The second block of a vector has the same scale, and zeros keep it.
        let [first, second] = run(&[3.0; 40]);
        assert_eq!((first.scale, second.scale, first.integers), (0.5, 0.5, [6; 32]));
        assert_eq!(second.integers[7..9], [6, 0]);
        assert_eq!(run(&[0.0; 40])[1].scale, 0.5);
        // What is not finite is not cut: it goes on to where it is refused.
        for damage in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(run(&[1.0, damage])[0].scale.is_nan(), "{}", kernels.name());
        }
    }
}

#[test]
fn adding_a_vector() {
    for kernels in Kernels::available() {
        let mut out = vec![1.0; 33];
        kernels.run(Add { out: &mut out, x: &[4.0; 33] });
        assert_eq!(out, [5.0; 33]);
    }
}

#[test]
fn attention_agrees_with_f64_and_rows_do_not_see_each_other() {
    for head_dim in [8, 16, 64, 80] {
        let (positions, rows) = (53, 14);
        let (keys, values) = (wave(positions * head_dim, 1.3), wave(positions * head_dim, 2.1));
        let queries = wave(rows * head_dim, 0.7);
        let seen: Vec<usize> = (0..rows).map(|row| positions - rows / 2 + row / 2 + 1 - 1).collect();
        for (kv_type, allowed) in [(KvType::F32, 1e-5), (KvType::F16, 3e-3), (KvType::Int8, 6e-2)] {
            let mut cache = LayerCache::new(1, head_dim, 0, kv_type);
            for position in 0..positions {
                let at = position * head_dim..(position + 1) * head_dim;
                cache.reserve(position + 1, position);
                cache.write(position, &keys[at.clone()], &values[at]);
            }
            let attend = |kernels: Kernels, rows: std::ops::Range<usize>| {
                let mut out = vec![f32::NAN; rows.len() * head_dim];
                let queries = &queries[rows.start * head_dim..rows.end * head_dim];
                let write = &mut |row: usize, x: &[f32]| out[row * head_dim..][..head_dim].copy_from_slice(x);
                kernels.run(Attend { head: cache.head(0), queries, seen: &seen[rows], write });
                out
            };
            with_all(
                |kernels| attend(kernels, 0..rows),
                |name, found| {
                    for (row, found) in found.chunks_exact(head_dim).enumerate() {
                        let dot = |position: usize| -> f64 {
                            let pairs = (0..head_dim).map(|dim| (queries[row * head_dim + dim], keys[position * head_dim + dim]));
                            pairs.map(|(q, k)| f64::from(q) * f64::from(k)).sum()
                        };
                        let scores: Vec<f64> = (0..seen[row]).map(dot).collect();
                        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                        let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
                        let total: f64 = weights.iter().sum();
                        for (dim, found) in found.iter().enumerate() {
                            let value = |position: usize| f64::from(values[position * head_dim + dim]);
                            let sum: f64 = weights.iter().enumerate().map(|(position, weight)| weight * value(position)).sum();
                            let difference = (f64::from(*found) - sum / total).abs();
                            assert!(difference <= allowed, "{name}, {kv_type:?}, row {row}: {difference}");
                        }
                    }
                },
            );
            for kernels in Kernels::available() {
                let alone: Vec<f32> = (0..rows).flat_map(|row| attend(kernels, row..row + 1)).collect();
                assert_eq!(alone, attend(kernels, 0..rows), "{}, {kv_type:?}", kernels.name());
            }
        }
    }
}
