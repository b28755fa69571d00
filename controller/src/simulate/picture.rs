//! A run as an SVG picture: clients against capacity above, instances below.

use std::fmt::Write;

use super::{run::Sample, trace::Trace};

const WIDTH: u64 = 760;
const LEFT: u64 = 60;
const RIGHT: u64 = 16;
/// Top and height of the two panels.
const LOAD: (u64, u64) = (48, 190);
const COUNT: (u64, u64) = (274, 90);

/// Draws the samples of a run.
#[must_use]
pub fn svg(trace: Trace, samples: &[Sample]) -> String {
    let seconds = samples.last().map_or(1, |sample| sample.second).max(1);
    let most = samples.iter().map(|sample| sample.clients.max(sample.capacity)).max().unwrap_or(0).max(1);
    let instances =
        samples.iter().map(|sample| u64::from(sample.desired.max(sample.ready))).max().unwrap_or(0).max(1);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} 400\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"400\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"15\" fill=\"#1f2937\">{}</text>\n",
        trace.title()
    );
    let legend = [
        ("#93c5fd", "clients"),
        ("#b91c1c", "capacity of the serving instances"),
        ("#6b7280", "instances serving"),
        ("#047857", "instances desired"),
    ];
    let mut x = LEFT;
    for (colour, label) in legend {
        let _ = writeln!(
            text,
            "<rect x=\"{x}\" y=\"29\" width=\"10\" height=\"10\" fill=\"{colour}\"/><text x=\"{}\" y=\"38\" fill=\"#374151\">{label}</text>",
            x + 14
        );
        x += 34 + 6 * label.len() as u64;
    }
    for ((top, height), largest) in [(LOAD, most), (COUNT, instances)] {
        let bottom = top + height;
        let _ = writeln!(
            text,
            "<path d=\"M{LEFT} {top}V{bottom}H{}\" fill=\"none\" stroke=\"#9ca3af\"/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#374151\">{largest}</text>\
             <text x=\"{}\" y=\"{bottom}\" text-anchor=\"end\" fill=\"#374151\">0</text>",
            WIDTH - RIGHT,
            LEFT - 6,
            top + 10,
            LEFT - 6
        );
    }
    let _ = writeln!(
        text,
        "<text x=\"{LEFT}\" y=\"384\" fill=\"#374151\">0 s</text><text x=\"{}\" y=\"384\" text-anchor=\"end\" fill=\"#374151\">{seconds} s</text>",
        WIDTH - RIGHT
    );
    let line =
        |panel, largest, value: &dyn Fn(&Sample) -> u64| steps(samples, seconds, panel, largest, value);
    let area = line(LOAD, most, &|sample| sample.clients);
    let (top, height) = LOAD;
    let _ = writeln!(text, "<path d=\"{area}V{}H{LEFT}Z\" fill=\"#93c5fd\"/>", top + height);
    let lines = [
        (line(LOAD, most, &|sample| sample.capacity), "#b91c1c"),
        (line(COUNT, instances, &|sample| sample.ready.into()), "#6b7280"),
        (line(COUNT, instances, &|sample| sample.desired.into()), "#047857"),
    ];
    for (path, colour) in lines {
        let _ = writeln!(text, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>");
    }
    text.push_str("</svg>\n");
    text
}

/// A step line; equal neighbours are left out.
fn steps(
    samples: &[Sample],
    seconds: u64,
    (top, height): (u64, u64),
    largest: u64,
    value: &dyn Fn(&Sample) -> u64,
) -> String {
    let x = |second: u64| LEFT + (WIDTH - LEFT - RIGHT) * second / seconds;
    let y = |value: u64| top + height - height * value / largest;
    let mut path = String::new();
    let mut last = None;
    for sample in samples {
        let at = y(value(sample));
        match last {
            None => {
                let _ = write!(path, "M{LEFT} {at}");
            }
            Some(before) if before != at => {
                let _ = write!(path, "H{}V{at}", x(sample.second));
            }
            Some(_) => {}
        }
        last = Some(at);
    }
    let _ = write!(path, "H{}", x(seconds));
    path
}
