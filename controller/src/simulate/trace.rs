//! Loads over time: how many clients want to be connected in each second, and what goes wrong meanwhile.

use super::random::Random;

/// Seconds in which load and faults play out.
pub const ACTIVE_SECONDS: u64 = 600;
/// Seconds of constant load without faults that follow; long enough for every window, drain and removal.
pub const CALM_SECONDS: u64 = 500;

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trace {
    /// Up and down like days.
    Diurnal,
    /// A sudden multiple of the load, and back.
    Spike,
    /// Clients that never leave.
    SlowLeak,
    /// Back and forth across the edge between two counts.
    Flapping,
    /// Everybody gone and back at once, several times.
    MassReconnect,
    /// Instances lost without a word.
    NodeLoss,
    /// Instances that report too little or too much.
    LyingMetrics,
    /// Instances that report nothing for a while.
    MissingMetrics,
    /// A new version rolled out under load.
    Rollout,
}

impl Trace {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Diurnal,
        Self::Spike,
        Self::SlowLeak,
        Self::Flapping,
        Self::MassReconnect,
        Self::NodeLoss,
        Self::LyingMetrics,
        Self::MissingMetrics,
        Self::Rollout,
    ];

    /// Its name as in a file name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Diurnal => "diurnal",
            Self::Spike => "spike",
            Self::SlowLeak => "slow-leak",
            Self::Flapping => "flapping",
            Self::MassReconnect => "mass-reconnect",
            Self::NodeLoss => "node-loss",
            Self::LyingMetrics => "lying-metrics",
            Self::MissingMetrics => "missing-metrics",
            Self::Rollout => "rollout",
        }
    }

    /// Its name as a heading.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Diurnal => "Days and nights",
            Self::Spike => "A spike",
            Self::SlowLeak => "Clients that never leave",
            Self::Flapping => "Back and forth across an edge",
            Self::MassReconnect => "Everybody reconnects",
            Self::NodeLoss => "Instances are lost",
            Self::LyingMetrics => "Metrics that lie",
            Self::MissingMetrics => "Metrics that are missing",
            Self::Rollout => "A new version under load",
        }
    }

    /// Clients that want to be connected in `second`, for a peak of `peak`. From the end of the active part
    /// on it does not change.
    #[must_use]
    pub fn clients(self, second: u64, peak: u64) -> u64 {
        let second = second.min(ACTIVE_SECONDS);
        match self {
            Self::Diurnal | Self::LyingMetrics | Self::MissingMetrics | Self::NodeLoss | Self::Rollout => {
                // Two triangles with rounded feet: enough of a day for integers.
                let phase = second % 300;
                let height = if phase < 150 { phase } else { 300 - phase };
                peak / 5 + share(peak - peak / 5, height * height * (450 - 2 * height), 150 * 150 * 150)
            }
            Self::Spike => {
                if (200..320).contains(&second) {
                    peak
                } else {
                    peak / 6
                }
            }
            Self::SlowLeak => peak / 10 + share(peak - peak / 10, second, ACTIVE_SECONDS),
            Self::Flapping => {
                let edge = peak.saturating_sub(peak / 10);
                if (second / 15).is_multiple_of(2) && second < ACTIVE_SECONDS {
                    edge + edge / 100 + 1
                } else {
                    edge.saturating_sub(edge / 100 + 1)
                }
            }
            Self::MassReconnect => {
                if second % 150 >= 145 && second < ACTIVE_SECONDS {
                    0
                } else {
                    peak / 2
                }
            }
        }
    }
}

/// `whole` x `part` / `of` in 128 bits.
fn share(whole: u64, part: u64, of: u64) -> u64 {
    u64::try_from(u128::from(whole) * u128::from(part) / u128::from(of.max(1))).unwrap_or(u64::MAX)
}

/// The size of a run: most instances that its load asks for, 1 to 1,000, small ones more often.
pub fn size(random: &mut Random) -> u32 {
    let thousandths = random.below(1000);
    let sixth_power = thousandths.pow(6) / 1000_u64.pow(5);
    u32::try_from(1 + sixth_power).unwrap_or(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_trace_stays_within_its_peak_and_is_calm_at_the_end() {
        for trace in Trace::ALL {
            for second in 0..ACTIVE_SECONDS {
                assert!(trace.clients(second, 10_000) <= 10_000, "{trace:?} at {second}");
            }
            let end = trace.clients(ACTIVE_SECONDS, 10_000);
            assert_eq!(trace.clients(ACTIVE_SECONDS + CALM_SECONDS, 10_000), end, "{trace:?}");
        }
    }

    #[test]
    fn sizes_reach_from_one_to_a_thousand() {
        let mut random = Random::new(1);
        let sizes: Vec<u32> = (0..10_000).map(|_| size(&mut random)).collect();
        assert_eq!(sizes.iter().min(), Some(&1));
        assert!(*sizes.iter().max().unwrap() > 950);
    }
}
