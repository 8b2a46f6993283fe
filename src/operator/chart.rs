//! Line charts as SVG, which need no script. What there is to read is text beside the drawing, which stretches: so it is as large as any
//! text at every width. Lines differ by their dashes, too, because not everybody tells colours apart.

use std::fmt::Write as _;
use std::time::Duration;

use maud::{Markup, html};

use super::cells;

/// The most lines of a chart: the stylesheet has a colour and dashes for each.
pub(super) const LINES_MAX: usize = 8;
/// The drawing's own units.
const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 100.0;
/// The ends of the scale of durations, in microseconds.
const DURATION_ENDS: [f64; 2] = [1e2, 1e8];

/// What the vertical axis is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// From 0 to a round number of these: `per minute`.
    Count(&'static str),
    /// Parts of 1, from 0 to 100 %.
    Percent,
    /// Microseconds, each mark ten times the one below.
    Duration,
}

impl Scale {
    const fn unit(self) -> &'static str {
        match self {
            Self::Count(unit) => unit,
            Self::Percent => "percent",
            Self::Duration => "time, each mark ten times the one below",
        }
    }

    /// What stands at the axis, from the top down.
    fn marks(self, most: f64) -> Vec<String> {
        match self {
            Self::Count(_) => vec![number(most), number(most / 2.0), "0".to_owned()],
            Self::Percent => ["100 %", "50 %", "0 %"].map(str::to_owned).to_vec(),
            Self::Duration => ["100 s", "10 s", "1 s", "100 ms", "10 ms", "1 ms", "100 µs"].map(str::to_owned).to_vec(),
        }
    }

    /// How high a value stands, from 0 to 1.
    fn place(self, value: f64, most: f64) -> f64 {
        let place = match self {
            Self::Count(_) => value / most,
            Self::Percent => value,
            Self::Duration => {
                let [low, high] = DURATION_ENDS.map(f64::log10);
                (value.max(1.0).log10() - low) / (high - low)
            }
        };
        place.clamp(0.0, 1.0)
    }

    fn text(self, value: f64) -> String {
        match self {
            Self::Count(unit) => format!("{} {unit}", number(value)),
            Self::Percent => format!("{:.0} %", value * 100.0),
            Self::Duration if value >= DURATION_ENDS[1] => "more than a minute".to_owned(),
            Self::Duration => cells::bound(u64::try_from(Duration::from_secs_f64(value / 1e6).as_micros()).ok()),
        }
    }
}

/// One line: moments from 0 (the beginning) to 1 (the end), each with its value if there is one.
#[derive(Clone, Debug)]
pub(super) struct ChartLine {
    pub(super) name: String,
    pub(super) points: Vec<(f64, Option<f64>)>,
}

/// The time that a chart is about: in words, and what stands at its beginning, middle and end.
#[derive(Clone, Debug)]
pub(super) struct ChartSpan {
    pub(super) words: String,
    pub(super) marks: [String; 3],
}

impl ChartSpan {
    /// So much of the time until now.
    pub(super) fn until_now(length: Duration) -> Self {
        let minutes = length.as_secs() / 60;
        match minutes {
            60 => Self {
                words: "within the last hour".to_owned(),
                marks: ["1 h ago", "30 min", "now"].map(str::to_owned),
            },
            _ => Self {
                words: format!("within the last {minutes} min"),
                marks: [format!("{minutes} min ago"), format!("{} min", minutes / 2), "now".to_owned()],
            },
        }
    }
}

/// A chart.
#[derive(Debug)]
pub(super) struct Chart {
    pub(super) id: String,
    pub(super) title: String,
    pub(super) span: ChartSpan,
    pub(super) scale: Scale,
    pub(super) lines: Vec<ChartLine>,
    /// What is said where there is nothing to draw.
    pub(super) hint: String,
}

impl Chart {
    pub(super) fn html(&self) -> Markup {
        let lines: Vec<_> = self.lines.iter().filter(|line| line.most().is_some()).take(LINES_MAX).collect();
        let most = round_up(lines.iter().filter_map(|line| line.most()).fold(0.0, f64::max));
        let marks = self.scale.marks(most);
        let [title_id, desc_id] = ["title", "desc"].map(|part| format!("{}-{part}", self.id));
        html! {
            figure.chart id=(self.id) {
                figcaption { strong { (self.title) } " " span.quiet { (self.scale.unit()) } }
                @if lines.is_empty() {
                    p.empty { (self.hint) }
                } @else {
                    div.plot {
                        div.scale aria-hidden="true" { @for mark in &marks { span { (mark) } } }
                        svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-labelledby={ (title_id) " " (desc_id) } {
                            title id=(title_id) { (self.title) ", " (self.scale.unit()) ", " (self.span.words) }
                            desc id=(desc_id) { @for line in &lines { (self.told(line)) " " } }
                            path.grid d=(grid(marks.len())) {}
                            @for (place, line) in lines.iter().enumerate() { path class={ "line line-" (place) } d=(self.path(line, most)) {} }
                        }
                        div.times aria-hidden="true" { @for mark in &self.span.marks { span { (mark) } } }
                    }
                    ul.legend {
                        @for (place, line) in lines.iter().enumerate() {
                            li {
                                svg.swatch viewBox="0 0 34 8" aria-hidden="true" { path class={ "line line-" (place) } d="M0 4H34" {} }
                                (line.name)
                                @if let Some(last) = line.last() { " " span.quiet { (self.scale.text(last)) } }
                            }
                        }
                    }
                }
            }
        }
    }

