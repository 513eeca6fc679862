//! Curves and sizes as SVG.
//!
//! A chart is drawn once, in its light colours. The page's style gives the same elements others in the dark.

use std::fmt::Display;
use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::curves::Bucket;
use crate::{Error, figures};

/// Axis labels.
pub(super) const INK: RGBColor = RGBColor(0x5b, 0x61, 0x69);
/// Axes and the lines behind a curve.
pub(super) const GRID: RGBColor = RGBColor(0xd9, 0xdc, 0xe1);
/// Curves, bands and spots.
pub(super) const CURVE: RGBColor = RGBColor(0x1f, 0x5f, 0xbf);
/// What is written on a spot.
pub(super) const ON_CURVE: RGBColor = RGBColor(0xff, 0xff, 0xff);

/// Where an axis begins and how it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// Evenly, from a little below the lowest value.
    Linear,
    /// Evenly, from zero.
    FromZero,
    /// By powers of ten.
    Logarithmic,
}

/// A step's size with what it can do.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Spot {
    /// Written on it: one or two characters.
    pub(super) label: String,
    /// Bytes of its weights.
    pub(super) bytes: f64,
    /// Score or perplexity.
    pub(super) quality: f64,
}

/// What is drawn between the axes.
enum Marks<'a> {
    Curve(&'a [Bucket]),
    Spots(&'a [Spot]),
}

/// The library places everything on whole pixels; drawing larger than shown makes quarters of them.
const FINE: u32 = 4;
/// The library divides the height of letters by this before it writes them.
const LETTER: f64 = 1.24 * FINE as f64;
/// Powers of ten are worth it where the highest value is so many times the lowest.
const LOGARITHMIC_FROM: f64 = 20.0;

/// The scale that shows most of a curve which may end near zero.
pub(super) fn scale(buckets: &[Bucket]) -> Scale {
    let values = ends(buckets);
    if values.start > 0.0 && values.end / values.start >= LOGARITHMIC_FROM { Scale::Logarithmic } else { Scale::Linear }
}

/// A curve over the steps with the band around it.
///
/// # Errors
/// Where the library can't draw it.
pub(super) fn curve(buckets: &[Bucket], scale: Scale) -> Result<String, Error> {
    let (first, last) = (buckets[0].step, buckets[buckets.len() - 1].step);
    let steps = first..last.max(first + 1.0);
    let step = |step: &f64| if step.fract() == 0.0 { figures::whole(*step as u64) } else { String::new() };
    let (x, size, marks) = ((steps, &step as &dyn Fn(&f64) -> String), (380, 200), Marks::Curve(buckets));
    let values = ends(buckets);
    let y = widened(&values, scale);
    match scale {
        Scale::Linear | Scale::FromZero => draw(size, x, (y, &tick), marks),
        Scale::Logarithmic => {
            let ticks = logarithmic_ticks(&y);
            draw(size, x, (y.log_scale().with_key_points(ticks), &tick), marks)
        }
    }
}

/// Steps by their size, joined in their order.
///
/// # Errors
/// Where the library can't draw them.
pub(super) fn sizes(spots: &[Spot], quality: &dyn Fn(&f64) -> String, scale: Scale) -> Result<String, Error> {
    let of = |value: fn(&Spot) -> f64| {
        let values = || spots.iter().map(value);
        values().fold(f64::INFINITY, f64::min)..values().fold(f64::NEG_INFINITY, f64::max)
    };
    let bytes = of(|spot| spot.bytes);
    let x = bytes.start / 1.35..bytes.end * 1.35;
    let ticks = logarithmic_ticks(&x);
    // The large models are on the left, so that the chain reads from left to right.
    let x = ((x.end..x.start).log_scale().with_key_points(ticks), &short_bytes as &dyn Fn(&f64) -> String);
    let (size, marks) = ((440, 230), Marks::Spots(spots));
    let values = of(|spot| spot.quality);
    let more = 0.12 * (values.end - values.start);
    match scale {
        Scale::Linear | Scale::FromZero => {
            draw(size, x, (widened(&(values.start - more..values.end + more), Scale::Linear), quality), marks)
        }
        Scale::Logarithmic => {
            let y = values.start / 1.5..values.end * 1.5;
            let ticks = logarithmic_ticks(&y);
            draw(size, x, (y.log_scale().with_key_points(ticks), quality), marks)
        }
    }
}

fn ends(buckets: &[Bucket]) -> Range<f64> {
    let low = buckets.iter().map(|bucket| bucket.low).fold(f64::INFINITY, f64::min);
    let high = buckets.iter().map(|bucket| bucket.high).fold(f64::NEG_INFINITY, f64::max);
    low..high
}

/// A range that is not empty and leaves the curve some air.
fn widened(values: &Range<f64>, scale: Scale) -> Range<f64> {
    let air = 0.05 * (values.end - values.start).max(0.01 * values.end.abs()).max(1e-9);
    match scale {
        Scale::Linear => values.start - air..values.end + air,
        Scale::FromZero => values.start.min(0.0)..values.end + air,
        Scale::Logarithmic => values.start / 1.1..values.end * 1.1,
    }
}

/// 1, 2 and 5 times powers of ten; over more than two of them the powers alone, over more than six of them fewer.
fn logarithmic_ticks(values: &Range<f64>) -> Vec<f64> {
    let (first, last) = (values.start.log10().floor() as i32, values.end.log10().ceil() as i32);
    let powers = (values.end / values.start).log10();
    let digits: &[u8] = if powers > 2.0 { &[1] } else { &[1, 2, 5] };
    let every = (powers / 7.0) as usize + 1;
    let powers = (first..=last).step_by(every);
    // Read from text: 0.05 is the number nearest to it, which a product of powers need not be.
    let ticks = powers.flat_map(|power| digits.iter().filter_map(move |digit| format!("{digit}e{power}").parse().ok()));
    ticks.filter(|tick| values.contains(tick)).collect()
}

/// A figure at an axis, as short as can be.
pub(super) fn tick(value: &f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 1e3 => trimmed(value / 1e3, " k"),
        size if size < 1e-3 => format!("{value:e}"),
        _ => trimmed(*value, ""),
    }
}

