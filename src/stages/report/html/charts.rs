//! Numbers → charts as inline SVG, drawn by `plotters`, coloured by the page's style.
//!
//! `plotters` writes a colour for each element. Ours are placeholders ([`Ink`]) which [`svg`] replaces by classes, so that
//! one drawing serves the light page, the dark one and paper.

use std::fmt::Write;
use std::io;

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::super::table::{Table, decimal};
use super::{escape, harmless, table};

/// Width of a drawing in its own units. The page shows it at about half of that, down to 320 pixels on a phone, where text
/// of 24 units is 10 pixels high.
const WIDTH: u32 = 760;
/// `plotters` divides sizes of text by 1.24.
const TEXT: f64 = 24.0 * 1.24;
/// Height of one bar with its label.
const ROW: u32 = 38;
/// Width of the labels at the left of a chart.
const LABELS: i32 = 256;
/// Characters of a label that there is room for. The table of its figures shows it in whole.
const LABEL: usize = 17;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<io::Error>>;

/// What an element of a chart is; the page's style says which colour that has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ink {
    Text,
    Axis,
    Grid,
    /// Hits of the query's class.
    Right,
    /// Hits of another class.
    Wrong,
    /// What is pointed out: a threshold, a ceiling.
    Mark,
    /// The n-th of several things that are compared.
    Series(u8),
}

impl Ink {
    const fn number(self) -> u8 {
        match self {
            Ink::Text => 1,
            Ink::Axis => 2,
            Ink::Grid => 3,
            Ink::Right => 4,
            Ink::Wrong => 5,
            Ink::Mark => 6,
            Ink::Series(n) => 16 + n % 4,
        }
    }

    /// The suffix of its classes: `stroke-…`, `fill-…` and `key-…`.
    pub fn name(self) -> String {
        match self {
            Ink::Text => "text".to_owned(),
            Ink::Axis => "axis".to_owned(),
            Ink::Grid => "grid".to_owned(),
            Ink::Right => "right".to_owned(),
            Ink::Wrong => "wrong".to_owned(),
            Ink::Mark => "mark".to_owned(),
            Ink::Series(n) => (n % 4).to_string(),
        }
    }

    const ALL: [Ink; 10] = [
        Ink::Text,
        Ink::Axis,
        Ink::Grid,
        Ink::Right,
        Ink::Wrong,
        Ink::Mark,
        Ink::Series(0),
        Ink::Series(1),
        Ink::Series(2),
        Ink::Series(3),
    ];
}

impl From<Ink> for RGBColor {
    fn from(ink: Ink) -> RGBColor {
        RGBColor(1, 2, ink.number())
    }
}

fn color(ink: Ink) -> RGBColor {
    ink.into()
}

fn line(ink: Ink, width: u32) -> ShapeStyle {
    color(ink).stroke_width(width)
}

fn text(ink: Ink, h: HPos, v: VPos) -> TextStyle<'static> {
    ("sans-serif", TEXT).into_font().color(&color(ink)).pos(Pos::new(h, v))
}

/// A chart with its words: what it is called, what it shows in a sentence, its legend, and its figures as a table.
pub struct Figure {
    pub title: String,
    /// One sentence for those who do not see the drawing, and for those who do.
    pub description: String,
    pub svg: String,
    pub legend: Vec<(Ink, String)>,
    pub figures: Table,
    /// Whether the table is to be seen at once.
    pub open: bool,
}

impl Figure {
    /// `id` is this figure's own within the page.
    pub fn html(&self, id: &str) -> String {
        let Figure { title, description, svg, legend, figures, open } = self;
        let (wide, open) = if *open { (" wide", " open") } else { ("", "") };
        let (name, about) = (escape(title), escape(description));
        let svg = svg.replacen(
            "<svg ",
            &format!("<svg class=\"chart\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\" "),
            1,
        );
        let words = format!("<title id=\"{id}-t\">{name}</title><desc id=\"{id}-d\">{about}</desc>");
        let svg = svg.replacen('>', &format!(">{words}"), 1);
        let mut keys = String::new();
        for (ink, label) in legend {
            // Writing to a string cannot fail.
            let _ =
                write!(keys, "<li><i class=\"key key-{}\"></i><bdi>{}</bdi></li>", ink.name(), escape(label));
        }
        let keys = if keys.is_empty() { keys } else { format!("<ul class=\"legend\">{keys}</ul>\n") };
        format!(
            "<figure class=\"card{wide}\">\n<figcaption><strong>{name}</strong> <span>{about}</span></figcaption>\n\
             {keys}<div class=\"drawing\">{svg}</div>\n\
             <details{open}><summary>Figures<span class=\"unseen\">: {name}</span></summary>{}</details>\n</figure>\n",
            table(figures, title)
        )
    }
}