    /// A line in words.
    fn told(&self, line: &ChartLine) -> String {
        let [last, most] = [line.last(), line.most()]
            .map(|value| value.map_or_else(|| "nothing".to_owned(), |value| self.scale.text(value)));
        format!("{}: {last} at last, at most {most}.", line.name)
    }

    /// The path of a line, with a gap where there is no value.
    fn path(&self, line: &ChartLine, most: f64) -> String {
        let mut path = String::new();
        for run in line.points.chunk_by(|one, next| one.1.is_some() == next.1.is_some()) {
            let places = run.iter().filter_map(|(at, value)| {
                let y = HEIGHT * (1.0 - self.scale.place((*value)?, most));
                Some((at.clamp(0.0, 1.0) * WIDTH, y))
            });
            for (place, (x, y)) in places.enumerate() {
                let command = if place == 0 { 'M' } else { 'L' };
                let _infallible = write!(path, "{command}{x:.1} {y:.1}");
            }
            if run.len() == 1 && run.iter().all(|(_, value)| value.is_some()) {
                path.push_str("h-3"); // a moment alone would not be seen
            }
        }
        path
    }
}

impl ChartLine {
    fn most(&self) -> Option<f64> {
        self.points.iter().filter_map(|(_, value)| *value).reduce(f64::max)
    }

    fn last(&self) -> Option<f64> {
        self.points.iter().rev().find_map(|(_, value)| *value)
    }
}

/// Lines across, at each mark.
fn grid(marks: usize) -> String {
    let gaps = marks.saturating_sub(1).max(1);
    (0..=gaps).map(|mark| format!("M0 {:.1}H{WIDTH}", HEIGHT * mark as f64 / gaps as f64)).collect()
}

/// The next of 1, 2, 5, 10, 20, 50, …
fn round_up(most: f64) -> f64 {
    let ten = 10f64.powf(most.max(1.0).log10().floor());
    let round = [1.0, 2.0, 5.0, 10.0].map(|step| step * ten);
    round.into_iter().find(|round| *round >= most).unwrap_or(most)
}

/// A number with as many digits as it takes to tell it from others.
fn number(value: f64) -> String {
    match value {
        _ if value >= 1e6 => format!("{:.1} M", value / 1e6),
        _ if value >= 1e4 => format!("{:.0} k", value / 1e3),
        _ if value > 0.0 && value < 0.1 => format!("{value:.3}"),
        _ if value < 10.0 && value.fract() != 0.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(scale: Scale, points: Vec<(f64, Option<f64>)>) -> String {
        let lines = vec![ChartLine { name: "<b>".to_owned(), points }];
        let (id, title, hint) = ("c".to_owned(), "Title".to_owned(), "Nothing yet.".to_owned());
        Chart { id, title, span: ChartSpan::until_now(Duration::from_secs(3600)), scale, lines, hint }
            .html()
            .into_string()
    }

    #[test]
    fn a_line_has_gaps_a_name_and_a_description() {
        let shown = chart(
            Scale::Count("per minute"),
            vec![(0.0, Some(0.0)), (0.5, Some(30.0)), (0.75, None), (1.0, Some(60.0))],
        );
        assert!(shown.contains(r#"d="M0.0 100.0L300.0 70.0M600.0 40.0h-3""#), "{shown}");
        assert!(shown.contains("<span>100</span><span>50</span><span>0</span>"), "{shown}");
        assert!(shown.contains("within the last hour") && shown.contains("<span>1 h ago</span>"), "{shown}");
        assert_eq!(ChartSpan::until_now(Duration::from_secs(360)).marks, ["6 min ago", "3 min", "now"]);
        assert!(shown.contains("&lt;b&gt;: 60 per minute at last, at most 60 per minute."), "{shown}");
        assert!(!shown.contains("style=") && !shown.contains("<b>"), "{shown}");
    }

    #[test]
    fn durations_stand_on_a_scale_of_powers_of_ten() {
        let shown = chart(Scale::Duration, vec![(0.0, Some(100.0)), (0.5, Some(100_000.0)), (1.0, Some(1e8))]);
        assert!(shown.contains(r#"d="M0.0 100.0L300.0 50.0L600.0 0.0""#), "{shown}");
        assert!(shown.contains("more than a minute at last"), "{shown}");
    }

    #[test]
    fn a_chart_of_nothing_says_what_would_be_there() {
        let shown = chart(Scale::Percent, vec![(0.0, None)]);
        assert!(shown.contains(r#"<p class="empty">Nothing yet.</p>"#) && !shown.contains("<svg"), "{shown}");
    }

    #[test]
    fn scales_end_at_round_numbers() {
        assert_eq!([0.0, 1.0, 3.0, 60.0, 1001.0].map(round_up), [1.0, 1.0, 5.0, 100.0, 2000.0]);
        let numbers = [0.0, 0.007, 0.5, 2.0, 1500.0, 20_000.0, 2.5e6].map(number);
        assert_eq!(numbers, ["0", "0.007", "0.5", "2", "1500", "20 k", "2.5 M"]);
    }
}
