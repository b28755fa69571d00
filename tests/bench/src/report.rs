//! Figures as a table: what was measured, what it is held against, whether it holds.

/// Median, with the range that the rounds spanned.
pub fn spread(values: &[f64]) -> (f64, String) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted[sorted.len() / 2];
    let (least, most) = (sorted[0], sorted[sorted.len() - 1]);
    (middle, format!("{} ({} to {})", figure(middle), figure(least), figure(most)))
}

/// Three significant digits.
pub fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// The figures so far.
#[derive(Default)]
pub struct Report {
    figures: usize,
    short: usize,
}

/// Begins a table.
pub fn section(title: &str) {
    println!("\n### {title}\n");
    println!("| What | Measured | Bar | |\n|---|---|---|---|");
}

impl Report {
    /// A figure that must be at most this.
    pub fn at_most(&mut self, what: &str, value: f64, shown: &str, bar: f64, unit: &str) {
        self.row(what, shown, &format!("at most {} {unit}", figure(bar)), Some(value <= bar));
    }

    /// A figure that must be at least this.
    pub fn at_least(&mut self, what: &str, value: f64, shown: &str, bar: f64, unit: &str) {
        self.row(what, shown, &format!("at least {} {unit}", figure(bar)), Some(value >= bar));
    }

    /// A figure for comparison.
    pub fn note(&mut self, what: &str, shown: &str) {
        self.row(what, shown, "", None);
    }

    fn row(&mut self, what: &str, shown: &str, bar: &str, holds: Option<bool>) {
        let verdict = match holds {
            Some(true) => "holds",
            Some(false) => "**falls short**",
            None => "",
        };
        println!("| {what} | {shown} | {} | {verdict} |", bar.trim_end());
        self.short += usize::from(holds == Some(false));
        self.figures += 1;
    }

    /// Says how many bars there were and how many were not reached.
    pub fn end(&self) {
        println!("\n{} figures, {} short of their bar", self.figures, self.short);
    }
}

/// What this ran on.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let memory: f64 =
        field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
    format!(
        "{} x {}, {:.0} GiB, Linux {}",
        cpus,
        field(&read("/proc/cpuinfo"), "model name"),
        memory / 1024.0 / 1024.0,
        read("/proc/sys/kernel/osrelease").trim()
    )
}
