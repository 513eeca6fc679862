//! k-means: the few reals that stand for all weights of a matrix, or of some of its rows, with the least squared error found.
//!
//! Method: weight sharing, Han et al. 2015 (Deep Compression), arXiv:1510.00149, §3: centroids at even distances between the
//! smallest and the largest weight, which the paper finds best of three starts, because large weights are few and matter; then
//! Lloyd's turns. Where the paper goes on and trains the centroids, nothing is trained here. A centroid that no weight is nearest
//! to, of which even distances make many, splits the cluster with the largest error. Each weight may count by the mean square of
//! its input, the diagonal of GPTQ's Hessian; SqueezeLLM (Kim et al. 2023, arXiv:2306.07629, eq. 4) weights by squared gradients
//! of the loss instead.
//!
//! In one dimension clusters are stretches of the sorted weights: their borders lie half way between centroids, and the sums
//! inside are differences of sums from the start.

#[cfg(test)]
mod tests;

use compressor_format::{CodebookMatrix, Codebooks, Dtype, TensorSlice, WeightBytes, pack};
use rayon::prelude::*;

use super::Distance;

/// Turns of assigning and averaging; a million weights stand still after some hundred.
const MOST_TURNS: usize = 1000;

/// Finds the codebooks of a matrix `[rows, columns]` and what each of its weights is nearest to. `importance` is what the weights
/// of each column count, where they do not all count the same.
///
/// # Errors
/// The first row whose codebook would hold infinite centroids.
pub(super) fn quantize(
    values: &[f32],
    columns: usize,
    codebooks: Codebooks,
    importance: Option<&[f32]>,
    scale_dtype: Dtype,
) -> Result<(CodebookMatrix, Distance), usize> {
    let rows = values.len() / columns;
    let shared = codebooks.rows.unwrap_or(rows);
    let codebook = |values: &[f32]| -> Vec<f32> {
        let mut centroids = centroids(values, importance, codebooks.centroids());
        centroids
            .iter_mut()
            .for_each(|centroid| *centroid = scale_dtype.nearest(*centroid).expect("centroids have a float type"));
        // The same real more than once harms nobody: the first of them is taken.
        centroids.resize(codebooks.centroids(), *centroids.last().expect("a matrix has weights"));
        centroids
    };
    let found: Vec<Vec<f32>> = values.par_chunks(shared * columns).map(codebook).collect();
    if let Some(infinite) = found.iter().position(|centroids| centroids.iter().any(|centroid| !centroid.is_finite())) {
        let largest =
            |row: &usize| values[row * columns..][..columns].iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let here = infinite * shared..(infinite + 1) * shared;
        return Err(here.max_by(|left, right| largest(left).total_cmp(&largest(right))).expect("a codebook has rows"));
    }
    let assigned: Vec<(Vec<u8>, Distance)> = values
        .par_chunks_exact(columns)
        .enumerate()
        .map(|(row, values)| {
            let centroids = &found[codebooks.of_row(row)];
            let nearest = nearest(values, centroids);
            let half = 1i32 << (codebooks.bits - 1);
            let integers: Vec<i8> = nearest.iter().map(|index| (*index as i32 - half) as i8).collect();
            (pack(&integers, codebooks.bits), Distance::of(values, nearest.iter().map(|index| centroids[*index])))
        })
        .collect();
    // In the order of the rows, so that the sums do not depend on the threads.
    let mut whole = Distance::default();
    let mut indices = Vec::with_capacity(rows * codebooks.row_bytes(columns));
    for (bytes, distance) in assigned {
        indices.extend_from_slice(&bytes);
        whole.add(distance);
    }
    let bytes = scale_dtype.from_f32(&found.concat()).expect("centroids have a float type");
    let centroids = TensorSlice { dtype: scale_dtype, shape: vec![found.len(), codebooks.centroids()], bytes: bytes.into() };
    let matrix = CodebookMatrix { rows, columns, codebooks, indices: WeightBytes::Owned(indices.into()), centroids };
    Ok((matrix, whole))
}

/// The index of the nearest centroid of each value, the lower of two that are as near; `centroids` ascend.
fn nearest(values: &[f32], centroids: &[f32]) -> Vec<usize> {
    let borders: Vec<f64> = centroids.windows(2).map(|pair| half_way(pair[0].into(), pair[1].into())).collect();
    values.iter().map(|value| borders.partition_point(|border| f64::from(*value) > *border)).collect()
}

fn half_way(left: f64, right: f64) -> f64 {
    (left + right) / 2.0
}

/// At most `most` centroids, ascending; as many as there are distinct values, where those are fewer, and then these values
/// themselves.
fn centroids(values: &[f32], importance: Option<&[f32]>, most: usize) -> Vec<f32> {
    let sorted = Sorted::new(values, importance);
    let mut borders = sorted.at_even_distances(most);
    for _ in 0..MOST_TURNS {
        while borders.len() <= most
            && let Some(split) = sorted.split_of_the_worst(&borders)
        {
            borders.insert(borders.partition_point(|border| *border < split), split);
        }
        let next = sorted.nearest_to(&sorted.means(&borders));
        if next == borders {
            break;
        }
        borders = next;
    }
    sorted.means(&borders).into_iter().map(|mean| mean as f32).collect()
}

/// A weight of the matrix, and what it counts: above 0.
#[derive(Clone, Copy)]
struct Point {
    value: f32,
    weight: f32,
}