/// A figure with three digits that count.
pub(super) fn short(value: f64) -> String {
    let digits: f64 = format!("{value:.2e}").parse().unwrap_or(value);
    tick(&digits)
}

fn short_bytes(value: &f64) -> String {
    match *value {
        value if value >= 1e9 => trimmed(value / 1e9, " GB"),
        value if value >= 1e6 => trimmed(value / 1e6, " MB"),
        value => trimmed(value / 1e3, " kB"),
    }
}

/// Four decimals, without zeros at their end.
fn trimmed(value: f64, unit: impl Display) -> String {
    let text = format!("{value:.4}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Axes with their labels, and the marks between them. `size` is as shown.
fn draw<X, Y>(
    size: (u32, u32),
    (x, x_label): (X, &dyn Fn(&f64) -> String),
    (y, y_label): (Y, &dyn Fn(&f64) -> String),
    marks: Marks<'_>,
) -> Result<String, Error>
where
    X: AsRangedCoord<Value = f64, CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>>,
    Y: AsRangedCoord<Value = f64, CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>>,
{
    let mut svg = String::new();
    {
        let area: DrawingArea<_, Shift> = SVGBackend::with_string(&mut svg, (size.0 * FINE, size.1 * FINE)).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(8 * FINE)
            .x_label_area_size(20 * FINE)
            .y_label_area_size(44 * FINE)
            .build_cartesian_2d(x, y)
            .map_err(not_drawn)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .max_light_lines(0)
            .bold_line_style(GRID.stroke_width(FINE))
            .axis_style(GRID.stroke_width(FINE))
            .set_all_tick_mark_size(4 * FINE)
            .label_style(("sans-serif", 11.0 * LETTER, &INK))
            .x_labels(6)
            .y_labels(5)
            .x_label_formatter(x_label)
            .y_label_formatter(y_label)
            .draw()
            .map_err(not_drawn)?;
        match marks {
            Marks::Curve(buckets) => {
                if buckets.iter().any(|bucket| bucket.low < bucket.high) {
                    let over = buckets.iter().map(|bucket| (bucket.step, bucket.high));
                    let under = buckets.iter().rev().map(|bucket| (bucket.step, bucket.low));
                    let band = Polygon::new(over.chain(under).collect::<Vec<_>>(), CURVE.mix(0.2));
                    chart.draw_series([band]).map_err(not_drawn)?;
                }
                let line = buckets.iter().map(|bucket| (bucket.step, bucket.median));
                chart.draw_series(LineSeries::new(line, CURVE.stroke_width(3 * FINE / 2))).map_err(not_drawn)?;
                if let [only] = buckets {
                    let spot = Circle::new((only.step, only.median), 3 * FINE, CURVE.filled());
                    chart.draw_series([spot]).map_err(not_drawn)?;
                }
            }
            Marks::Spots(spots) => {
                let place = |spot: &Spot| (spot.bytes, spot.quality);
                let path = LineSeries::new(spots.iter().map(place), CURVE.mix(0.45).stroke_width(3 * FINE / 2));
                chart.draw_series(path).map_err(not_drawn)?;
                let circles = spots.iter().map(|spot| Circle::new(place(spot), 9 * FINE, CURVE.filled()));
                chart.draw_series(circles).map_err(not_drawn)?;
                let middle = Pos::new(HPos::Center, VPos::Center);
                let style = ("sans-serif", 12.0 * LETTER, &ON_CURVE).into_text_style(&area).pos(middle);
                let labels = spots.iter().map(|spot| Text::new(spot.label.clone(), place(spot), style.clone()));
                chart.draw_series(labels).map_err(not_drawn)?;
            }
        }
        area.present().map_err(not_drawn)?;
    }
    Ok(svg)
}

fn not_drawn(error: impl Display) -> Error {
    Error::Page(format!("a chart: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn buckets(values: &[f64]) -> Vec<Bucket> {
        let bucket = |(value, step): (&f64, u64)| Bucket { step: step as f64, median: *value, low: *value, high: *value };
        values.iter().zip(1..).map(bucket).collect()
    }

    /// The vertical places of a curve's points, from the top.
    fn places(svg: &str) -> Vec<f64> {
        let document = roxmltree::Document::parse(svg).unwrap();
        let curve = document.descendants().rfind(|node| node.has_tag_name("polyline")).unwrap();
        let points = curve.attribute("points").unwrap();
        points.split_whitespace().map(|point| point.split_once(',').unwrap().1.parse().unwrap()).collect()
    }

    #[test]
    fn a_tenth_is_as_far_down_whatever_it_is_a_tenth_of() {
        let values = buckets(&[100.0, 10.0, 1.0]);
        assert_eq!(scale(&values), Scale::Logarithmic);
        let places = places(&curve(&values, Scale::Logarithmic).unwrap());
        assert!(places[0] < places[1], "up is more");
        // Each on a whole unit of the picture, so the distances differ by one at most.
        assert!(((places[1] - places[0]) - (places[2] - places[1])).abs() <= 1.0, "{places:?}");
    }

    #[test]
    fn curves_that_stay_where_they_are_keep_an_even_scale() {
        assert_eq!(scale(&buckets(&[3.0, 2.5, 2.0])), Scale::Linear);
        assert_eq!(scale(&buckets(&[3.0, 0.0])), Scale::Linear);
        assert_eq!(scale(&buckets(&[3.0, -1.0])), Scale::Linear);
        let places = places(&curve(&buckets(&[3.0, 2.0, 1.0]), Scale::Linear).unwrap());
        assert!(((places[1] - places[0]) - (places[2] - places[1])).abs() <= 1.0, "{places:?}");
    }

    #[test]
    fn one_step_and_one_value_are_drawn_too() {
        for values in [&[0.0][..], &[2.0], &[2.0, 2.0, 2.0], &[-1e15, 1e15], &[1e-12, 1e12]] {
            for scale in [Scale::Linear, Scale::FromZero, scale(&buckets(values))] {
                let svg = curve(&buckets(values), scale).unwrap();
                roxmltree::Document::parse(&svg).unwrap();
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            }
        }
    }

    #[test]
    fn ticks_are_round_numbers_within_the_axis() {
        assert_eq!(logarithmic_ticks(&(0.02..3.0)), [0.1, 1.0]);
        assert_eq!(logarithmic_ticks(&(0.4..16.0)), [0.5, 1.0, 2.0, 5.0, 10.0]);
        assert_eq!(logarithmic_ticks(&(1e-10..1e10)), [1e-10, 1e-7, 1e-4, 0.1, 100.0, 1e5, 1e8]);
        let shown: Vec<String> = [0.0, 0.05, 0.1 + 0.2, 20.0, 5_000.0, 1e-5].iter().map(tick).collect();
        assert_eq!(shown, ["0", "0.05", "0.3", "20", "5 k", "1e-5"]);
        assert_eq!([14.4167, 0.028_291, 1.0, 0.000_012_34].map(short), ["14.4", "0.0283", "1", "1.23e-5"]);
        assert_eq!([5e5, 2e6, 1.5e9].map(|value| short_bytes(&value)), ["500 kB", "2 MB", "1.5 GB"]);
    }
}