/// Draws on a sheet of this height. What cannot be drawn is an empty drawing: the table beside it has the figures.
fn svg(height: u32, draw: impl FnOnce(&Area) -> Drawn) -> String {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        if let Err(error) = draw(&area).and_then(|()| area.present()) {
            tracing::warn!("a chart could not be drawn: {error}");
        }
    }
    let (_, elements) = svg.split_once('>').unwrap_or_default();
    let mut elements = elements.replace(" opacity=\"1\"", "").replace(" font-family=\"sans-serif\"", "");
    for ink in Ink::ALL {
        let RGBColor(r, g, b) = ink.into();
        for part in ["fill", "stroke"] {
            let written = format!("{part}=\"#{r:02X}{g:02X}{b:02X}\"");
            elements = elements.replace(&written, &format!("class=\"{part}-{}\"", ink.name()));
        }
    }
    format!("<svg viewBox=\"0 0 {WIDTH} {height}\">{}", elements.trim())
}

/// One line of a chart.
pub struct Curve {
    pub name: String,
    pub ink: Ink,
    pub points: Vec<(f64, f64)>,
}

/// What the axes of a chart say, and how far they go.
pub struct Axes {
    pub x: &'static str,
    pub y: &'static str,
    pub x_range: (f64, f64),
    pub y_range: (f64, f64),
    /// Digits after the point.
    pub x_digits: usize,
    pub y_digits: usize,
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// Axes, grid and their numbers, ready for what is drawn between them.
fn plot<'a, 'b>(area: &'a Area<'b>, axes: &Axes) -> Result<Chart<'a, 'b>, DrawingAreaErrorKind<io::Error>> {
    let range = |(low, high): (f64, f64)| low..if high > low { high } else { low + 1.0 };
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .margin_top(20)
        .margin_right(30)
        .x_label_area_size(78)
        .y_label_area_size(104)
        .build_cartesian_2d(range(axes.x_range), range(axes.y_range))?;
    let (x_digits, y_digits) = (axes.x_digits, axes.y_digits);
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(line(Ink::Grid, 2))
        .axis_style(line(Ink::Axis, 2))
        .label_style(("sans-serif", TEXT).into_font().color(&color(Ink::Text)))
        .x_labels(6)
        .y_labels(6)
        .x_label_formatter(&|x| format!("{x:.x_digits$}"))
        .y_label_formatter(&|y| format!("{y:.y_digits$}"))
        .x_desc(axes.x)
        .y_desc(axes.y)
        .draw()?;
    Ok(chart)
}

/// Lines over common axes; a dot at each point where there are few.
pub fn curves(axes: &Axes, curves: &[Curve]) -> String {
    /// More points than this are a line.
    const DOTS: usize = 12;
    svg(500, |area| {
        let mut chart = plot(area, axes)?;
        for Curve { ink, points, .. } in curves {
            chart.draw_series(LineSeries::new(points.iter().copied(), line(*ink, 5)))?;
            if points.len() <= DOTS {
                let dots = points.iter().map(|point| Circle::new(*point, 8, color(*ink).filled()));
                chart.draw_series(dots)?;
            }
        }
        Ok(())
    })
}

/// How many values of two kinds fall between each edge and the next, with a line at `threshold`.
pub fn histograms(axes: &Axes, edges: &[f64], kinds: &[(Ink, &[usize])], threshold: Option<f64>) -> String {
    svg(440, |area| {
        let mut chart = plot(area, axes)?;
        for (ink, counts) in kinds {
            let bins =
                || edges.windows(2).zip(*counts).map(|(edge, &count)| (edge[0], edge[1], count as f64));
            let bars = bins().filter(|(.., count)| *count > 0.0).map(|(from, to, count)| {
                Rectangle::new([(from, 0.0), (to, count)], color(*ink).mix(0.3).filled())
            });
            chart.draw_series(bars)?;
            let outline = bins().flat_map(|(from, to, count)| [(from, count), (to, count)]);
            chart.draw_series(LineSeries::new(outline, line(*ink, 4)))?;
        }
        if let Some(threshold) = threshold {
            let (low, high) = axes.y_range;
            chart
                .draw_series([PathElement::new([(threshold, low), (threshold, high)], line(Ink::Mark, 5))])?;
        }
        Ok(())
    })
}

/// A bar for each of `rows`, labelled, from 0 to a value that is at most 1.
pub fn bars(rows: &[(String, f64)]) -> String {
    const LEFT: i32 = LABELS;
    const RIGHT: i32 = WIDTH as i32 - 96;
    svg(rows.len() as u32 * ROW + 8, |area| {
        for ((label, value), row) in rows.iter().zip(0..) {
            let (top, end) = (4 + row * ROW as i32, LEFT + (value * f64::from(RIGHT - LEFT)).round() as i32);
            let middle = top + ROW as i32 / 2;
            let whole = [(LEFT, top + 6), (RIGHT, top + ROW as i32 - 6)];
            area.draw(&Rectangle::new(whole, color(Ink::Grid).mix(0.5).filled()))?;
            let bar = [(LEFT, top + 6), (end, top + ROW as i32 - 6)];
            area.draw(&Rectangle::new(bar, color(Ink::Series(0)).filled()))?;
            row_label(area, label, (LEFT - 14, middle))?;
            let value = decimal(*value);
            area.draw(&Text::new(value, (RIGHT + 14, middle), text(Ink::Text, HPos::Left, VPos::Center)))?;
        }
        Ok(())
    })
}

/// How long searches take: for each of `rows` a label and ascending times in milliseconds, on a logarithmic axis.
pub fn times(rows: &[(String, [f64; 3])]) -> String {
    const LEFT: i32 = LABELS;
    const RIGHT: i32 = WIDTH as i32 - 44;
    let all = || rows.iter().flat_map(|(_, times)| times).copied().filter(|time| *time > 0.0);
    let low = all().fold(f64::INFINITY, f64::min).log10().floor();
    let high = all().fold(0.0, f64::max).log10().ceil().max(low + 1.0);
    if !low.is_finite() || !high.is_finite() {
        return svg(8, |_| Ok(()));
    }
    let x = |time: f64| {
        let share = (time.log10().max(low) - low) / (high - low);
        LEFT + (share * f64::from(RIGHT - LEFT)).round() as i32
    };
    let bottom = rows.len() as i32 * ROW as i32 + 8;
    svg(bottom as u32 + 48, |area| {
        for power in low as i32..=high as i32 {
            let at = 10f64.powi(power);
            area.draw(&PathElement::new([(x(at), 0), (x(at), bottom)], line(Ink::Grid, 2)))?;
            let label = format!("{at} ms");
            area.draw(&Text::new(label, (x(at), bottom + 8), text(Ink::Text, HPos::Center, VPos::Top)))?;
        }
        for ((label, [p50, p95, p99]), row) in rows.iter().zip(0..) {
            let y = 4 + row * ROW as i32 + ROW as i32 / 2;
            let ink = Ink::Series(0);
            row_label(area, label, (LEFT - 14, y))?;
            area.draw(&PathElement::new([(x(*p50), y), (x(*p99), y)], line(ink, 4)))?;
            area.draw(&Circle::new((x(*p50), y), 10, color(ink).filled()))?;
            for end in [*p95, *p99] {
                area.draw(&PathElement::new([(x(end), y - 10), (x(end), y + 10)], line(ink, 5)))?;
            }
        }
        Ok(())
    })
}

/// Round numbers along the width, and where they stand.
struct Axis {
    step: f64,
    /// The first and the last line, in steps.
    low: f64,
    high: f64,
    left: i32,
}

impl Axis {
    const RIGHT: i32 = WIDTH as i32 - 44;

