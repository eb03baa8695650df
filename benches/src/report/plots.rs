//! Plots as SVG, to be embedded in a page. The browser renders the text, so no font is needed here.

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::element::{CoordMapper, Drawable, PointCollection};
use plotters::prelude::*;

use super::{OWN, Report, Row, value};
use crate::statistics::Estimate;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const WIDTH: u32 = 1000;
const INK: RGBColor = RGBColor(29, 35, 48);
const FAINT: RGBColor = RGBColor(152, 162, 179);
/// One color for each subject, in the report's order.
const COLORS: [RGBColor; 6] = [
    RGBColor(11, 110, 153),
    RGBColor(217, 119, 6),
    RGBColor(124, 58, 237),
    RGBColor(5, 150, 105),
    RGBColor(220, 38, 38),
    RGBColor(100, 116, 139),
];
const PHASES: [RGBColor; 3] = [RGBColor(11, 110, 153), RGBColor(96, 165, 250), RGBColor(52, 211, 153)];

fn color(index: usize) -> RGBColor {
    COLORS[index % COLORS.len()]
}

/// Draws into a string. `paint` receives the empty plot.
fn drawn(height: u32, paint: impl FnOnce(&Area<'_>) -> anyhow::Result<()>) -> anyhow::Result<String> {
    let mut picture = String::new();
    {
        let area = SVGBackend::with_string(&mut picture, (WIDTH, height)).into_drawing_area();
        paint(&area)?;
        area.present().map_err(|error| anyhow!("SVG: {error}"))?;
    }
    Ok(picture)
}

fn put<'e, 's, E, B>(area: &Area<'s>, element: &'e E) -> anyhow::Result<()>
where
    B: CoordMapper,
    &'e E: PointCollection<'e, (i32, i32), B>,
    E: Drawable<SVGBackend<'s>, B>,
{
    area.draw(element).map_err(|error| anyhow!("SVG: {error}"))
}

/// garret's cost divided by each peer's: a bar for each, on a logarithmic scale around 1.
pub(super) fn ratios(report: &Report<'_>, rows: &[Row<'_>]) -> anyhow::Result<Option<String>> {
    const LINE: i32 = 14;
    const GAP: i32 = 6;
    const LEFT: i32 = 330;
    const RIGHT: i32 = 930;
    let bars: Vec<(usize, &str, usize, Estimate)> = rows
        .iter()
        .filter(|row| row.costs.iter().any(Option::is_some))
        .enumerate()
        .flat_map(|(group, row)| {
            let costs = row.costs.iter().enumerate();
            costs.filter_map(move |(subject, cost)| Some((group, row.metric, subject, (*cost)?)))
        })
        .collect();
    let Some((groups, ..)) = bars.last().copied() else { return Ok(None) };
    let ends = bars.iter().flat_map(|(.., cost)| [cost.low, cost.high, cost.value]);
    let ends = ends.filter(|end| end.is_finite() && *end > 0.0);
    let widest = ends.map(|end| end.ln().abs()).fold(f64::from(2).ln(), f64::max) * 1.1;
    let at = |ratio: f64| LEFT + ((ratio.ln() + widest) / (2.0 * widest) * f64::from(RIGHT - LEFT)) as i32;
    let height = 56 + bars.len() as i32 * LINE + groups as i32 * GAP;
    let picture = drawn(height as u32, |area| {
        legend(area, report)?;
        for tick in ticks(widest) {
            put(area, &PathElement::new([(at(tick), 28), (at(tick), height - 18)], FAINT.mix(0.4)))?;
            text(area, &format!("{tick}"), (at(tick) - 6, height - 14), 11, FAINT)?;
        }
        let mut last = "";
        for (index, (group, metric, subject, cost)) in bars.iter().enumerate() {
            let y = 34 + index as i32 * LINE + *group as i32 * GAP;
            if *metric != last {
                text(area, metric, (0, y - 2), 12, INK)?;
                last = metric;
            }
            let (from, to) = (at(1.0).min(at(cost.value)), at(1.0).max(at(cost.value)));
            put(area, &Rectangle::new([(from, y), (to.max(from + 1), y + LINE - 4)], color(*subject).filled()))?;
            let middle = y + (LINE - 4) / 2;
            if cost.is_bounded() {
                put(area, &PathElement::new([(at(cost.low), middle), (at(cost.high), middle)], INK))?;
            }
            text(area, &format!("{:.2}", cost.value), (RIGHT + 15, y - 2), 11, INK)?;
        }
        put(area, &PathElement::new([(at(1.0), 28), (at(1.0), height - 18)], INK.stroke_width(2)))
    })?;
    Ok(Some(picture))
}

/// The peers' colors.
fn legend(area: &Area<'_>, report: &Report<'_>) -> anyhow::Result<()> {
    let mut x = 330;
    for (index, subject) in report.subjects.iter().enumerate().filter(|(_, subject)| **subject != OWN) {
        put(area, &Rectangle::new([(x, 8), (x + 10, 18)], color(index).filled()))?;
        text(area, &format!("over {subject}"), (x + 15, 6), 12, INK)?;
        x += 40 + 8 * subject.len() as i32;
    }
    Ok(())
}

/// Round numbers within the scale, including 1.
fn ticks(widest: f64) -> Vec<f64> {
    const ROUND: [f64; 13] = [0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 100.0, 1000.0];
    ROUND.into_iter().filter(|tick| tick.ln().abs() <= widest).collect()
}

fn text(area: &Area<'_>, said: &str, at: (i32, i32), size: i32, color: RGBColor) -> anyhow::Result<()> {
    put(area, &Text::new(said.to_owned(), at, ("sans-serif", size).into_font().color(&color)))
}

