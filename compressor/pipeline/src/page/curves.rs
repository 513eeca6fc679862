//! What `metrics.jsonl` says of a training, thinned until a chart can show it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::Deserialize;

/// The losses and the speed of one training.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Curves {
    /// What is minimized.
    pub(super) loss: Vec<Point>,
    /// KL divergence from the teacher, nats/token; empty where nothing was distilled.
    pub(super) kl: Vec<Point>,
    /// Tokens per second.
    pub(super) speed: Vec<Point>,
    /// Lines that could not be read.
    pub(super) unreadable: usize,
}

/// A figure at a step, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) step: u64,
    pub(super) value: f64,
}

/// Neighbouring steps as one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Bucket {
    /// The middle of its steps.
    pub(super) step: f64,
    /// Their median; of an even number of steps the mean of the middle two.
    pub(super) median: f64,
    /// The lowest.
    pub(super) low: f64,
    /// The highest.
    pub(super) high: f64,
}

/// What is read of a line.
#[derive(Deserialize)]
struct Line {
    step: u64,
    loss: f64,
    kl: Option<f64>,
    tokens: u64,
    seconds: f64,
}

/// Beyond it a chart has no room for a figure.
const LARGEST: f64 = 1e15;

/// What is longer is read in pieces of as many bytes, and none of them is a line of ours.
const LONGEST_LINE: u64 = 64 << 10;