    /// Spans from `low` to `high`, in some four steps; `left` is where the first line stands.
    fn spanning(low: f64, high: f64, left: i32) -> Axis {
        let step = round_up((high - low).max(1e-6) / 4.0);
        let first = (low / step).floor();
        Axis { step, low: first, high: (high / step).ceil().max(first + 1.0), left }
    }

    fn x(&self, value: f64) -> i32 {
        let share = (value / self.step - self.low) / (self.high - self.low);
        self.left + (share * f64::from(Self::RIGHT - self.left)).round() as i32
    }

    /// A line at each number down to `bottom`, the number below it; that at zero stands out where `marks_zero`.
    fn draw(&self, area: &Area, bottom: i32, marks_zero: bool) -> Drawn {
        let digits = (1.0 - self.step.log10()).clamp(0.0, 8.0) as usize;
        for i in self.low as i64..=self.high as i64 {
            let at = i as f64 * self.step;
            let ink = if i == 0 && marks_zero { Ink::Mark } else { Ink::Grid };
            area.draw(&PathElement::new([(self.x(at), 0), (self.x(at), bottom)], line(ink, 2)))?;
            let style = text(Ink::Text, HPos::Center, VPos::Top);
            area.draw(&Text::new(format!("{at:.digits$}"), (self.x(at), bottom + 8), style))?;
        }
        Ok(())
    }
}

/// A line from the first to the third number of each row, a dot at the second; and a line at zero for all.
pub fn differences(rows: &[(String, [f64; 3])]) -> String {
    let all = || rows.iter().flat_map(|(_, ends)| ends).copied();
    let axis = Axis::spanning(all().fold(0.0, f64::min), all().fold(0.0, f64::max), LABELS);
    let bottom = (rows.len() as u32 * ROW) as i32 + 8;
    svg(bottom as u32 + 48, |area| {
        axis.draw(area, bottom, true)?;
        for ((label, [from, middle, to]), row) in rows.iter().zip(0..) {
            let y = (4 + row * ROW + ROW / 2) as i32;
            let ink = Ink::Series(0);
            row_label(area, label, (axis.left - 14, y))?;
            area.draw(&PathElement::new([(axis.x(*from), y), (axis.x(*to), y)], line(ink, 4)))?;
            area.draw(&Circle::new((axis.x(*middle), y), 8, color(ink).filled()))?;
        }
        Ok(())
    })
}

/// Below each label a line from the first to the third number of its row, and a dot at the second, over one axis for all.
pub fn intervals(rows: &[(String, Ink, [f64; 3])]) -> String {
    /// A label stands above its line, so it has the whole width.
    const TALL: u32 = 2 * ROW;
    let all = || rows.iter().flat_map(|(.., ends)| ends).copied();
    let low = all().fold(f64::INFINITY, f64::min);
    if !low.is_finite() {
        return svg(8, |_| Ok(()));
    }
    let axis = Axis::spanning(low, all().fold(0.0, f64::max), 32);
    let bottom = (rows.len() as u32 * TALL) as i32 + 8;
    svg(bottom as u32 + 48, |area| {
        axis.draw(area, bottom, false)?;
        for ((label, ink, [from, middle, to]), row) in rows.iter().zip(0..) {
            let top = 4 + (row * TALL) as i32;
            let y = top + ROW as i32 * 3 / 2;
            let style = text(Ink::Text, HPos::Left, VPos::Center);
            area.draw(&Text::new(harmless(label), (axis.left, top + ROW as i32 * 2 / 3), style))?;
            area.draw(&PathElement::new([(axis.x(*from), y), (axis.x(*to), y)], line(*ink, 4)))?;
            area.draw(&Circle::new((axis.x(*middle), y), 8, color(*ink).filled()))?;
        }
        Ok(())
    })
}

/// The least round number that is not below `value`: where an axis ends.
pub fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.max(1e-9).log10().floor());
    let steps = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0].map(|step| step * power);
    steps.into_iter().find(|step| *step >= value * 0.999_999).unwrap_or(value)
}

