//! Levelling the streams after a scale-out: new instances stay empty while old connections stick, so the
//! fullest shed a bounded share until the spread is small. Pure.

use serde::{Deserialize, Serialize};

use super::observation::{Instance, Moment};

/// Spread (fullest minus emptiest, in percent of the mean) below which the streams are level.
const LEVEL_PERCENT: u64 = 20;
/// One instance sheds at most this fraction of its streams in one pass: a tenth.
const SHARE: u64 = 10;
/// Between passes: long enough for the shed clients to be back (`retry:` is 2 s) and seen again.
pub const PASS_SECONDS: u64 = 10;
/// Passes after which it ends, level or not: a load balancer that does not send new streams to the emptiest
/// instance cannot be levelled from here.
const MOST_PASSES: u32 = 30;
/// Below this mean chance alone makes a larger spread than `LEVEL_PERCENT`.
const SMALL_MEAN: u64 = 20;
/// The square of how many standard deviations (each the root of the mean) chance may spread few streams.
const CHANCE: u64 = 16;

/// Rebalancing under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Episode {
    /// Passes done.
    pub passes: u32,
    /// When the last one began.
    pub last: Moment,
}

/// What one instance is to shed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The pod.
    pub name: String,
    /// Streams to close.
    pub streams: u64,
}

/// What to do about the spread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pass {
    /// The streams are level, or as level as they get.
    Done,
    /// The last pass has not settled.
    Wait,
    /// Each of these sheds its share.
    Shed(Vec<Share>),
}

/// One pass over serving instances, all with a known load. `budget` is the number of streams that may
/// reconnect because of it.
pub fn plan_pass<'a>(
    episode: Episode,
    instances: impl IntoIterator<Item = &'a Instance>,
    budget: u64,
    now: Moment,
) -> Pass {
    let mut streams: Vec<(&str, u64)> =
        instances.into_iter().map(|instance| (instance.name.as_str(), instance.streams())).collect();
    let count = u64::try_from(streams.len()).unwrap_or(u64::MAX).max(1);
    let mean = streams.iter().map(|(_, streams)| *streams).fold(0, u64::saturating_add) / count;
    let fullest = streams.iter().map(|(_, streams)| *streams).max().unwrap_or(0);
    let emptiest = streams.iter().map(|(_, streams)| *streams).min().unwrap_or(0);
    let spread = fullest - emptiest;
    let by_chance = mean < SMALL_MEAN && u128::from(spread).pow(2) <= u128::from(mean) * u128::from(CHANCE);
    if by_chance
        || u128::from(spread) * 100 < u128::from(mean) * u128::from(LEVEL_PERCENT)
        || episode.passes >= MOST_PASSES
    {
        return Pass::Done;
    }
    if episode.passes > 0 && now.since(episode.last) < PASS_SECONDS * 1000 {
        return Pass::Wait;
    }
    streams.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
    let mut left = budget;
    let mut shares = Vec::new();
    for (name, streams) in streams {
        let share = streams.saturating_sub(mean).min((streams / SHARE).max(1)).min(left);
        if share == 0 {
            break;
        }
        left -= share;
        shares.push(Share { name: name.to_owned(), streams: share });
    }
    if shares.is_empty() { Pass::Wait } else { Pass::Shed(shares) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instances(streams: &[u64]) -> Vec<Instance> {
        streams
            .iter()
            .enumerate()
            .map(|(index, &streams)| Instance::serving(format!("pod-{index}"), streams, 0))
            .collect()
    }

    #[test]
    fn the_fullest_shed_at_most_a_tenth_and_never_below_the_mean() {
        let Pass::Shed(shares) = plan_pass(Episode::default(), &instances(&[400, 380, 0]), 1000, Moment(0))
        else {
            panic!("no pass")
        };
        assert_eq!(
            shares,
            [Share { name: "pod-0".into(), streams: 40 }, Share { name: "pod-1".into(), streams: 38 }]
        );
        let Pass::Shed(shares) = plan_pass(Episode::default(), &instances(&[105, 100, 80]), 1000, Moment(0))
        else {
            panic!("no pass")
        };
        assert_eq!(
            shares,
            [Share { name: "pod-0".into(), streams: 10 }, Share { name: "pod-1".into(), streams: 5 }]
        );
    }

    #[test]
    fn it_keeps_within_the_budget_and_waits_between_passes() {
        let full = instances(&[400, 400, 0]);
        let Pass::Shed(shares) = plan_pass(Episode::default(), &full, 50, Moment(0)) else {
            panic!("no pass")
        };
        assert_eq!(shares.iter().map(|share| share.streams).sum::<u64>(), 50);
        let episode = Episode { passes: 1, last: Moment(1000) };
        assert_eq!(plan_pass(episode, &full, 50, Moment(10_999)), Pass::Wait);
        assert!(matches!(plan_pass(episode, &full, 50, Moment(11_000)), Pass::Shed(_)));
    }

    #[test]
    fn level_streams_few_streams_and_hopeless_cases_end_it() {
        assert_eq!(plan_pass(Episode::default(), &instances(&[110, 100, 91]), 1000, Moment(0)), Pass::Done);
        assert_eq!(plan_pass(Episode::default(), &instances(&[6, 3, 0]), 1000, Moment(0)), Pass::Done);
        assert_eq!(plan_pass(Episode::default(), &[], 1000, Moment(0)), Pass::Done);
        let hopeless = Episode { passes: MOST_PASSES, last: Moment(0) };
        assert_eq!(plan_pass(hopeless, &instances(&[400, 0]), 1000, Moment(99_000)), Pass::Done);
    }

    #[test]
    fn a_new_instance_fills_up_within_a_few_passes_behind_least_connections() {
        let mut streams = vec![475u64, 475, 475, 0];
        let mut episode = Episode::default();
        let mut shed = 0;
        for pass in 0.. {
            let now = Moment(pass * PASS_SECONDS * 1000);
            match plan_pass(episode, &instances(&streams), 1000, now) {
                Pass::Done => break,
                Pass::Wait => {}
                Pass::Shed(shares) => {
                    for share in shares {
                        let index: usize = share.name["pod-".len()..].parse().unwrap();
                        streams[index] -= share.streams;
                        shed += share.streams;
                        for _ in 0..share.streams {
                            *streams.iter_mut().min().unwrap() += 1;
                        }
                    }
                    episode = Episode { passes: episode.passes + 1, last: now };
                }
            }
        }
        assert!(episode.passes <= 4, "{} passes", episode.passes);
        assert!(shed <= 400, "{shed} streams moved for a level of 356");
    }
}