impl Curves {
    /// Reads the losses of a training; `None` where there is no such file.
    ///
    /// A step that stands there twice was done again from a saved state: the later line is the one that the weights come from.
    /// A line that can't be read is counted and left out. A kill may leave one, and it must not cost the rest.
    pub(super) fn read(path: &Path) -> compressor_format::Result<Option<Self>> {
        let mut file = match compressor_format::open_file(path) {
            Ok(file) => BufReader::new(file),
            Err(compressor_format::Error::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut lines = BTreeMap::new();
        let mut unreadable = 0;
        let mut line = Vec::new();
        loop {
            line.clear();
            if file.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            match serde_json::from_slice::<Line>(&line) {
                Ok(line) if line.can_be_drawn() => {
                    lines.insert(line.step, line);
                }
                Ok(_) | Err(_) => unreadable += 1,
            }
        }
        let mut curves = Self { unreadable, ..Self::default() };
        for Line { step, loss, kl, tokens, seconds } in lines.into_values() {
            curves.loss.push(Point { step, value: loss });
            curves.kl.extend(kl.map(|value| Point { step, value }));
            if seconds > 0.0 {
                curves.speed.push(Point { step, value: tokens as f64 / seconds });
            }
        }
        Ok(Some(curves))
    }
}

impl Line {
    fn can_be_drawn(&self) -> bool {
        let figures = [Some(self.loss), self.kl, Some(self.seconds), Some(self.tokens as f64 / self.seconds.max(1e-9))];
        figures.into_iter().flatten().all(|figure| figure.abs() <= LARGEST)
    }
}

/// At most `buckets` buckets of neighbouring points, as equal in number as they can be.
pub(super) fn thin(points: &[Point], buckets: usize) -> Vec<Bucket> {
    let count = buckets.min(points.len());
    (0..count).map(|index| bucket(&points[index * points.len() / count..(index + 1) * points.len() / count])).collect()
}

/// One bucket of at least one point.
fn bucket(points: &[Point]) -> Bucket {
    let mut values: Vec<f64> = points.iter().map(|point| point.value).collect();
    values.sort_unstable_by(f64::total_cmp);
    let last = values.len() - 1;
    Bucket {
        step: (points[0].step as f64 + points[last].step as f64) / 2.0,
        median: (values[last / 2] + values[last.div_ceil(2)]) / 2.0,
        low: values[0],
        high: values[last],
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn read(text: &[u8]) -> Curves {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        fs_err::write(&path, text).unwrap();
        Curves::read(&path).unwrap().unwrap()
    }

    fn line(step: u64, loss: f64) -> String {
        format!("{{\"step\":{step},\"loss\":{loss},\"cross_entropy\":1.0,\"kl\":null,\"tokens\":100,\"seconds\":0.5}}\n")
    }

    #[test]
    fn a_torn_last_line_is_counted_and_the_lines_before_it_are_kept() {
        let text = format!("{}{}{}", line(1, 3.0), line(2, 2.0), &line(3, 1.0)[..20]);
        let curves = read(text.as_bytes());
        assert_eq!(curves.loss, [Point { step: 1, value: 3.0 }, Point { step: 2, value: 2.0 }]);
        assert_eq!(curves.speed, [Point { step: 1, value: 200.0 }, Point { step: 2, value: 200.0 }]);
        assert_eq!((curves.kl, curves.unreadable), (Vec::new(), 1));
    }

    #[test]
    fn a_step_that_was_done_again_counts_once_and_as_it_was_done_last() {
        let text = [line(1, 3.0), line(2, 9.0), line(3, 9.5), line(2, 2.0), line(3, 1.0)].concat();
        let values: Vec<f64> = read(text.as_bytes()).loss.iter().map(|point| point.value).collect();
        assert_eq!(values, [3.0, 2.0, 1.0]);
    }

    #[test]
    fn figures_that_no_chart_can_show_count_as_unreadable() {
        let text = [line(1, 3.0), line(2, 1e300), "{\"step\":3,\"loss\":null,\"tokens\":1,\"seconds\":1}\n".to_owned()].concat();
        let curves = read(text.as_bytes());
        assert_eq!((curves.loss.len(), curves.unreadable), (1, 2));
    }

    #[test]
    fn a_line_without_an_end_is_read_in_pieces() {
        let long = "x".repeat(LONGEST_LINE as usize * 2 + 1);
        let curves = read(format!("{}{long}\n{}", line(1, 3.0), line(2, 2.0)).as_bytes());
        assert_eq!((curves.loss.len(), curves.unreadable), (2, 3));
    }

    #[test]
    fn a_folder_without_losses_has_no_curves() {
        assert_eq!(Curves::read(Path::new("missing/metrics.jsonl")).unwrap(), None);
    }

    #[test]
    fn buckets_have_the_median_and_the_ends_of_their_steps() {
        let points = [4.0, 1.0, 3.0, 9.0, 5.0, 7.0, 6.0].into_iter().zip(1..).map(|(value, step)| Point { step, value });
        let points: Vec<Point> = points.collect();
        let two =
            [Bucket { step: 2.0, median: 3.0, low: 1.0, high: 4.0 }, Bucket { step: 5.5, median: 6.5, low: 5.0, high: 9.0 }];
        assert_eq!(thin(&points, 2), two);
        let all = thin(&points, 10);
        assert_eq!(all.len(), 7);
        assert!(all.iter().all(|bucket| bucket.low == bucket.high && bucket.median == bucket.low));
        assert_eq!(thin(&[], 10), []);
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_nothing_panics(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            read(&text);
        }

        #[test]
        fn thinning_keeps_the_extremes(values in proptest::collection::vec(-1e6..1e6, 1..500), buckets in 1usize..50) {
            let points: Vec<Point> = values.iter().zip(1..).map(|(value, step)| Point { step, value: *value }).collect();
            let thinned = thin(&points, buckets);
            prop_assert_eq!(thinned.len(), buckets.min(points.len()));
            let low = thinned.iter().map(|bucket| bucket.low).fold(f64::INFINITY, f64::min);
            let high = thinned.iter().map(|bucket| bucket.high).fold(f64::NEG_INFINITY, f64::max);
            prop_assert_eq!(low, values.iter().copied().fold(f64::INFINITY, f64::min));
            prop_assert_eq!(high, values.iter().copied().fold(f64::NEG_INFINITY, f64::max));
        }
    }
}