/// A square of counts, darker where more of a row fall: which class was taken for which.
pub fn matrix(labels: &[&str], counts: &[Vec<usize>]) -> String {
    /// More classes than this have no room for their names, or for numbers in the cells.
    const NAMED: usize = 32;
    const NUMBERED: usize = 14;
    let n = labels.len().max(1) as i32;
    let left = if labels.len() <= NAMED { LABELS + 24 } else { 8 };
    let top = if labels.len() <= NAMED { 40 } else { 8 };
    let cell = (WIDTH as i32 - left - 8) / n;
    svg((top + n * cell + 8) as u32, |area| {
        let frame = [(left, top), (left + n * cell, top + n * cell)];
        area.draw(&Rectangle::new(frame, line(Ink::Grid, 2)))?;
        for (i, (label, row)) in labels.iter().zip(counts).enumerate() {
            let y = top + i as i32 * cell;
            let of_row = row.iter().sum::<usize>().max(1) as f64;
            if labels.len() <= NAMED {
                row_label(area, label, (left - 54, y + cell / 2))?;
                let end = (left - 14, y + cell / 2);
                let style = text(Ink::Text, HPos::Right, VPos::Center);
                area.draw(&Text::new((i + 1).to_string(), end, style))?;
                let x = left + i as i32 * cell + cell / 2;
                let number = (i + 1).to_string();
                area.draw(&Text::new(number, (x, top - 8), text(Ink::Text, HPos::Center, VPos::Bottom)))?;
            }
            for (j, &count) in row.iter().enumerate().filter(|(_, count)| **count > 0) {
                let x = left + j as i32 * cell;
                let ink = if i == j { Ink::Right } else { Ink::Wrong };
                let strength = 0.1 + 0.55 * count as f64 / of_row;
                let square = [(x + 1, y + 1), (x + cell - 1, y + cell - 1)];
                area.draw(&Rectangle::new(square, color(ink).mix(strength).filled()))?;
                if labels.len() <= NUMBERED {
                    let middle = (x + cell / 2, y + cell / 2);
                    let style = text(Ink::Text, HPos::Center, VPos::Center);
                    area.draw(&Text::new(count.to_string(), middle, style))?;
                }
            }
        }
        Ok(())
    })
}