/// `Σ m`, `Σ m·v` and `Σ m·v²` of some points.
#[derive(Clone, Copy, Default)]
struct Sums {
    weight: f64,
    first: f64,
    second: f64,
}

/// Points in ascending order, with their sums from the start to every [`STRIDE`]-th.
///
/// A cluster is what lies between two borders, which are places of this order: the first is 0, the last is the number of points.
/// Points of one value are always in one cluster.
struct Sorted {
    points: Vec<Point>,
    sums: Vec<Sums>,
}

/// Points from one sum that is kept to the next: a sum for each would take more memory than the matrix.
const STRIDE: usize = 64;

impl Sums {
    fn with(self, points: &[Point]) -> Self {
        points.iter().fold(self, |sums, point| {
            let (value, weight) = (f64::from(point.value), f64::from(point.weight));
            Self {
                weight: sums.weight + weight,
                first: sums.first + weight * value,
                second: sums.second + weight * value * value,
            }
        })
    }

    fn without(self, other: Self) -> Self {
        Self { weight: self.weight - other.weight, first: self.first - other.first, second: self.second - other.second }
    }
}

impl Sorted {
    /// Values that count nothing are left out, unless nothing counts: then all count the same.
    fn new(values: &[f32], importance: Option<&[f32]>) -> Self {
        let weighted = |importance: &[f32]| -> Vec<Point> {
            let rows = values.chunks_exact(importance.len());
            let points =
                rows.flat_map(|row| row.iter().zip(importance).map(|(value, weight)| Point { value: *value, weight: *weight }));
            points.filter(|point| point.weight > 0.0).collect()
        };
        let mut points = importance.map(weighted).unwrap_or_default();
        if points.is_empty() {
            points = values.iter().map(|value| Point { value: *value, weight: 1.0 }).collect();
        }
        // By weight too: whatever the threads do, what changes places is the same.
        points.par_sort_unstable_by(|left, right| left.value.total_cmp(&right.value).then(left.weight.total_cmp(&right.weight)));
        let kept = points.chunks(STRIDE).scan(Sums::default(), |sums, points| {
            let before = *sums;
            *sums = sums.with(points);
            Some(before)
        });
        Self { sums: kept.collect(), points }
    }

    /// Sums of the points before a place.
    fn before(&self, place: usize) -> Sums {
        match self.sums.get(place / STRIDE) {
            Some(sums) => sums.with(&self.points[place / STRIDE * STRIDE..place]),
            None => self.sums.last().copied().unwrap_or_default().with(&self.points[(self.sums.len() - 1) * STRIDE..]),
        }
    }

    /// The first and the last value of a cluster.
    fn ends(&self, start: usize, end: usize) -> (f64, f64) {
        (self.points[start].value.into(), self.points[end - 1].value.into())
    }

    /// The place of the first value above a border.
    fn place_above(&self, border: f64) -> usize {
        self.points.partition_point(|point| f64::from(point.value) <= border)
    }

    /// Clusters of what is nearest to each of `count` reals at even distances, from the smallest value to the largest.
    fn at_even_distances(&self, count: usize) -> Vec<usize> {
        let (low, high) = self.ends(0, self.points.len());
        let step = (high - low) / (count - 1) as f64;
        let levels: Vec<f64> = (0..count).map(|level| low + level as f64 * step).collect();
        self.nearest_to(&levels)
    }

    /// Clusters of what is nearest to each of some reals, which ascend; those that are empty are left out.
    fn nearest_to(&self, levels: &[f64]) -> Vec<usize> {
        let inner = levels.windows(2).map(|pair| self.place_above(half_way(pair[0], pair[1])));
        let mut borders: Vec<usize> = std::iter::once(0).chain(inner).chain([self.points.len()]).collect();
        borders.dedup();
        borders
    }

    /// The weighted mean of each cluster.
    fn means(&self, borders: &[usize]) -> Vec<f64> {
        let sums: Vec<Sums> = borders.iter().map(|place| self.before(*place)).collect();
        let mean = |(places, sums): (&[usize], &[Sums])| self.mean(places, sums[1].without(sums[0]));
        borders.windows(2).zip(sums.windows(2)).map(mean).collect()
    }

    fn mean(&self, places: &[usize], sums: Sums) -> f64 {
        let (low, high) = self.ends(places[0], places[1]);
        // What a few small values add may be lost in the sum of large ones, down to 0/0, of which `max` takes the other.
        (sums.first / sums.weight).max(low).min(high)
    }

    /// Where the cluster with the largest error, of those with several values, is cut in two: above its mean. `None` where each
    /// has one value only.
    fn split_of_the_worst(&self, borders: &[usize]) -> Option<usize> {
        let sums: Vec<Sums> = borders.iter().map(|place| self.before(*place)).collect();
        let several = borders.windows(2).zip(sums.windows(2)).filter(|(places, _)| {
            let (low, high) = self.ends(places[0], places[1]);
            low < high
        });
        // `Σ m·v² − (Σ m·v)² / Σ m`
        let error = |sums: &Sums| sums.second - sums.first * sums.first / sums.weight;
        let clusters = several.map(|(places, sums)| (places, sums[1].without(sums[0])));
        let (places, sums) = clusters.max_by(|left, right| error(&left.1).total_cmp(&error(&right.1)))?;
        let (mean, (_, high)) = (self.mean(places, sums), self.ends(places[0], places[1]));
        Some(self.points.partition_point(|point| f64::from(point.value) < high && f64::from(point.value) <= mean))
    }
}
