//! What to measure, and how often: the same for every benchmark.

use clap::{Args, ValueEnum};

/// What to measure, and how often.
#[derive(Args)]
pub struct Options<Section: ValueEnum + Send + Sync + 'static> {
    /// Rounds of each comparison; medians are shown.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Only these sections.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Section>,
}

impl<Section: ValueEnum + PartialEq + Send + Sync + 'static> Options<Section> {
    /// Whether a section is to be measured.
    pub fn takes(&self, section: &Section) -> bool {
        self.only.is_empty() || self.only.contains(section)
    }
}