/// A label that ends at a point, cut where it would be too long.
fn row_label(area: &Area, label: &str, end: (i32, i32)) -> Drawn {
    let cut: String = match label.chars().count() {
        0..=LABEL => label.to_owned(),
        _ => label.chars().take(LABEL - 1).chain(['…']).collect(),
    };
    area.draw(&Text::new(harmless(&cut), end, text(Ink::Text, HPos::Right, VPos::Center)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kind of chart, with hostile labels where it has any.
    fn all() -> Vec<String> {
        let hostile = "</text><script>alert('1')</script>\u{202e}";
        let axes =
            Axes { x: "k", y: "hits", x_range: (1.0, 3.0), y_range: (0.0, 1.0), x_digits: 0, y_digits: 1 };
        let points = vec![(1.0, 0.5), (2.0, 0.75), (3.0, 1.0)];
        let lines: Vec<Curve> = (0..5)
            .map(|n| Curve { name: "l1".to_owned(), ink: Ink::Series(n), points: points.clone() })
            .collect();
        vec![
            curves(&axes, &lines),
            histograms(&axes, &[1.0, 2.0, 3.0], &[(Ink::Right, &[1, 0]), (Ink::Wrong, &[0, 1])], Some(2.0)),
            bars(&[(hostile.to_owned(), 0.5), ("b".to_owned(), 1.0)]),
            times(&[(hostile.to_owned(), [0.1, 1.0, 30.0])]),
            differences(&[(hostile.to_owned(), [-0.01, 0.02, 0.05])]),
            intervals(&[(hostile.to_owned(), Ink::Axis, [0.2, 0.25, 0.3])]),
            matrix(&[hostile, "b"], &[vec![1, 2], vec![0, 3]]),
        ]
    }

    #[test]
    fn colours_are_left_to_the_style() {
        let style = include_str!("report.css");
        for svg in all() {
            assert!(!svg.contains('#') && !svg.contains("font-family"), "{svg}");
            let classes = svg.split("class=\"").skip(1).filter_map(|rest| rest.split('"').next());
            for class in classes {
                assert!(style.contains(&format!(".{class}")), "the style lacks {class}");
            }
        }
    }

    #[test]
    fn labels_stay_text() {
        for svg in all() {
            assert!(!svg.contains("<script") && !svg.contains('\u{202e}'), "{svg}");
            assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
        }
    }

    #[test]
    fn nothing_to_draw_is_no_panic() {
        let axes = Axes { x: "k", y: "", x_range: (1.0, 1.0), y_range: (0.0, 0.0), x_digits: 0, y_digits: 0 };
        for svg in [
            curves(&axes, &[]),
            histograms(&axes, &[], &[], None),
            bars(&[]),
            times(&[]),
            differences(&[]),
            intervals(&[]),
            matrix(&[], &[]),
        ] {
            assert!(svg.ends_with("</svg>"), "{svg}");
        }
        assert!(differences(&[("no difference".to_owned(), [0.0; 3])]).ends_with("</svg>"));
        assert!(intervals(&[("all alike".to_owned(), Ink::Axis, [0.5; 3])]).ends_with("</svg>"));
        assert!(times(&[("all in no time".to_owned(), [0.0; 3])]).ends_with("</svg>"));
    }
}