/// The boot of each subject: setup, kernel, agent.
pub(super) fn timeline(report: &Report<'_>) -> anyhow::Result<Option<String>> {
    let boots: Vec<(&str, [f64; 3])> =
        report.subjects.iter().enumerate().filter_map(|(at, name)| Some((*name, phases(report, at)?))).collect();
    let longest = boots.iter().map(|(_, phases)| phases.iter().sum::<f64>()).fold(0.0, f64::max);
    if longest <= 0.0 {
        return Ok(None);
    }
    const LINE: i32 = 36;
    const LEFT: i32 = 150;
    let mark = report.host.and_then(|host| host.platform.caution()).map_or(String::new(), |mark| format!(" ({mark})"));
    let picture = drawn(40 + boots.len() as u32 * LINE as u32, |area| {
        let names = ["process to first KVM_RUN", "kernel to init", "init to agent's answer"];
        for (index, name) in names.iter().enumerate() {
            let x = LEFT + index as i32 * 220;
            put(area, &Rectangle::new([(x, 8), (x + 10, 18)], PHASES[index].filled()))?;
            text(area, name, (x + 15, 6), 12, INK)?;
        }
        for (index, (name, phases)) in boots.iter().enumerate() {
            let y = 34 + index as i32 * LINE;
            text(area, name, (0, y + 6), 13, INK)?;
            let mut since = 0.0;
            for (phase, color) in phases.iter().zip(PHASES) {
                let at = |seconds: f64| LEFT + (seconds / longest * 680.0) as i32;
                put(area, &Rectangle::new([(at(since), y), (at(since + phase), y + LINE - 12)], color.filled()))?;
                since += phase;
            }
            let end = LEFT + (since / longest * 680.0) as i32;
            text(area, &format!("{}{mark}", value(since, crate::result::Unit::Seconds)), (end + 8, y + 6), 12, INK)?;
        }
        Ok(())
    })?;
    Ok(Some(picture))
}

/// The three phases, in seconds. They come from medians of different boots, so none is shown as less than zero.
fn phases(report: &Report<'_>, subject: usize) -> Option<[f64; 3]> {
    let (_, rows) = report.benches.iter().find(|(bench, _)| *bench == "boot")?;
    let median = |metric: &str| rows.iter().find(|row| row.metric == metric)?.cells.get(subject).copied()??.median;
    let (init, agent) = (median("init_seconds")?, median("agent_seconds")?);
    let setup = median("setup_ns").unwrap_or(0.0) / 1e9;
    Some([setup, (init - setup).max(0.0), (agent - init).max(0.0)])
}

/// All courses of memory: a line for each subject, a plot for each metric.
pub(super) fn memory(report: &Report<'_>) -> anyhow::Result<Option<String>> {
    let mut pictures = String::new();
    for (bench, rows) in &report.benches {
        for row in rows {
            let courses: Vec<_> = row
                .cells
                .iter()
                .enumerate()
                .filter_map(|(at, cell)| Some((at, &cell.as_ref()?.series)))
                .filter(|(_, series)| !series.is_empty())
                .collect();
            if !courses.is_empty() {
                pictures.push_str(&lines(report, &format!("{bench}/{}", row.metric), &courses)?);
            }
        }
    }
    Ok((!pictures.is_empty()).then_some(pictures))
}

fn lines(report: &Report<'_>, title: &str, courses: &[(usize, &Vec<(f64, f64)>)]) -> anyhow::Result<String> {
    const MIB: f64 = (1 << 20) as f64;
    let points = || courses.iter().flat_map(|(_, series)| series.iter());
    let last = points().map(|(at, _)| *at).fold(1.0, f64::max);
    let most = points().map(|(_, bytes)| bytes / MIB).fold(1.0, f64::max) * 1.05;
    drawn(320, |area| {
        let draw = || -> Result<(), Box<dyn std::error::Error + '_>> {
            let mut chart = ChartBuilder::on(area)
                .caption(title, ("sans-serif", 14).into_font().color(&INK))
                .margin(8)
                .x_label_area_size(34)
                .y_label_area_size(60)
                .build_cartesian_2d(0.0..last, 0.0..most)?;
            chart.configure_mesh().x_desc("seconds").y_desc("MiB").light_line_style(FAINT.mix(0.1)).draw()?;
            for (subject, series) in courses {
                let color = color(*subject);
                let points = series.iter().map(|(at, bytes)| (*at, bytes / MIB));
                let name = report.subjects.get(*subject).copied().unwrap_or_default();
                chart
                    .draw_series(LineSeries::new(points, color.stroke_width(2)))?
                    .label(name)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
            }
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::LowerLeft)
                .background_style(WHITE.mix(0.8))
                .border_style(FAINT)
                .draw()?;
            Ok(())
        };
        draw().map_err(|error| anyhow!("SVG: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::records;
    use super::*;

    #[test]
    fn everything_there_is_is_drawn() {
        let records = records();
        let report = Report::new(&records);
        let (_, rows) = &report.benches[0];
        let bars = ratios(&report, rows).unwrap().unwrap();
        assert!(
            bars.starts_with("<svg") && bars.contains("exits_to_agent") && bars.contains("over qemu-q35"),
            "{bars}"
        );
        assert!(timeline(&report).unwrap().unwrap().contains("1.50 s (emulated)"));
        assert!(memory(&report).unwrap().unwrap().contains("footprint/idle_resident_bytes"));
    }

    #[test]
    fn nothing_is_no_picture() {
        let report = Report::new(&[]);
        assert_eq!(timeline(&report).unwrap(), None);
        assert_eq!(memory(&report).unwrap(), None);
        assert_eq!(ratios(&report, &[]).unwrap(), None);
        assert_eq!(ticks(f64::ln(2.5)), [0.5, 1.0, 2.0]);
    }
}
